/* The int8 head on AVX2. Layout and contract: head_kernel.h.
 *
 *   vpabsb, vpsignb   x w = |x| (sign of x) w, because
 *   vpmaddubsw        multiplies u8 by i8; pairs summed to i16: at most 2 * 128 * 127 = 32512 in magnitude
 *   vpmaddwd          i16 pairs summed to i32 */
#ifndef BITNET_HEAD_AVX2_H
#define BITNET_HEAD_AVX2_H

#include "head_kernel.h"

#if BITNET_X86
BITNET_TARGET("avx2")

/* `inputs`, at most 4, is a constant where this is inlined, so the sums stay in registers. */
BITNET_INLINE void head_rows_avx2(const int8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums, ptrdiff_t tiles,
                                  const int inputs) {
    const __m256i ones_i16x16 = _mm256_set1_epi16(1);
    __m256i low_i32x8[4], high_i32x8[4];
    for (int t = 0; t < inputs; t++) low_i32x8[t] = high_i32x8[t] = _mm256_setzero_si256();
    for (ptrdiff_t tile = 0; tile < tiles; tile++) {
        const int8_t *at = w + tile * HEAD_TILE_BYTES;
        BITNET_PREFETCH(at + 4096);
        const __m256i low_i8x32 = _mm256_load_si256((const __m256i *)at);
        const __m256i high_i8x32 = _mm256_load_si256((const __m256i *)(at + 32));
        for (int t = 0; t < inputs; t++) {
            int32_t four;
            memcpy(&four, x + t * x_stride + tile * HEAD_COLS, 4);
            const __m256i in_i8x32 = _mm256_set1_epi32(four), size_u8x32 = _mm256_abs_epi8(in_i8x32);
            const __m256i low_i16x16 = _mm256_maddubs_epi16(size_u8x32, _mm256_sign_epi8(low_i8x32, in_i8x32));
            const __m256i high_i16x16 = _mm256_maddubs_epi16(size_u8x32, _mm256_sign_epi8(high_i8x32, in_i8x32));
            low_i32x8[t] = _mm256_add_epi32(low_i32x8[t], _mm256_madd_epi16(low_i16x16, ones_i16x16));
            high_i32x8[t] = _mm256_add_epi32(high_i32x8[t], _mm256_madd_epi16(high_i16x16, ones_i16x16));
        }
    }
    for (int t = 0; t < inputs; t++) {
        _mm256_storeu_si256((__m256i *)(sums + 16 * t), low_i32x8[t]);
        _mm256_storeu_si256((__m256i *)(sums + 16 * t + 8), high_i32x8[t]);
    }
}

BITNET_KERNEL void head_panel_avx2(const int8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums, ptrdiff_t tiles,
                                   ptrdiff_t inputs) {
    BITNET_ASSERT((uintptr_t)w % HEAD_TILE_BYTES == 0 && tiles > 0);
    ptrdiff_t t = 0;
    for (; t + 4 <= inputs; t += 4) head_rows_avx2(w, x + t * x_stride, x_stride, sums + 16 * t, tiles, 4);
    if (t < inputs) head_rows_avx2(w, x + t * x_stride, x_stride, sums + 16 * t, tiles, 2);
    _mm256_zeroupper();
}

BITNET_TARGET_END
#endif

#endif
