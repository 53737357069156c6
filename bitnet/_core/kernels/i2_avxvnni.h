/* i2 on AVX-VNNI. Layout: packings/i2.pyx. Contract: kernel.h.
 *
 *   vpsrlw      brings a group's 2-bit fields down; vpand drops what came over from the neighbouring byte
 *   vpdpbusd    u8 codes x i8 inputs, four neighbours summed into the row's i32 lane */
#ifndef BITNET_I2_AVXVNNI_H
#define BITNET_I2_AVXVNNI_H

#include "kernel.h"

#if BITNET_X86 && BITNET_HAS_AVXVNNI
BITNET_TARGET("avx2,avxvnni")

enum { I2_AVXVNNI_TOKENS = 4 };

/* `tokens` is a constant where this is inlined, so the loops over it unroll and the sums stay in registers.
 * vpdpbusd takes 4 or 5 cycles: of 1 token every other group has sums of its own, so that 4 chains run. */
BITNET_INLINE void i2_tokens_avxvnni(const uint8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums,
                                     ptrdiff_t tiles, const int tokens) {
    const __m256i field_u8x32 = _mm256_set1_epi8(3);
    const int other = tokens == 1 ? I2_AVXVNNI_TOKENS : 0;
    __m256i low_i32x8[2 * I2_AVXVNNI_TOKENS], high_i32x8[2 * I2_AVXVNNI_TOKENS];
    for (int t = 0; t < tokens; t++) {
        low_i32x8[t] = high_i32x8[t] = _mm256_setzero_si256();
        low_i32x8[t + other] = high_i32x8[t + other] = _mm256_setzero_si256();
    }
    for (ptrdiff_t tile = 0; tile < tiles; tile++) {
        const uint8_t *at = w + tile * BITNET_TILE_BYTES;
        BITNET_PREFETCH(at + BITNET_PREFETCH_BYTES);
        __m256i low_u8x32 = _mm256_load_si256((const __m256i *)at);
        __m256i high_u8x32 = _mm256_load_si256((const __m256i *)(at + 32));
        for (int g = 0; g < 4; g++) {
            const __m256i low = _mm256_and_si256(low_u8x32, field_u8x32);
            const __m256i high = _mm256_and_si256(high_u8x32, field_u8x32);
            const int apart = g % 2 ? other : 0;
            for (int t = 0; t < tokens; t++) {
                int32_t four;
                memcpy(&four, x + t * x_stride + tile * 16 + 4 * g, 4);
                const __m256i x_i8x32 = _mm256_set1_epi32(four);
                low_i32x8[t + apart] = BITNET_DPBUSD_AVX(low_i32x8[t + apart], low, x_i8x32);
                high_i32x8[t + apart] = BITNET_DPBUSD_AVX(high_i32x8[t + apart], high, x_i8x32);
            }
            low_u8x32 = _mm256_srli_epi16(low_u8x32, 2);
            high_u8x32 = _mm256_srli_epi16(high_u8x32, 2);
        }
    }
    for (int t = 0; t < tokens; t++) {
        if (other) {
            low_i32x8[t] = _mm256_add_epi32(low_i32x8[t], low_i32x8[t + other]);
            high_i32x8[t] = _mm256_add_epi32(high_i32x8[t], high_i32x8[t + other]);
        }
        _mm256_storeu_si256((__m256i *)(sums + 16 * t), low_i32x8[t]);
        _mm256_storeu_si256((__m256i *)(sums + 16 * t + 8), high_i32x8[t]);
    }
}

BITNET_KERNEL void i2_panel_avxvnni(const uint8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums,
                                    ptrdiff_t tiles, ptrdiff_t tokens) {
    BITNET_ASSERT_PANEL(w, tiles, tokens);
    for (; tokens >= 4; tokens -= 4, x += 4 * x_stride, sums += 64) i2_tokens_avxvnni(w, x, x_stride, sums, tiles, 4);
    switch (tokens) {
    case 3: i2_tokens_avxvnni(w, x, x_stride, sums, tiles, 3); break;
    case 2: i2_tokens_avxvnni(w, x, x_stride, sums, tiles, 2); break;
    case 1: i2_tokens_avxvnni(w, x, x_stride, sums, tiles, 1); break;
    default: break;
    }
    _mm256_zeroupper();
}

BITNET_TARGET_END
#endif

#endif
