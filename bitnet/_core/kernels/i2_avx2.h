/* i2 on AVX2. Layout: packings/i2.pyx. Contract: kernel.h.
 *
 *   vpand       picks a group's 2-bit fields, two groups of a tile where they lie: as 1 x code and as 4 x code
 *   vpsrlw      brings the other two groups to the same places
 *   vpmaddubsw  u8 codes x i8 inputs, pairs summed to i16
 *   vpmaddwd    i16 pairs summed to i32
 *
 * A code is 0..2 and x is -128..127: a vpmaddubsw lane is -512..508, and a chunk of 16 tiles adds 64 of them:
 * -32768..32512, which fits i16. Chunks are widened to i32. One token keeps 4 x codes where they lie, apart: two groups of 8
 * tiles add 16 times 4 * -512 at most. */
#ifndef BITNET_I2_AVX2_H
#define BITNET_I2_AVX2_H

#include "kernel.h"
#include "lut_kernel.h"

#if BITNET_X86
BITNET_TARGET("avx2")

enum { I2_AVX2_CHUNK_TILES = BITNET_INT16_GROUPS / 4, I2_AVX2_TOKENS = 4 };

BITNET_INLINE __m256i i2_four_inputs_avx2(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
}

/* Adds the products of the codes at `field` in each byte. */
BITNET_INLINE void i2_add_avx2(__m256i *sum_i16x16, __m256i packed_u8x32, __m256i field_u8x32, __m256i x_i8x32) {
    *sum_i16x16 = _mm256_add_epi16(*sum_i16x16,
                                   _mm256_maddubs_epi16(_mm256_and_si256(packed_u8x32, field_u8x32), x_i8x32));
    BITNET_KEEP_SUM(*sum_i16x16);
}

BITNET_INLINE void i2_widen_avx2(__m256i *sum_i32x8, __m256i one_i16x16, __m256i four_i16x16) {
    const __m256i ones_i16x16 = _mm256_set1_epi16(1);
    const __m256i four_i32x8 = _mm256_srai_epi32(_mm256_madd_epi16(four_i16x16, ones_i16x16), 2);
    *sum_i32x8 = _mm256_add_epi32(*sum_i32x8, _mm256_add_epi32(_mm256_madd_epi16(one_i16x16, ones_i16x16), four_i32x8));
}

BITNET_INLINE void i2_one_token_avx2(const uint8_t *w, const int8_t *x, int32_t *sums, ptrdiff_t tiles) {
    const __m256i ones_u8x32 = _mm256_set1_epi8(0x03), fours_u8x32 = _mm256_set1_epi8(0x0c);
    __m256i low_i32x8 = _mm256_setzero_si256(), high_i32x8 = low_i32x8;
    for (ptrdiff_t start = 0; start < tiles; start += I2_AVX2_CHUNK_TILES / 2) {
        const ptrdiff_t end = start + I2_AVX2_CHUNK_TILES / 2 < tiles ? start + I2_AVX2_CHUNK_TILES / 2 : tiles;
        __m256i low_one_i16x16 = _mm256_setzero_si256(), low_four_i16x16 = low_one_i16x16;
        __m256i high_one_i16x16 = low_one_i16x16, high_four_i16x16 = low_one_i16x16;
        for (ptrdiff_t tile = start; tile < end; tile++) {
            const uint8_t *at = w + tile * BITNET_TILE_BYTES;
            BITNET_PREFETCH(at + BITNET_PREFETCH_BYTES);
            __m256i low_u8x32 = _mm256_load_si256((const __m256i *)at);
            __m256i high_u8x32 = _mm256_load_si256((const __m256i *)(at + 32));
            for (int half = 0; half < 2; half++) {
                const __m256i x_i8x32 = i2_four_inputs_avx2(x + tile * 16 + 8 * half);
                const __m256i next_i8x32 = i2_four_inputs_avx2(x + tile * 16 + 8 * half + 4);
                i2_add_avx2(&low_one_i16x16, low_u8x32, ones_u8x32, x_i8x32);
                i2_add_avx2(&high_one_i16x16, high_u8x32, ones_u8x32, x_i8x32);
                i2_add_avx2(&low_four_i16x16, low_u8x32, fours_u8x32, next_i8x32);
                i2_add_avx2(&high_four_i16x16, high_u8x32, fours_u8x32, next_i8x32);
                low_u8x32 = _mm256_srli_epi16(low_u8x32, 4);
                high_u8x32 = _mm256_srli_epi16(high_u8x32, 4);
            }
        }
        i2_widen_avx2(&low_i32x8, low_one_i16x16, low_four_i16x16);
        i2_widen_avx2(&high_i32x8, high_one_i16x16, high_four_i16x16);
    }
    _mm256_storeu_si256((__m256i *)sums, low_i32x8);
    _mm256_storeu_si256((__m256i *)(sums + 8), high_i32x8);
}

/* `tokens` is a constant where this is inlined, so the loops over it unroll and the sums stay in registers. */
BITNET_INLINE void i2_tokens_avx2(const uint8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums,
                                       ptrdiff_t tiles, const int tokens) {
    const __m256i field_u8x32 = _mm256_set1_epi8(0x03), zero_i16x16 = _mm256_setzero_si256();
    __m256i low_i32x8[I2_AVX2_TOKENS], high_i32x8[I2_AVX2_TOKENS];
    for (int t = 0; t < tokens; t++) low_i32x8[t] = high_i32x8[t] = _mm256_setzero_si256();

    for (ptrdiff_t start = 0; start < tiles; start += I2_AVX2_CHUNK_TILES) {
        const ptrdiff_t end = start + I2_AVX2_CHUNK_TILES < tiles ? start + I2_AVX2_CHUNK_TILES : tiles;
        __m256i low_i16x16[I2_AVX2_TOKENS], high_i16x16[I2_AVX2_TOKENS];
        for (int t = 0; t < tokens; t++) low_i16x16[t] = high_i16x16[t] = _mm256_setzero_si256();

        for (ptrdiff_t tile = start; tile < end; tile++) {
            const uint8_t *at = w + tile * BITNET_TILE_BYTES;
            BITNET_PREFETCH(at + BITNET_PREFETCH_BYTES);
            __m256i low_u8x32 = _mm256_load_si256((const __m256i *)at);
            __m256i high_u8x32 = _mm256_load_si256((const __m256i *)(at + 32));
            for (int g = 0; g < 4; g++) {
                const __m256i low = _mm256_and_si256(low_u8x32, field_u8x32);
                const __m256i high = _mm256_and_si256(high_u8x32, field_u8x32);
                for (int t = 0; t < tokens; t++) {
                    const __m256i x_i8x32 = i2_four_inputs_avx2(x + t * x_stride + tile * 16 + 4 * g);
                    low_i16x16[t] = _mm256_add_epi16(low_i16x16[t], _mm256_maddubs_epi16(low, x_i8x32));
                    BITNET_KEEP_SUM(low_i16x16[t]);
                    high_i16x16[t] = _mm256_add_epi16(high_i16x16[t], _mm256_maddubs_epi16(high, x_i8x32));
                    BITNET_KEEP_SUM(high_i16x16[t]);
                }
                low_u8x32 = _mm256_srli_epi16(low_u8x32, 2);
                high_u8x32 = _mm256_srli_epi16(high_u8x32, 2);
            }
        }
        for (int t = 0; t < tokens; t++) {
            i2_widen_avx2(&low_i32x8[t], low_i16x16[t], zero_i16x16);
            i2_widen_avx2(&high_i32x8[t], high_i16x16[t], zero_i16x16);
        }
    }
    for (int t = 0; t < tokens; t++) {
        _mm256_storeu_si256((__m256i *)(sums + 16 * t), low_i32x8[t]);
        _mm256_storeu_si256((__m256i *)(sums + 16 * t + 8), high_i32x8[t]);
    }
}

BITNET_KERNEL void i2_panel_avx2(const uint8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums,
                                 ptrdiff_t tiles, ptrdiff_t tokens) {
    BITNET_ASSERT_PANEL(w, tiles, tokens);
    for (; tokens >= 4; tokens -= 4, x += 4 * x_stride, sums += 64) i2_tokens_avx2(w, x, x_stride, sums, tiles, 4);
    switch (tokens) {
    case 3: i2_tokens_avx2(w, x, x_stride, sums, tiles, 3); break;
    case 2: i2_tokens_avx2(w, x, x_stride, sums, tiles, 2); break;
    case 1: i2_one_token_avx2(w, x, sums, tiles); break;
    default: break;
    }
    _mm256_zeroupper();
}

/* The places of 32 sums as numbers 0 to 80, of bytes of four codes: what the two codes of each nibble give. A 3, which is no
 * code, counts as 2. */
BITNET_INLINE __m256i i2_places_avx2(__m256i packed_u8x32) {
    const __m256i nibble_u8x32 = _mm256_set1_epi8(0x0f);
    const __m256i first_u8x32 = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 27, 54, 54, 9, 36, 63, 63, 18, 45, 72, 72, 18, 45, 72, 72));
    const __m256i last_u8x32 = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 3, 6, 6, 1, 4, 7, 7, 2, 5, 8, 8, 2, 5, 8, 8));
    const __m256i low_u8x32 = _mm256_and_si256(packed_u8x32, nibble_u8x32);
    const __m256i high_u8x32 = _mm256_and_si256(_mm256_srli_epi16(packed_u8x32, 4), nibble_u8x32);
    return _mm256_add_epi8(_mm256_shuffle_epi8(first_u8x32, low_u8x32), _mm256_shuffle_epi8(last_u8x32, high_u8x32));
}

BITNET_KERNEL void i2_index_avx2(const uint8_t *w, ptrdiff_t panel_bytes, ptrdiff_t panels, ptrdiff_t tiles, ptrdiff_t pass,
                                 ptrdiff_t passes, int shift, uint8_t *indices) {
    BITNET_ASSERT_INDEX(w, panel_bytes, indices);
    BITNET_ASSERT(shift == 5);
    (void)shift;
    const ptrdiff_t first = 2 * pass, last = 2 * (pass + passes) < tiles ? 2 * (pass + passes) : tiles;
    for (ptrdiff_t panel = 0; panel < panels; panel++, w += panel_bytes, indices += LUT_CODES_AT)
        for (ptrdiff_t tile = first; tile < last; tile++) {
            uint8_t *to = indices + (tile - first) / 2 * panels * LUT_CODES_AT + tile % 2 * 128;
            BITNET_PREFETCH(w + LUT_PANELS_AHEAD * panel_bytes + tile * BITNET_TILE_BYTES);
            for (int half = 0; half < 2; half++, to += 64) {
                const __m256i places_u8x32 =
                    i2_places_avx2(_mm256_load_si256((const __m256i *)(w + tile * BITNET_TILE_BYTES + 32 * half)));
                const __m256i low_u16x16 = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(places_u8x32));
                const __m256i high_u16x16 = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(places_u8x32, 1));
                _mm256_store_si256((__m256i *)to, _mm256_slli_epi16(low_u16x16, 5));
                _mm256_store_si256((__m256i *)(to + 32), _mm256_slli_epi16(high_u16x16, 5));
            }
        }
    _mm256_zeroupper();
}

BITNET_TARGET_END
#endif

#endif
