/* t5 on AVX-VNNI. Layout: packings/t5.pyx. Contract: kernel.h.
 *
 *   vpcmpgtb    against +42 and -42 gives a byte's next digit
 *   vpaddb      triples the byte: the digit leaves it on top
 *   vpdpbusd    u8 codes x i8 inputs, four neighbours summed into the row's i32 lane */
#ifndef BITNET_T5_AVXVNNI_H
#define BITNET_T5_AVXVNNI_H

#include "kernel.h"

#if BITNET_X86 && BITNET_HAS_AVXVNNI
BITNET_TARGET("avx2,avxvnni")

enum { T5_AVXVNNI_TOKENS = 4 };

/* The codes of the digit that is on top of each byte. */
BITNET_INLINE __m256i t5_codes_avxvnni(__m256i bytes_i8x32) {
    const __m256i is_less = _mm256_cmpgt_epi8(_mm256_set1_epi8(-42), bytes_i8x32);
    const __m256i is_more = _mm256_cmpgt_epi8(bytes_i8x32, _mm256_set1_epi8(42));
    return _mm256_sub_epi8(_mm256_add_epi8(_mm256_set1_epi8(1), is_less), is_more);
}

BITNET_INLINE __m256i t5_thrice_avxvnni(__m256i bytes_i8x32) {
    return _mm256_add_epi8(_mm256_add_epi8(bytes_i8x32, bytes_i8x32), bytes_i8x32);
}

/* `tokens` is a constant where this is inlined, so the loops over it unroll and the sums stay in registers. */
BITNET_INLINE void t5_tokens_avxvnni(const uint8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums,
                                     ptrdiff_t tiles, const int tokens) {
    __m256i low_i32x8[T5_AVXVNNI_TOKENS], high_i32x8[T5_AVXVNNI_TOKENS];
    for (int t = 0; t < tokens; t++) low_i32x8[t] = high_i32x8[t] = _mm256_setzero_si256();
    for (ptrdiff_t tile = 0; tile < tiles; tile++) {
        const uint8_t *at = w + tile * BITNET_TILE_BYTES;
        BITNET_PREFETCH(at + BITNET_PREFETCH_BYTES);
        __m256i low_i8x32 = _mm256_load_si256((const __m256i *)at);
        __m256i high_i8x32 = _mm256_load_si256((const __m256i *)(at + 32));
        for (int g = 0; g < 5; g++) {
            const __m256i low_u8x32 = t5_codes_avxvnni(low_i8x32), high_u8x32 = t5_codes_avxvnni(high_i8x32);
            low_i8x32 = t5_thrice_avxvnni(low_i8x32);
            high_i8x32 = t5_thrice_avxvnni(high_i8x32);
            for (int t = 0; t < tokens; t++) {
                int32_t four;
                memcpy(&four, x + t * x_stride + tile * 20 + 4 * g, 4);
                const __m256i x_i8x32 = _mm256_set1_epi32(four);
                low_i32x8[t] = BITNET_DPBUSD_AVX(low_i32x8[t], low_u8x32, x_i8x32);
                high_i32x8[t] = BITNET_DPBUSD_AVX(high_i32x8[t], high_u8x32, x_i8x32);
            }
        }
    }
    for (int t = 0; t < tokens; t++) {
        _mm256_storeu_si256((__m256i *)(sums + 16 * t), low_i32x8[t]);
        _mm256_storeu_si256((__m256i *)(sums + 16 * t + 8), high_i32x8[t]);
    }
}

BITNET_KERNEL void t5_panel_avxvnni(const uint8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums,
                                    ptrdiff_t tiles, ptrdiff_t tokens) {
    BITNET_ASSERT_PANEL(w, tiles, tokens);
    for (; tokens >= 4; tokens -= 4, x += 4 * x_stride, sums += 64) t5_tokens_avxvnni(w, x, x_stride, sums, tiles, 4);
    switch (tokens) {
    case 3: t5_tokens_avxvnni(w, x, x_stride, sums, tiles, 3); break;
    case 2: t5_tokens_avxvnni(w, x, x_stride, sums, tiles, 2); break;
    case 1: t5_tokens_avxvnni(w, x, x_stride, sums, tiles, 1); break;
    default: break;
    }
    _mm256_zeroupper();
}

BITNET_TARGET_END
#endif

#endif
