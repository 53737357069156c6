/* What the packings' kernels for lut_avx512vnni.h share. Layout: lut_kernel.h. */
#ifndef BITNET_LUT_INDEX_AVX512VNNI_H
#define BITNET_LUT_INDEX_AVX512VNNI_H

#include "lut_kernel.h"

#if BITNET_X86
BITNET_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")

/* The dwords of each lane as a square of four of them. */
BITNET_INLINE void lut_turn_four_avx512vnni(const __m512i a_u32x16[4], __m512i turned_u32x16[4]) {
    const __m512i low01 = _mm512_unpacklo_epi32(a_u32x16[0], a_u32x16[1]);
    const __m512i high01 = _mm512_unpackhi_epi32(a_u32x16[0], a_u32x16[1]);
    const __m512i low23 = _mm512_unpacklo_epi32(a_u32x16[2], a_u32x16[3]);
    const __m512i high23 = _mm512_unpackhi_epi32(a_u32x16[2], a_u32x16[3]);
    turned_u32x16[0] = _mm512_unpacklo_epi64(low01, low23);
    turned_u32x16[1] = _mm512_unpackhi_epi64(low01, low23);
    turned_u32x16[2] = _mm512_unpacklo_epi64(high01, high23);
    turned_u32x16[3] = _mm512_unpackhi_epi64(high01, high23);
}

/* Stores the codes of four groups of 16 rows. */
BITNET_INLINE void lut_store_codes_avx512vnni(uint8_t *codes, const __m512i groups_u8x64[4]) {
    __m512i rows_u8x64[4];
    lut_turn_four_avx512vnni(groups_u8x64, rows_u8x64);
    for (int i = 0; i < 4; i++) _mm512_store_si512(codes + 64 * i, rows_u8x64[i]);
}

/* Stores the places of 64 sums whose numbers these are. */
BITNET_INLINE void lut_store_places_avx512vnni(uint8_t *places, int shift, __m512i sums_u8x64) {
    const __m512i low_u16x32 = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(sums_u8x64));
    const __m512i high_u16x32 = _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(sums_u8x64, 1));
    _mm512_store_si512(places, _mm512_slli_epi16(low_u16x32, shift));
    _mm512_store_si512(places + 64, _mm512_slli_epi16(high_u16x32, shift));
}

BITNET_TARGET_END
#endif

#endif
