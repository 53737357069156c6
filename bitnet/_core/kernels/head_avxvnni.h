/* The int8 head on AVX-VNNI. Layout and contract: head_kernel.h.
 *
 *   vpxor      weights from -127..127 to 1..255, because
 *   vpdpbusd   multiplies u8 by i8, and sums four neighbours into the row's i32 lane */
#ifndef BITNET_HEAD_AVXVNNI_H
#define BITNET_HEAD_AVXVNNI_H

#include "head_kernel.h"

#if BITNET_X86 && BITNET_HAS_AVXVNNI
BITNET_TARGET("avx2,avxvnni")

/* `inputs`, 2 or 4, is a constant where this is inlined, so the sums stay in registers: at least 4 chains run. */
BITNET_INLINE void head_rows_avxvnni(const int8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums,
                                     ptrdiff_t tiles, const int inputs) {
    const __m256i flip_u8x32 = _mm256_set1_epi8((char)0x80);
    __m256i low_i32x8[4], high_i32x8[4];
    for (int t = 0; t < inputs; t++) low_i32x8[t] = high_i32x8[t] = _mm256_setzero_si256();
    for (ptrdiff_t tile = 0; tile < tiles; tile++) {
        const int8_t *at = w + tile * HEAD_TILE_BYTES;
        BITNET_PREFETCH(at + 4096);
        const __m256i low_u8x32 = _mm256_xor_si256(_mm256_load_si256((const __m256i *)at), flip_u8x32);
        const __m256i high_u8x32 = _mm256_xor_si256(_mm256_load_si256((const __m256i *)(at + 32)), flip_u8x32);
        for (int t = 0; t < inputs; t++) {
            int32_t four;
            memcpy(&four, x + t * x_stride + tile * HEAD_COLS, 4);
            const __m256i in_i8x32 = _mm256_set1_epi32(four);
            low_i32x8[t] = BITNET_DPBUSD_AVX(low_i32x8[t], low_u8x32, in_i8x32);
            high_i32x8[t] = BITNET_DPBUSD_AVX(high_i32x8[t], high_u8x32, in_i8x32);
        }
    }
    for (int t = 0; t < inputs; t++) {
        _mm256_storeu_si256((__m256i *)(sums + 16 * t), low_i32x8[t]);
        _mm256_storeu_si256((__m256i *)(sums + 16 * t + 8), high_i32x8[t]);
    }
}

BITNET_KERNEL void head_panel_avxvnni(const int8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums,
                                      ptrdiff_t tiles, ptrdiff_t inputs) {
    BITNET_ASSERT((uintptr_t)w % HEAD_TILE_BYTES == 0 && tiles > 0);
    ptrdiff_t t = 0;
    for (; t + 4 <= inputs; t += 4) head_rows_avxvnni(w, x + t * x_stride, x_stride, sums + 16 * t, tiles, 4);
    if (t < inputs) head_rows_avxvnni(w, x + t * x_stride, x_stride, sums + 16 * t, tiles, 2);
    _mm256_zeroupper();
}

BITNET_TARGET_END
#endif

#endif
