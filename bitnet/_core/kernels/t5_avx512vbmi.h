/* t5 on AVX512-VNNI with VBMI. Layout: packings/t5.pyx. Contract: kernel.h.
 *
 *   vpabsb     a byte's magnitude, 0..127: negating a byte negates its weights
 *   vpermi2b   looks the codes of a magnitude up in a table of 128 bytes: the first code in one table, the other four
 *              in a second, 2 bits each
 *   vpsubb     under the mask of the negative bytes: 2 - code
 *   vpandd, vpsrlw, vpdpbusd   as in i2_avx512vnni.h
 *
 * Codes that lie two bits up give sums of 4 x code * x, kept apart and divided by 4 at the end, without remainder.
 * They cover two of five columns: 4 * 2 * 128 * BITNET_MAX_COLS * 2 / 5 < 2^31. */
#ifndef BITNET_T5_AVX512VBMI_H
#define BITNET_T5_AVX512VBMI_H

#include "kernel.h"
#include "lut_index_avx512vnni.h"
#include "t5_codes.h"

#if BITNET_X86
BITNET_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")

BITNET_INLINE __m512i t5_four_inputs_avx512vbmi(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
}

/* A tile's codes: of the first group, and of the other four, 2 bits each. */
BITNET_INLINE void t5_codes_avx512vbmi(const uint8_t *w, __m512i *first_u8x64, __m512i *others_u8x64) {
    const __m512i first0_u8x64 = _mm512_load_si512(T5_FIRST_CODE);
    const __m512i first1_u8x64 = _mm512_load_si512(T5_FIRST_CODE + 64);
    const __m512i others0_u8x64 = _mm512_load_si512(T5_OTHER_CODES);
    const __m512i others1_u8x64 = _mm512_load_si512(T5_OTHER_CODES + 64);
    const __m512i packed_i8x64 = _mm512_load_si512(w);
    const __m512i magnitude_u8x64 = _mm512_abs_epi8(packed_i8x64);
    const __mmask64 is_negative = _mm512_movepi8_mask(packed_i8x64);
    const __m512i first = _mm512_permutex2var_epi8(first0_u8x64, magnitude_u8x64, first1_u8x64);
    const __m512i others = _mm512_permutex2var_epi8(others0_u8x64, magnitude_u8x64, others1_u8x64);
    *first_u8x64 = _mm512_mask_sub_epi8(first, is_negative, _mm512_set1_epi8(2), first);
    *others_u8x64 = _mm512_mask_sub_epi8(others, is_negative, _mm512_set1_epi8((char)0xaa), others);
}

/* One or two tokens (`tokens` is a constant where this is inlined): each group has sums of its own and stays where it lies, up
 * to six bits up. So there is no shift, which would compete with the look-ups, and vpdpbusd, which takes 4 cycles, has 5
 * chains. 64 * 2 * 128 * 4 columns of a tile and lane fit int32 for 2^15 tiles. */
BITNET_INLINE void t5_few_tokens_avx512vbmi(const uint8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums,
                                            ptrdiff_t tiles, const int tokens) {
    const __m512i ones_u8x64 = _mm512_set1_epi8(0x03), fours_u8x64 = _mm512_set1_epi8(0x0c);
    const __m512i sixteens_u8x64 = _mm512_set1_epi8(0x30), high_u8x64 = _mm512_set1_epi8((char)0xc0);
    __m512i total_i32x16[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    for (ptrdiff_t first = 0; first < tiles; first += BITNET_FEW_TILES) {
        const ptrdiff_t last = tiles - first < BITNET_FEW_TILES ? tiles : first + BITNET_FEW_TILES;
        __m512i sums_i32x16[2][5];
        for (int t = 0; t < tokens; t++)
            for (int g = 0; g < 5; g++) sums_i32x16[t][g] = _mm512_setzero_si512();
        for (ptrdiff_t tile = first; tile < last; tile++) {
            const uint8_t *at = w + tile * BITNET_TILE_BYTES;
            BITNET_PREFETCH(at + BITNET_PREFETCH_BYTES);
            __m512i group_u8x64[5], others_u8x64;
            t5_codes_avx512vbmi(at, &group_u8x64[0], &others_u8x64);
            group_u8x64[1] = _mm512_and_si512(others_u8x64, ones_u8x64);
            group_u8x64[2] = _mm512_and_si512(others_u8x64, fours_u8x64);
            group_u8x64[3] = _mm512_and_si512(others_u8x64, sixteens_u8x64);
            group_u8x64[4] = _mm512_and_si512(others_u8x64, high_u8x64);
            for (int t = 0; t < tokens; t++)
                for (int g = 0; g < 5; g++)
                    sums_i32x16[t][g] = _mm512_dpbusd_epi32(
                        sums_i32x16[t][g], group_u8x64[g], t5_four_inputs_avx512vbmi(x + t * x_stride + tile * 20 + 4 * g));
        }
        for (int t = 0; t < tokens; t++) {
            const __m512i two_i32x16 = _mm512_add_epi32(_mm512_add_epi32(sums_i32x16[t][0], sums_i32x16[t][1]),
                                                        _mm512_srai_epi32(sums_i32x16[t][2], 2));
            const __m512i others_i32x16 = _mm512_add_epi32(_mm512_srai_epi32(sums_i32x16[t][3], 4),
                                                           _mm512_srai_epi32(sums_i32x16[t][4], 6));
            total_i32x16[t] = _mm512_add_epi32(total_i32x16[t], _mm512_add_epi32(two_i32x16, others_i32x16));
        }
    }
    for (int t = 0; t < tokens; t++) _mm512_storeu_si512(sums + 16 * t, total_i32x16[t]);
}

/* `tokens` is a constant where this is inlined, so the loops over it unroll and the sums stay in registers. */
BITNET_INLINE void t5_tokens_avx512vbmi(const uint8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums,
                                        ptrdiff_t tiles, const int tokens) {
    const __m512i ones_u8x64 = _mm512_set1_epi8(0x03), fours_u8x64 = _mm512_set1_epi8(0x0c);
    __m512i one_i32x16[BITNET_TOKENS], four_i32x16[BITNET_TOKENS];
    for (int t = 0; t < tokens; t++) one_i32x16[t] = four_i32x16[t] = _mm512_setzero_si512();
    for (ptrdiff_t tile = 0; tile < tiles; tile++) {
        const uint8_t *at = w + tile * BITNET_TILE_BYTES;
        BITNET_PREFETCH(at + BITNET_PREFETCH_BYTES);
        __m512i group0_u8x64, low_u8x64;
        t5_codes_avx512vbmi(at, &group0_u8x64, &low_u8x64);
        const __m512i high_u8x64 = _mm512_srli_epi16(low_u8x64, 4);
        const __m512i group1_u8x64 = _mm512_and_si512(low_u8x64, ones_u8x64);
        const __m512i group2_u8x64 = _mm512_and_si512(low_u8x64, fours_u8x64);
        const __m512i group3_u8x64 = _mm512_and_si512(high_u8x64, ones_u8x64);
        const __m512i group4_u8x64 = _mm512_and_si512(high_u8x64, fours_u8x64);
        for (int t = 0; t < tokens; t++) {
            const int8_t *in = x + t * x_stride + tile * 20;
            one_i32x16[t] = _mm512_dpbusd_epi32(one_i32x16[t], group0_u8x64, t5_four_inputs_avx512vbmi(in));
            one_i32x16[t] = _mm512_dpbusd_epi32(one_i32x16[t], group1_u8x64, t5_four_inputs_avx512vbmi(in + 4));
            four_i32x16[t] = _mm512_dpbusd_epi32(four_i32x16[t], group2_u8x64, t5_four_inputs_avx512vbmi(in + 8));
            one_i32x16[t] = _mm512_dpbusd_epi32(one_i32x16[t], group3_u8x64, t5_four_inputs_avx512vbmi(in + 12));
            four_i32x16[t] = _mm512_dpbusd_epi32(four_i32x16[t], group4_u8x64, t5_four_inputs_avx512vbmi(in + 16));
        }
    }
    for (int t = 0; t < tokens; t++)
        _mm512_storeu_si512(sums + 16 * t, _mm512_add_epi32(one_i32x16[t], _mm512_srai_epi32(four_i32x16[t], 2)));
}

BITNET_KERNEL void t5_panel_avx512vbmi(const uint8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums,
                                       ptrdiff_t tiles, ptrdiff_t tokens) {
    BITNET_ASSERT_PANEL(w, tiles, tokens);
    switch (tokens) {
    case 1: t5_few_tokens_avx512vbmi(w, x, x_stride, sums, tiles, 1); break;
    case 2: t5_few_tokens_avx512vbmi(w, x, x_stride, sums, tiles, 2); break;
    case 3: t5_tokens_avx512vbmi(w, x, x_stride, sums, tiles, 3); break;
    case 4: t5_tokens_avx512vbmi(w, x, x_stride, sums, tiles, 4); break;
    case 5: t5_tokens_avx512vbmi(w, x, x_stride, sums, tiles, 5); break;
    case 6: t5_tokens_avx512vbmi(w, x, x_stride, sums, tiles, 6); break;
    case 7: t5_tokens_avx512vbmi(w, x, x_stride, sums, tiles, 7); break;
    default: t5_tokens_avx512vbmi(w, x, x_stride, sums, tiles, 8); break;
    }
    _mm256_zeroupper();
}

/* Of 32 bytes s: the places of the sums of their first four digits, and the codes of the fifth. packings/t5.pyx has
 *
 *     81 s = 256 (27 w0 + 9 w1 + 3 w2 + w3) + s',   s' an int8;   w4 = (3 s' + 128) >> 8
 *
 * so 81 s + 128 + 256 * 40, which is positive, has the place in its upper byte and s' + 128 in the lower one. */
BITNET_INLINE __m512i t5_places_avx512vbmi(const uint8_t *w, int shift, uint8_t *places) {
    const __m512i bytes_i16x32 = _mm512_cvtepi8_epi16(_mm256_load_si256((const __m256i *)w));
    const __m512i both_u16x32 = _mm512_add_epi16(_mm512_mullo_epi16(bytes_i16x32, _mm512_set1_epi16(81)),
                                                 _mm512_set1_epi16(128 + 256 * 40));
    _mm512_store_si512(places, _mm512_slli_epi16(_mm512_srli_epi16(both_u16x32, 8), shift));
    return _mm512_srli_epi16(_mm512_maddubs_epi16(both_u16x32, _mm512_set1_epi16(3)), 8);
}

/* Those of a tile. */
BITNET_INLINE __m512i t5_tile_places_avx512vbmi(const uint8_t *w, int shift, uint8_t *places) {
    const __m512i low_u16x32 = t5_places_avx512vbmi(w, shift, places);
    const __m512i high_u16x32 = t5_places_avx512vbmi(w + 32, shift, places + 64);
    return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), _mm512_packus_epi16(low_u16x32, high_u16x32));
}

/* The codes of one of a tile's five groups, of those that t5_codes_avx512vbmi() makes. */
BITNET_INLINE __m512i t5_group_avx512vbmi(__m512i first_u8x64, __m512i others_u8x64, int group) {
    if (group == 0) return first_u8x64;
    return _mm512_and_si512(_mm512_srl_epi16(others_u8x64, _mm_cvtsi32_si128(2 * (group - 1))), _mm512_set1_epi8(0x03));
}

/* Any codes will do where there is no tile. */
BITNET_KERNEL void t5_index_avx512vbmi(const uint8_t *w, ptrdiff_t panel_bytes, ptrdiff_t panels, ptrdiff_t tiles,
                                       ptrdiff_t pass, ptrdiff_t passes, int shift, uint8_t *indices) {
    BITNET_ASSERT_INDEX(w, panel_bytes, indices);
    for (ptrdiff_t panel = 0; panel < panels; panel++, w += panel_bytes, indices += LUT_MULTIPLIED_PASS_BYTES)
        for (ptrdiff_t p = 0; p < passes; p++) {
            uint8_t *to = indices + p * panels * LUT_MULTIPLIED_PASS_BYTES;
            __m512i groups_u8x64[4], first_u8x64 = _mm512_setzero_si512(), others_u8x64 = first_u8x64;
            for (int i = 0; i < 2; i++) {
                const ptrdiff_t tile = 2 * (pass + p) + i;
                const uint8_t *at = w + (tile < tiles ? tile : tiles - 1) * BITNET_TILE_BYTES;
                BITNET_PREFETCH(at + LUT_PANELS_AHEAD * panel_bytes);
                groups_u8x64[i] = t5_tile_places_avx512vbmi(at, shift, to + 128 * i);
            }
            for (int i = 0; i < 2; i++) {
                const int group = (int)(2 * (pass + p)) + i;
                const uint8_t *at = w + (10 + group / 5) * BITNET_TILE_BYTES;
                if (10 + group / 5 < tiles && (i == 0 || group % 5 == 0)) {
                    BITNET_PREFETCH(at + LUT_PANELS_AHEAD * panel_bytes);
                    t5_codes_avx512vbmi(at, &first_u8x64, &others_u8x64);
                }
                groups_u8x64[2 + i] = t5_group_avx512vbmi(first_u8x64, others_u8x64, group % 5);
            }
            lut_store_codes_avx512vnni(to + LUT_CODES_AT, groups_u8x64);
        }
    _mm256_zeroupper();
}

BITNET_TARGET_END
#endif

#endif
