/* Many tokens by look-up on AVX2. Layout and contract: lut_kernel.h.
 *
 *   vpaddw    the sums of 16 tokens, one operand from a table; two loads of 256 bits a cycle are the limit (Zen 4), or
 *             128 multiply-accumulates: twice what vpmaddubsw and vpaddw do on its four vector pipes
 *   movzx, shr   take four indices, read at once, apart: else loads of indices would take the place of loads of sums
 *
 * Related: T-MAC (arXiv:2407.00088) and bitnet.cpp look sums up by byte shuffles, which take one token at a time. */
#ifndef BITNET_LUT_AVX2_H
#define BITNET_LUT_AVX2_H

#include "lut_kernel.h"

#if BITNET_X86
BITNET_TARGET("avx2")

enum { LUT_SUM_BYTES = 2 * LUT_SQUARE, LUT_TABLE_BYTES = LUT_SUMS * LUT_SUM_BYTES };

BITNET_KERNEL ptrdiff_t lut_largest_avx2(const int8_t *x, ptrdiff_t x_stride, ptrdiff_t tokens, ptrdiff_t cols) {
    BITNET_ASSERT(cols > 0 && cols <= LUT_PART_COLS && cols % 4 == 0);
    ptrdiff_t largest = 0;
    for (ptrdiff_t t = 0; t < tokens; t++, x += x_stride) {
        __m256i sums_u64x4 = _mm256_setzero_si256();
        ptrdiff_t c = 0;
        for (; c + 32 <= cols; c += 32) {
            const __m256i magnitude_u8x32 = _mm256_abs_epi8(_mm256_loadu_si256((const __m256i *)(x + c)));
            sums_u64x4 = _mm256_add_epi64(sums_u64x4, _mm256_sad_epu8(magnitude_u8x32, _mm256_setzero_si256()));
        }
        for (; c < cols; c += 4) {
            int32_t four;
            memcpy(&four, x + c, 4);
            const __m256i magnitude_u8x32 = _mm256_abs_epi8(_mm256_zextsi128_si256(_mm_cvtsi32_si128(four)));
            sums_u64x4 = _mm256_add_epi64(sums_u64x4, _mm256_sad_epu8(magnitude_u8x32, _mm256_setzero_si256()));
        }
        const __m128i sums_u64x2 =
            _mm_add_epi64(_mm256_castsi256_si128(sums_u64x4), _mm256_extracti128_si256(sums_u64x4, 1));
        const ptrdiff_t sum = _mm_cvtsi128_si32(sums_u64x2) + _mm_extract_epi32(sums_u64x2, 2);
        largest = sum > largest ? sum : largest;
    }
    _mm256_zeroupper();
    return largest;
}

/* v[c] = the int16 inputs of 16 tokens, for columns c = 0 to 15. Four times: what is 8 apart becomes neighbours. */
BITNET_INLINE void lut_columns_avx2(const int8_t *x, ptrdiff_t x_stride, ptrdiff_t tokens, __m256i v_i16x16[16]) {
    __m128i a_i8x16[16], b_i8x16[16];
    for (int t = 0; t < LUT_SQUARE; t++)
        a_i8x16[t] = t < tokens ? _mm_loadu_si128((const __m128i *)(x + t * x_stride)) : _mm_setzero_si128();
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < 8; i++) {
            b_i8x16[2 * i] = _mm_unpacklo_epi8(a_i8x16[i], a_i8x16[i + 8]);
            b_i8x16[2 * i + 1] = _mm_unpackhi_epi8(a_i8x16[i], a_i8x16[i + 8]);
        }
        for (int i = 0; i < 16; i++) a_i8x16[i] = b_i8x16[i];
    }
    for (int c = 0; c < 16; c++) v_i16x16[c] = _mm256_cvtepi8_epi16(a_i8x16[c]);
}

/* The same of four columns. */
BITNET_INLINE void lut_four_columns_avx2(const int8_t *x, ptrdiff_t x_stride, ptrdiff_t tokens, __m256i v_i16x16[4]) {
    const __m128i by_column = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    int32_t fours[LUT_SQUARE] = {0};
    __m128i a_i8x16[4];
    for (int t = 0; t < tokens; t++) memcpy(&fours[t], x + t * x_stride, 4);
    for (int i = 0; i < 4; i++)
        a_i8x16[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(fours + 4 * i)), by_column);
    const __m128i low01 = _mm_unpacklo_epi32(a_i8x16[0], a_i8x16[1]), high01 = _mm_unpackhi_epi32(a_i8x16[0], a_i8x16[1]);
    const __m128i low23 = _mm_unpacklo_epi32(a_i8x16[2], a_i8x16[3]), high23 = _mm_unpackhi_epi32(a_i8x16[2], a_i8x16[3]);
    v_i16x16[0] = _mm256_cvtepi8_epi16(_mm_unpacklo_epi64(low01, low23));
    v_i16x16[1] = _mm256_cvtepi8_epi16(_mm_unpackhi_epi64(low01, low23));
    v_i16x16[2] = _mm256_cvtepi8_epi16(_mm_unpacklo_epi64(high01, high23));
    v_i16x16[3] = _mm256_cvtepi8_epi16(_mm_unpackhi_epi64(high01, high23));
}

/* The 9 sums of two weights and two inputs. */
BITNET_INLINE void lut_nine_avx2(__m256i first_i16x16, __m256i second_i16x16, __m256i nine_i16x16[9]) {
    const __m256i zero_i16x16 = _mm256_setzero_si256();
    nine_i16x16[8] = _mm256_add_epi16(first_i16x16, second_i16x16);
    nine_i16x16[7] = first_i16x16;
    nine_i16x16[6] = _mm256_sub_epi16(first_i16x16, second_i16x16);
    nine_i16x16[5] = second_i16x16;
    nine_i16x16[4] = zero_i16x16;
    for (int i = 0; i < 4; i++) nine_i16x16[i] = _mm256_sub_epi16(zero_i16x16, nine_i16x16[8 - i]);
}

BITNET_INLINE void lut_table_avx2(__m256i v0_i16x16, __m256i v1_i16x16, __m256i v2_i16x16, __m256i v3_i16x16,
                                  uint8_t *table) {
    __m256i a_i16x16[9], b_i16x16[9];
    lut_nine_avx2(v0_i16x16, v1_i16x16, a_i16x16);
    lut_nine_avx2(v2_i16x16, v3_i16x16, b_i16x16);
    for (int i = 0; i < 9; i++)
        for (int j = 0; j < 9; j++)
            _mm256_store_si256((__m256i *)(table + LUT_SUM_BYTES * (9 * i + j)),
                               _mm256_add_epi16(a_i16x16[i], b_i16x16[j]));
}

BITNET_KERNEL void lut_tables_avx2(const int8_t *x, ptrdiff_t x_stride, ptrdiff_t tokens, ptrdiff_t tiles, ptrdiff_t pass,
                                   ptrdiff_t tile_cols, uint8_t *tables) {
    BITNET_ASSERT((uintptr_t)tables % LUT_SUM_BYTES == 0 && tokens > 0 && tokens <= LUT_SQUARE);
    BITNET_ASSERT(2 * pass < tiles && (tile_cols == 16 || tile_cols == 20));
    x += 2 * pass * tile_cols;
    for (ptrdiff_t tile = 2 * pass; tile < tiles && tile < 2 * pass + 2; tile++, x += tile_cols) {
        __m256i v_i16x16[16];
        lut_columns_avx2(x, x_stride, tokens, v_i16x16);
        for (int c = 0; c < 4; c++, tables += LUT_TABLE_BYTES)
            lut_table_avx2(v_i16x16[c], v_i16x16[4 + c], v_i16x16[8 + c], v_i16x16[12 + c], tables);
        if (tile_cols == 20) {
            lut_four_columns_avx2(x + 16, x_stride, tokens, v_i16x16);
            lut_table_avx2(v_i16x16[0], v_i16x16[1], v_i16x16[2], v_i16x16[3], tables);
            tables += LUT_TABLE_BYTES;
        }
    }
    _mm256_zeroupper();
}

BITNET_INLINE __m256i lut_add_avx2(__m256i sum_i16x16, const uint8_t *table, uint64_t place) {
    return _mm256_add_epi16(sum_i16x16, _mm256_load_si256((const __m256i *)(table + place)));
}

/* Adds of each of `tiles` tiles four sums, or five, for two rows; all but `panel`, `tables` and `row` are constants where this
 * is inlined. */
BITNET_INLINE void lut_two_rows_avx2(const uint8_t *panel, const uint8_t *tables, int row, const int tiles, const int has_fifth,
                                     __m256i *one_i16x16, __m256i *two_i16x16) {
    __m256i one = *one_i16x16, two = *two_i16x16;
    for (int tile = 0; tile < tiles; tile++) {
        const uint8_t *at = panel + 128 * tile, *table = tables + tile * (has_fifth ? 5 : 4) * LUT_TABLE_BYTES;
        uint64_t first, second;
        memcpy(&first, at + 8 * row, 8);
        memcpy(&second, at + 8 * row + 8, 8);
        one = lut_add_avx2(one, table, first & 0xffff);
        two = lut_add_avx2(two, table, second & 0xffff);
        one = lut_add_avx2(one, table + LUT_TABLE_BYTES, first >> 16 & 0xffff);
        two = lut_add_avx2(two, table + LUT_TABLE_BYTES, second >> 16 & 0xffff);
        one = lut_add_avx2(one, table + 2 * LUT_TABLE_BYTES, first >> 32 & 0xffff);
        two = lut_add_avx2(two, table + 2 * LUT_TABLE_BYTES, second >> 32 & 0xffff);
        one = lut_add_avx2(one, table + 3 * LUT_TABLE_BYTES, first >> 48);
        two = lut_add_avx2(two, table + 3 * LUT_TABLE_BYTES, second >> 48);
        if (has_fifth) {
            uint32_t both;
            memcpy(&both, panel + LUT_CODES_AT + 32 * tile + 2 * row, 4);
            one = lut_add_avx2(one, table + 4 * LUT_TABLE_BYTES, both & 0xffff);
            two = lut_add_avx2(two, table + 4 * LUT_TABLE_BYTES, both >> 16);
        }
    }
    *one_i16x16 = one, *two_i16x16 = two;
}

BITNET_INLINE void lut_widen_avx2(__m256i sum_i16x16, int32_t *sums, int is_new) {
    __m256i low_i32x8 = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(sum_i16x16));
    __m256i high_i32x8 = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(sum_i16x16, 1));
    if (!is_new) {
        low_i32x8 = _mm256_add_epi32(low_i32x8, _mm256_loadu_si256((const __m256i *)sums));
        high_i32x8 = _mm256_add_epi32(high_i32x8, _mm256_loadu_si256((const __m256i *)(sums + 8)));
    }
    _mm256_storeu_si256((__m256i *)sums, low_i32x8);
    _mm256_storeu_si256((__m256i *)(sums + 8), high_i32x8);
}

BITNET_INLINE void lut_rows_avx2(const lut_run *run, const int tiles, const int has_fifth) {
    const lut_run r = *run; /* whose members no store can change */
    const uint8_t *at_panel = r.indices;
    int16_t *at = r.short_sums;
    for (ptrdiff_t panel = 0; panel < r.panels; panel++, at_panel += has_fifth ? LUT_FIFTH_PASS_BYTES : LUT_CODES_AT) {
        for (ptrdiff_t i = 0; i < r.next_lines; i++) BITNET_PREFETCH_L2(r.next + panel * r.next_step + 64 * i);
        int32_t *sums = lut_panel_sums(&r.sums[0], panel);
        for (ptrdiff_t row = r.fetch_from; row < r.fetch_to; row++) BITNET_PREFETCH_L2(sums + row * r.sums[0].row_step);
        for (int row = 0; row < LUT_ROWS; row += 2, at += 2 * LUT_SQUARE, sums += 2 * r.sums[0].row_step) {
            __m256i one_i16x16 = _mm256_setzero_si256(), two_i16x16 = _mm256_setzero_si256();
            if (!r.is_first) {
                one_i16x16 = _mm256_load_si256((const __m256i *)at);
                two_i16x16 = _mm256_load_si256((const __m256i *)(at + LUT_SQUARE));
            }
            lut_two_rows_avx2(at_panel, r.tables, row, tiles, has_fifth, &one_i16x16, &two_i16x16);
            if (!r.is_last) {
                _mm256_store_si256((__m256i *)at, one_i16x16);
                _mm256_store_si256((__m256i *)(at + LUT_SQUARE), two_i16x16);
            } else {
                lut_widen_avx2(one_i16x16, sums, r.is_new);
                lut_widen_avx2(two_i16x16, sums + r.sums[0].row_step, r.is_new);
            }
        }
    }
}

BITNET_KERNEL void lut_look_up_avx2(const lut_run *run) {
    BITNET_ASSERT((uintptr_t)run->tables % LUT_SUM_BYTES == 0 && (uintptr_t)run->short_sums % 32 == 0);
    BITNET_ASSERT(run->tiles > 0 && run->tiles <= 2 && run->squares == 1);
    switch (2 * run->tiles + (run->tile_cols == 20)) {
    case 2: lut_rows_avx2(run, 1, 0); break;
    case 3: lut_rows_avx2(run, 1, 1); break;
    case 4: lut_rows_avx2(run, 2, 0); break;
    default: lut_rows_avx2(run, 2, 1); break;
    }
    _mm256_zeroupper();
}

/* to[8 columns][8 rows] of from[8 rows][8 columns], at distances of 16. */
BITNET_INLINE void lut_turn_avx2(const int32_t *from, int32_t *to, ptrdiff_t to_stride) {
    __m256i a[8], b[8];
    for (int i = 0; i < 8; i++) a[i] = _mm256_load_si256((const __m256i *)(from + 16 * i));
    for (int i = 0; i < 4; i++) {
        b[2 * i] = _mm256_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm256_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        a[4 * i] = _mm256_unpacklo_epi64(b[4 * i], b[4 * i + 2]);
        a[4 * i + 1] = _mm256_unpackhi_epi64(b[4 * i], b[4 * i + 2]);
        a[4 * i + 2] = _mm256_unpacklo_epi64(b[4 * i + 1], b[4 * i + 3]);
        a[4 * i + 3] = _mm256_unpackhi_epi64(b[4 * i + 1], b[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_si256((__m256i *)(to + i * to_stride), _mm256_permute2x128_si256(a[i], a[i + 4], 0x20));
        _mm256_storeu_si256((__m256i *)(to + (i + 4) * to_stride), _mm256_permute2x128_si256(a[i], a[i + 4], 0x31));
    }
}

BITNET_KERNEL void lut_finish_avx2(const int32_t *sums, ptrdiff_t row_step, void *y, ptrdiff_t y_stride, ptrdiff_t rows,
                                   ptrdiff_t tokens, const float *scales, ptrdiff_t scale_step, const float *factors) {
    BITNET_ALIGN64 int32_t by_row[LUT_ROWS * LUT_SQUARE], by_token[LUT_ROWS * LUT_SQUARE];
    const int is_whole = rows == LUT_ROWS && tokens == LUT_SQUARE;
    int32_t *to = is_whole ? (int32_t *)y : by_token;
    const ptrdiff_t to_stride = is_whole ? y_stride : LUT_ROWS;
    float token_factors[LUT_SQUARE] = {0};
    for (ptrdiff_t t = 0; t < tokens && scales != NULL; t++) token_factors[t] = factors[t];
    for (ptrdiff_t r = 0; r < rows; r++)
        for (int half = 0; half < LUT_SQUARE; half += 8) {
            __m256i sum_i32x8 = _mm256_loadu_si256((const __m256i *)(sums + r * row_step + half));
            if (scales != NULL) {
                const __m256 factor_f32x8 =
                    _mm256_mul_ps(_mm256_set1_ps(scales[r * scale_step]), _mm256_loadu_ps(token_factors + half));
                sum_i32x8 = _mm256_castps_si256(_mm256_mul_ps(_mm256_cvtepi32_ps(sum_i32x8), factor_f32x8));
            }
            _mm256_store_si256((__m256i *)(by_row + LUT_SQUARE * r + half), sum_i32x8);
        }
    for (ptrdiff_t r = rows; r < LUT_ROWS; r++) memset(by_row + LUT_SQUARE * r, 0, LUT_SQUARE * sizeof(int32_t));
    for (int r = 0; r < LUT_ROWS; r += 8)
        for (int t = 0; t < LUT_SQUARE; t += 8) lut_turn_avx2(by_row + LUT_SQUARE * r + t, to + t * to_stride + r, to_stride);
    if (!is_whole)
        for (ptrdiff_t t = 0; t < tokens; t++)
            memcpy((int32_t *)y + t * y_stride, by_token + LUT_ROWS * t, (size_t)rows * sizeof(int32_t));
    _mm256_zeroupper();
}

BITNET_TARGET_END
#endif

#endif
