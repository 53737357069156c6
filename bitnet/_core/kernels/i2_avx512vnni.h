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

#include "kernel.h"
#include "lut_index_avx512vnni.h"

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

/* The places of a tile's sums, numbers 0 to 80, of bytes of four codes: what the two codes of each nibble give. A 3, which is
 * no code, counts as 2. */
BITNET_INLINE void i2_places_avx512vnni(const uint8_t *w, int shift, uint8_t *places) {
    const __m512i nibble_u8x64 = _mm512_set1_epi8(0x0f);
    const __m512i first_u8x64 = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 27, 54, 54, 9, 36, 63, 63, 18, 45, 72, 72, 18, 45, 72, 72));
    const __m512i last_u8x64 = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 3, 6, 6, 1, 4, 7, 7, 2, 5, 8, 8, 2, 5, 8, 8));
    const __m512i packed_u8x64 = _mm512_load_si512(w);
    const __m512i low_u8x64 = _mm512_and_si512(packed_u8x64, nibble_u8x64);
    const __m512i high_u8x64 = _mm512_and_si512(_mm512_srli_epi16(packed_u8x64, 4), nibble_u8x64);
    lut_store_places_avx512vnni(places, shift, _mm512_add_epi8(_mm512_shuffle_epi8(first_u8x64, low_u8x64),
                                                               _mm512_shuffle_epi8(last_u8x64, high_u8x64)));
}

/* The codes of a tile that is multiplied. */
BITNET_INLINE void i2_multiplied_avx512vnni(const uint8_t *w, uint8_t *codes) {
    const __m512i packed_u8x64 = _mm512_load_si512(w);
    __m512i groups_u8x64[4];
    for (int g = 0; g < 4; g++)
        groups_u8x64[g] = _mm512_and_si512(_mm512_srli_epi16(packed_u8x64, 2 * g), _mm512_set1_epi8(0x03));
    lut_store_codes_avx512vnni(codes, groups_u8x64);
}

/* Any codes will do where there is no tile. */
BITNET_KERNEL void i2_index_avx512vnni(const uint8_t *w, ptrdiff_t panel_bytes, ptrdiff_t panels, ptrdiff_t tiles,
                                       ptrdiff_t pass, ptrdiff_t passes, int shift, uint8_t *indices) {
    BITNET_ASSERT_INDEX(w, panel_bytes, indices);
    for (ptrdiff_t panel = 0; panel < panels; panel++, w += panel_bytes, indices += LUT_MULTIPLIED_PASS_BYTES)
        for (ptrdiff_t p = 0; p < passes; p++) {
            uint8_t *to = indices + p * panels * LUT_MULTIPLIED_PASS_BYTES;
            for (int i = 0; i < 3; i++) {
                const ptrdiff_t tile = 3 * (pass + p) + i;
                const uint8_t *at = w + (tile < tiles ? tile : tiles - 1) * BITNET_TILE_BYTES;
                BITNET_PREFETCH(at + LUT_PANELS_AHEAD * panel_bytes);
                if (i < 2)
                    i2_places_avx512vnni(at, shift, to + 128 * i);
                else
                    i2_multiplied_avx512vnni(at, to + LUT_CODES_AT);
            }
        }
    _mm256_zeroupper();
}

BITNET_TARGET_END
#endif

#endif
