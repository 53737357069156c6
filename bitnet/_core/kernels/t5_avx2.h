/* t5 on AVX2. Layout: packings/t5.pyx. Contract: kernel.h.
 *
 *   vpcmpgtb    against +42 and -42 gives a byte's next digit
 *   vpaddb      triples the byte: the digit leaves it on top
 *   vpmaddubsw  u8 codes x i8 inputs, pairs summed to i16
 *   vpmaddwd    i16 pairs summed to i32
 *
 * A chunk of 12 tiles adds 60 products of pairs to an i16 lane, which kernel.h shows to fit. */
#ifndef BITNET_T5_AVX2_H
#define BITNET_T5_AVX2_H

#include "kernel.h"
#include "lut_kernel.h"

#if BITNET_X86
BITNET_TARGET("avx2")

enum { T5_AVX2_CHUNK_TILES = BITNET_INT16_GROUPS / 5, T5_AVX2_TOKENS = 4 };

/* `tokens` is a constant where this is inlined, so the loops over it unroll and the sums stay in registers. */
BITNET_INLINE void t5_tokens_avx2(const uint8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums,
                                  ptrdiff_t tiles, const int tokens) {
    const __m256i ones_i16x16 = _mm256_set1_epi16(1), one_i8x32 = _mm256_set1_epi8(1);
    const __m256i limit_i8x32 = _mm256_set1_epi8(42), lower_i8x32 = _mm256_set1_epi8(-42);
    __m256i sums_i32x8[2 * T5_AVX2_TOKENS];
    for (int t = 0; t < 2 * tokens; t++) sums_i32x8[t] = _mm256_setzero_si256();

    for (ptrdiff_t start = 0; start < tiles; start += T5_AVX2_CHUNK_TILES) {
        const ptrdiff_t end = start + T5_AVX2_CHUNK_TILES < tiles ? start + T5_AVX2_CHUNK_TILES : tiles;
        __m256i low_i16x16[T5_AVX2_TOKENS], high_i16x16[T5_AVX2_TOKENS];
        for (int t = 0; t < tokens; t++) low_i16x16[t] = high_i16x16[t] = _mm256_setzero_si256();

        for (ptrdiff_t tile = start; tile < end; tile++) {
            const uint8_t *at = w + tile * BITNET_TILE_BYTES;
            BITNET_PREFETCH(at + BITNET_PREFETCH_BYTES);
            __m256i low_i8x32 = _mm256_load_si256((const __m256i *)at);
            __m256i high_i8x32 = _mm256_load_si256((const __m256i *)(at + 32));
            for (int g = 0; g < 5; g++) {
                const __m256i low_u8x32 = _mm256_sub_epi8(
                    _mm256_add_epi8(one_i8x32, _mm256_cmpgt_epi8(lower_i8x32, low_i8x32)),
                    _mm256_cmpgt_epi8(low_i8x32, limit_i8x32));
                const __m256i high_u8x32 = _mm256_sub_epi8(
                    _mm256_add_epi8(one_i8x32, _mm256_cmpgt_epi8(lower_i8x32, high_i8x32)),
                    _mm256_cmpgt_epi8(high_i8x32, limit_i8x32));
                low_i8x32 = _mm256_add_epi8(_mm256_add_epi8(low_i8x32, low_i8x32), low_i8x32);
                high_i8x32 = _mm256_add_epi8(_mm256_add_epi8(high_i8x32, high_i8x32), high_i8x32);
                for (int t = 0; t < tokens; t++) {
                    int32_t four;
                    memcpy(&four, x + t * x_stride + tile * 20 + 4 * g, 4);
                    const __m256i x_i8x32 = _mm256_set1_epi32(four);
                    low_i16x16[t] = _mm256_add_epi16(low_i16x16[t], _mm256_maddubs_epi16(low_u8x32, x_i8x32));
                    BITNET_KEEP_SUM(low_i16x16[t]);
                    high_i16x16[t] = _mm256_add_epi16(high_i16x16[t], _mm256_maddubs_epi16(high_u8x32, x_i8x32));
                    BITNET_KEEP_SUM(high_i16x16[t]);
                }
            }
        }
        for (int t = 0; t < tokens; t++) {
            sums_i32x8[2 * t] = _mm256_add_epi32(sums_i32x8[2 * t], _mm256_madd_epi16(low_i16x16[t], ones_i16x16));
            sums_i32x8[2 * t + 1] =
                _mm256_add_epi32(sums_i32x8[2 * t + 1], _mm256_madd_epi16(high_i16x16[t], ones_i16x16));
        }
    }
    for (int t = 0; t < 2 * tokens; t++) _mm256_storeu_si256((__m256i *)(sums + 8 * t), sums_i32x8[t]);
}

BITNET_KERNEL void t5_panel_avx2(const uint8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums,
                                 ptrdiff_t tiles, ptrdiff_t tokens) {
    BITNET_ASSERT_PANEL(w, tiles, tokens);
    for (; tokens >= 4; tokens -= 4, x += 4 * x_stride, sums += 64) t5_tokens_avx2(w, x, x_stride, sums, tiles, 4);
    switch (tokens) {
    case 3: t5_tokens_avx2(w, x, x_stride, sums, tiles, 3); break;
    case 2: t5_tokens_avx2(w, x, x_stride, sums, tiles, 2); break;
    case 1: t5_tokens_avx2(w, x, x_stride, sums, tiles, 1); break;
    default: break;
    }
    _mm256_zeroupper();
}

/* Of 16 bytes s: the places of the sums of their first four digits, and the code of the fifth. packings/t5.pyx has
 *
 *     81 s = 256 (27 w0 + 9 w1 + 3 w2 + w3) + s',   s' an int8;   w4 = (3 s' + 128) >> 8
 *
 * so 81 s + 128 + 256 * 40, which is positive, has the place in its upper byte and s' + 128 in the lower one. */
BITNET_INLINE void t5_places_avx2(const uint8_t *w, uint8_t *places, __m256i *fifth_u16x16) {
    const __m256i bytes_i16x16 = _mm256_cvtepi8_epi16(_mm_load_si128((const __m128i *)w));
    const __m256i both_u16x16 = _mm256_add_epi16(_mm256_mullo_epi16(bytes_i16x16, _mm256_set1_epi16(81)),
                                                 _mm256_set1_epi16(128 + 256 * 40));
    _mm256_store_si256((__m256i *)places, _mm256_slli_epi16(_mm256_srli_epi16(both_u16x16, 8), 5));
    *fifth_u16x16 = _mm256_mulhi_epu16(_mm256_slli_epi16(both_u16x16, 8), _mm256_set1_epi16(3));
}

BITNET_KERNEL void t5_index_avx2(const uint8_t *w, ptrdiff_t panel_bytes, ptrdiff_t panels, ptrdiff_t tiles, ptrdiff_t pass,
                                 ptrdiff_t passes, int shift, uint8_t *indices) {
    BITNET_ASSERT_INDEX(w, panel_bytes, indices);
    BITNET_ASSERT(shift == 5);
    (void)shift;
    const __m256i powers_i16x16 = _mm256_set1_epi64x(0x000100030009001b); /* 27, 9, 3, 1 */
    const ptrdiff_t first = 2 * pass, last = 2 * (pass + passes) < tiles ? 2 * (pass + passes) : tiles;
    for (ptrdiff_t panel = 0; panel < panels; panel++, w += panel_bytes, indices += LUT_FIFTH_PASS_BYTES)
        for (ptrdiff_t tile = first; tile < last; tile++) {
            uint8_t *start = indices + (tile - first) / 2 * panels * LUT_FIFTH_PASS_BYTES;
            uint8_t *to = start + tile % 2 * 128, *fifth = start + LUT_CODES_AT + tile % 2 * 32;
            const uint8_t *at = w + tile * BITNET_TILE_BYTES;
            BITNET_PREFETCH(at + LUT_PANELS_AHEAD * panel_bytes);
            __m256i sums_i32x8[4];
            for (int i = 0; i < 4; i++) {
                __m256i fifth_u16x16;
                t5_places_avx2(at + 16 * i, to + 32 * i, &fifth_u16x16);
                sums_i32x8[i] = _mm256_madd_epi16(fifth_u16x16, powers_i16x16);
            }
            /* Rows 0, 1, 4, 5, 8, 9, 12, 13 in the lower half; the others in the upper one. */
            const __m256i rows_i16x16 = _mm256_packs_epi32(_mm256_hadd_epi32(sums_i32x8[0], sums_i32x8[1]),
                                                           _mm256_hadd_epi32(sums_i32x8[2], sums_i32x8[3]));
            const __m128i even_i16x8 = _mm_slli_epi16(_mm256_castsi256_si128(rows_i16x16), 5);
            const __m128i odd_i16x8 = _mm_slli_epi16(_mm256_extracti128_si256(rows_i16x16, 1), 5);
            _mm_store_si128((__m128i *)fifth, _mm_unpacklo_epi32(even_i16x8, odd_i16x8));
            _mm_store_si128((__m128i *)(fifth + 16), _mm_unpackhi_epi32(even_i16x8, odd_i16x8));
        }
    _mm256_zeroupper();
}

BITNET_TARGET_END
#endif

#endif
