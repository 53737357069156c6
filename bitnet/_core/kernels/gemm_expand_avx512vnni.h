/* Expanded weights for gemm_avx512vnni.h, which each packing makes of its own tiles.
 *
 * Of a step, for panels p = 0 to 3: codes of group 0 at 64 p, those of group 1 at 256 + 64 p. From 512 on the indices of
 * triples, c0 + 3 c1 + 9 c2, two in a word, the second one in its upper byte. Words of two panels alternate, so that the
 * halves of an i32 lane are a row of each: at 512 and 576 the triples 0 and 1 of panels 0 and 1, and of 2 and 3; at 640 and
 * 704 the triples 2 and 3. */
#ifndef BITNET_GEMM_EXPAND_AVX512VNNI_H
#define BITNET_GEMM_EXPAND_AVX512VNNI_H

#include "gemm_kernel.h"

#if BITNET_X86
BITNET_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")

/* Byte 4 r + j: the index of row r's triple j. */
BITNET_INLINE __m512i gemm_triples_avx512vnni(__m512i c0_u8x64, __m512i c1_u8x64, __m512i c2_u8x64) {
    const __m512i thrice_u8x64 = _mm512_add_epi8(c1_u8x64, _mm512_add_epi8(c1_u8x64, c1_u8x64));
    /* Codes are 2 at most: shifted by 3 they stay in their bytes. */
    const __m512i nine_u8x64 = _mm512_add_epi8(c2_u8x64, _mm512_slli_epi16(c2_u8x64, 3));
    return _mm512_add_epi8(c0_u8x64, _mm512_add_epi8(thrice_u8x64, nine_u8x64));
}

/* Stores a step of the panels 2 * pair (a) and 2 * pair + 1 (b): the codes of their five groups. */
BITNET_INLINE void gemm_store_avx512vnni(uint8_t *weights, int pair, const __m512i a_u8x64[GEMM_GROUPS],
                                         const __m512i b_u8x64[GEMM_GROUPS]) {
    const uint32_t odd = 0xaaaaaaaa; /* words of 32 */
    for (int group = 0; group < 2; group++) {
        _mm512_store_si512(weights + 256 * group + 128 * pair, a_u8x64[group]);
        _mm512_store_si512(weights + 256 * group + 128 * pair + 64, b_u8x64[group]);
    }
    const __m512i a = gemm_triples_avx512vnni(a_u8x64[2], a_u8x64[3], a_u8x64[4]);
    const __m512i b = gemm_triples_avx512vnni(b_u8x64[2], b_u8x64[3], b_u8x64[4]);
    _mm512_store_si512(weights + 512 + 64 * pair, _mm512_mask_blend_epi16(odd, a, _mm512_slli_epi32(b, 16)));
    _mm512_store_si512(weights + 640 + 64 * pair, _mm512_mask_blend_epi16(odd, _mm512_srli_epi32(a, 16), b));
}

BITNET_TARGET_END
#endif

#endif
