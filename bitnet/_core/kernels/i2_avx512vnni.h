/* i2 on AVX512-VNNI. Layout: packings/i2.pyx. Contract: kernel.h.
 *
 *   vpandd     picks a group's 2-bit fields, two groups of a tile where they lie: as 1 x code and as 4 x code
 *   vpsrlw     brings the other two groups to the same places
 *   vpdpbusd   u8 codes x i8 inputs, four neighbours summed into the row's i32 lane
 *
 * Fields that stay two bits up give sums of 4 x code * x, kept apart and divided by 4 at the end, without
 * remainder. They cover half of the columns: 4 * 2 * 128 * BITNET_MAX_COLS / 2 = 2^32 / 2 in magnitude, reached
 * only on the negative side, which i32 holds. */
#ifndef BITNET_I2_AVX512VNNI_H
#define BITNET_I2_AVX512VNNI_H

#include "gemm_expand_avx512vnni.h"
#include "kernel.h"

#if BITNET_X86
BITNET_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")

BITNET_INLINE __m512i i2_four_inputs_avx512vnni(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
}

/* One or two tokens (`tokens` is a constant where this is inlined): each group has sums of its own and stays where it lies, up
 * to six bits up: no shift, and 4 chains of vpdpbusd, which takes 4 cycles. 64 * 2 * 128 * 4 columns of a tile and lane fit
 * int32 for 2^15 tiles. */
BITNET_INLINE void i2_few_tokens_avx512vnni(const uint8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums,
                                            ptrdiff_t tiles, const int tokens) {
    const __m512i fields_u8x64[4] = {_mm512_set1_epi8(0x03), _mm512_set1_epi8(0x0c), _mm512_set1_epi8(0x30),
                                     _mm512_set1_epi8((char)0xc0)};
    __m512i total_i32x16[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    for (ptrdiff_t first = 0; first < tiles; first += BITNET_FEW_TILES) {
        const ptrdiff_t last = tiles - first < BITNET_FEW_TILES ? tiles : first + BITNET_FEW_TILES;
        __m512i sums_i32x16[2][4];
        for (int t = 0; t < tokens; t++)
            for (int g = 0; g < 4; g++) sums_i32x16[t][g] = _mm512_setzero_si512();
        for (ptrdiff_t tile = first; tile < last; tile++) {
            const uint8_t *at = w + tile * BITNET_TILE_BYTES;
            BITNET_PREFETCH(at + BITNET_PREFETCH_BYTES);
            const __m512i packed_u8x64 = _mm512_load_si512(at);
            for (int g = 0; g < 4; g++) {
                const __m512i group_u8x64 = _mm512_and_si512(packed_u8x64, fields_u8x64[g]);
                for (int t = 0; t < tokens; t++)
                    sums_i32x16[t][g] = _mm512_dpbusd_epi32(
                        sums_i32x16[t][g], group_u8x64, i2_four_inputs_avx512vnni(x + t * x_stride + tile * 16 + 4 * g));
            }
        }
        for (int t = 0; t < tokens; t++) {
            const __m512i low_i32x16 = _mm512_add_epi32(sums_i32x16[t][0], _mm512_srai_epi32(sums_i32x16[t][1], 2));
            const __m512i high_i32x16 = _mm512_add_epi32(_mm512_srai_epi32(sums_i32x16[t][2], 4),
                                                         _mm512_srai_epi32(sums_i32x16[t][3], 6));
            total_i32x16[t] = _mm512_add_epi32(total_i32x16[t], _mm512_add_epi32(low_i32x16, high_i32x16));
        }
    }
    for (int t = 0; t < tokens; t++) _mm512_storeu_si512(sums + 16 * t, total_i32x16[t]);
}

/* `tokens` is a constant where this is inlined, so the loops over it unroll and the sums stay in registers. */
BITNET_INLINE void i2_tokens_avx512vnni(const uint8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums,
                                        ptrdiff_t tiles, const int tokens) {
    const __m512i ones_u8x64 = _mm512_set1_epi8(0x03), fours_u8x64 = _mm512_set1_epi8(0x0c);
    __m512i one_i32x16[BITNET_TOKENS], four_i32x16[BITNET_TOKENS];
    for (int t = 0; t < tokens; t++) one_i32x16[t] = four_i32x16[t] = _mm512_setzero_si512();
    for (ptrdiff_t tile = 0; tile < tiles; tile++) {
        const uint8_t *at = w + tile * BITNET_TILE_BYTES;
        BITNET_PREFETCH(at + BITNET_PREFETCH_BYTES);
        const __m512i low_u8x64 = _mm512_load_si512(at);
        const __m512i high_u8x64 = _mm512_srli_epi16(low_u8x64, 4);
        const __m512i group0_u8x64 = _mm512_and_si512(low_u8x64, ones_u8x64);
        const __m512i group1_u8x64 = _mm512_and_si512(low_u8x64, fours_u8x64);
        const __m512i group2_u8x64 = _mm512_and_si512(high_u8x64, ones_u8x64);
        const __m512i group3_u8x64 = _mm512_and_si512(high_u8x64, fours_u8x64);
        for (int t = 0; t < tokens; t++) {
            const int8_t *in = x + t * x_stride + tile * 16;
            one_i32x16[t] = _mm512_dpbusd_epi32(one_i32x16[t], group0_u8x64, i2_four_inputs_avx512vnni(in));
            four_i32x16[t] = _mm512_dpbusd_epi32(four_i32x16[t], group1_u8x64, i2_four_inputs_avx512vnni(in + 4));
            one_i32x16[t] = _mm512_dpbusd_epi32(one_i32x16[t], group2_u8x64, i2_four_inputs_avx512vnni(in + 8));
            four_i32x16[t] = _mm512_dpbusd_epi32(four_i32x16[t], group3_u8x64, i2_four_inputs_avx512vnni(in + 12));
        }
    }
    for (int t = 0; t < tokens; t++)
        _mm512_storeu_si512(sums + 16 * t, _mm512_add_epi32(one_i32x16[t], _mm512_srai_epi32(four_i32x16[t], 2)));
}

BITNET_KERNEL void i2_panel_avx512vnni(const uint8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums,
                                       ptrdiff_t tiles, ptrdiff_t tokens) {
    BITNET_ASSERT_PANEL(w, tiles, tokens);
    switch (tokens) {
    case 1: i2_few_tokens_avx512vnni(w, x, x_stride, sums, tiles, 1); break;
    case 2: i2_few_tokens_avx512vnni(w, x, x_stride, sums, tiles, 2); break;
    case 3: i2_tokens_avx512vnni(w, x, x_stride, sums, tiles, 3); break;
    case 4: i2_tokens_avx512vnni(w, x, x_stride, sums, tiles, 4); break;
    case 5: i2_tokens_avx512vnni(w, x, x_stride, sums, tiles, 5); break;
    case 6: i2_tokens_avx512vnni(w, x, x_stride, sums, tiles, 6); break;
    case 7: i2_tokens_avx512vnni(w, x, x_stride, sums, tiles, 7); break;
    default: i2_tokens_avx512vnni(w, x, x_stride, sums, tiles, 8); break;
    }
    _mm256_zeroupper();
}

/* The codes of the five groups from `first` on. */
BITNET_INLINE void i2_groups_avx512vnni(const uint8_t *w, const int first, __m512i groups_u8x64[GEMM_GROUPS]) {
    for (int g = 0; g < GEMM_GROUPS; g++) {
        const __m512i tile_u8x64 = _mm512_load_si512(w + (first + g) / 4 * BITNET_TILE_BYTES);
        groups_u8x64[g] = _mm512_and_si512(_mm512_srli_epi16(tile_u8x64, 2 * ((first + g) % 4)), _mm512_set1_epi8(0x03));
    }
}

/* Four steps are five tiles. */
BITNET_KERNEL void i2_expand_avx512vnni(const uint8_t *w, ptrdiff_t panel_bytes, ptrdiff_t steps, uint8_t *weights) {
    BITNET_ASSERT_EXPAND(w, panel_bytes, steps);
    for (ptrdiff_t step = 0; step < steps; step += 4, w += 5 * BITNET_TILE_BYTES, weights += 4 * GEMM_WEIGHT_BYTES)
        for (int pair = 0; pair < 2; pair++)
            for (int s = 0; s < 4; s++) {
                __m512i a_u8x64[GEMM_GROUPS], b_u8x64[GEMM_GROUPS];
                i2_groups_avx512vnni(w + 2 * pair * panel_bytes, GEMM_GROUPS * s, a_u8x64);
                i2_groups_avx512vnni(w + (2 * pair + 1) * panel_bytes, GEMM_GROUPS * s, b_u8x64);
                gemm_store_avx512vnni(weights + s * GEMM_WEIGHT_BYTES, pair, a_u8x64, b_u8x64);
            }
    _mm256_zeroupper();
}

BITNET_TARGET_END
#endif

#endif
