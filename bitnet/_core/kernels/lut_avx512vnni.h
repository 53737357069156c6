/* Many tokens by look-up and dot product on AVX512-VNNI. Layout and contract: lut_kernel.h.
 *
 *   vpaddw     the sums of 32 tokens, one operand from a table: 128 multiply-accumulates a load
 *   vpdpbusd   u8 codes of a row, in all lanes x i8 inputs of 16 tokens, in registers for all rows
 *   vpackssdw  brings both to the same order: dot products are for the tokens 8 l + i (`even`) and 8 l + 4 + i (`odd`) of lane l
 *   movzx, shr take four places, read at once, apart
 *
 * On Zen 4, which loads 512 bits a cycle, look-up alone is bound by loads, and vpdpbusd, which is not, has its pipes for
 * itself: of a pass, 48 columns, 13.0 cycles a row and 32 tokens, or 118 multiply-accumulates a cycle, of 64 that
 * vpdpbusd has alone and 94 that look-up has alone.
 *
 * Related: T-MAC (arXiv:2407.00088) and bitnet.cpp look sums up by byte shuffles, which take one token at a time. */
#ifndef BITNET_LUT_AVX512VNNI_H
#define BITNET_LUT_AVX512VNNI_H

#include "lut_index_avx512vnni.h"

#if BITNET_X86
BITNET_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")

enum {
    LUT_MULTIPLIED_AT = 8 * LUT_SUMS * 64, /* behind the tables: inputs, even and odd, of each group, and what begins */
    LUT_PASS_GROUPS = 12                   /* of 4 columns, at most */
};

BITNET_KERNEL ptrdiff_t lut_largest_avx512vnni(const int8_t *x, ptrdiff_t x_stride, ptrdiff_t tokens, ptrdiff_t cols) {
    BITNET_ASSERT(cols > 0 && cols <= LUT_PART_COLS);
    const __m512i zero_u8x64 = _mm512_setzero_si512();
    ptrdiff_t largest = 0;
    for (ptrdiff_t t = 0; t < tokens; t++, x += x_stride) {
        __m512i sums_u64x8 = zero_u8x64;
        for (ptrdiff_t c = 0; c < cols; c += 64) {
            const __mmask64 there = cols - c < 64 ? ((uint64_t)1 << (cols - c)) - 1 : ~(uint64_t)0;
            const __m512i magnitude_u8x64 = _mm512_abs_epi8(_mm512_maskz_loadu_epi8(there, x + c));
            sums_u64x8 = _mm512_add_epi64(sums_u64x8, _mm512_sad_epu8(magnitude_u8x64, zero_u8x64));
        }
        const ptrdiff_t sum = _mm512_reduce_add_epi64(sums_u64x8);
        largest = sum > largest ? sum : largest;
    }
    _mm256_zeroupper();
    return largest;
}

/* inputs[g][0] has in lane l the columns 4 g to 4 g + 3 of tokens 8 l to 8 l + 3, inputs[g][1] of the four after them. Columns
 * are `cols` of x, and from 40 on `more` of more_x. */
BITNET_INLINE void lut_inputs_avx512vnni(const int8_t *x, ptrdiff_t cols, const int8_t *more_x, ptrdiff_t more,
                                         ptrdiff_t x_stride, ptrdiff_t tokens, __m512i inputs_i8x64[LUT_PASS_GROUPS][2]) {
    const __mmask64 there = ((uint64_t)1 << cols) - 1, more_there = (((uint64_t)1 << more) - 1) << 40;
    for (int i = 0; i < 8; i++) {
        __m512i token_i8x64[4];
        for (int l = 0; l < 4; l++) {
            const ptrdiff_t at = (8 * l + i) * x_stride;
            token_i8x64[l] = _mm512_setzero_si512();
            if (8 * l + i < tokens) token_i8x64[l] = _mm512_maskz_loadu_epi8(there, x + at);
            if (8 * l + i < tokens && more) token_i8x64[l] = _mm512_mask_loadu_epi8(token_i8x64[l], more_there, more_x - 40 + at);
        }
        const __m512i low01 = _mm512_shuffle_i32x4(token_i8x64[0], token_i8x64[1], 0x44);
        const __m512i low23 = _mm512_shuffle_i32x4(token_i8x64[2], token_i8x64[3], 0x44);
        const __m512i high01 = _mm512_shuffle_i32x4(token_i8x64[0], token_i8x64[1], 0xee);
        const __m512i high23 = _mm512_shuffle_i32x4(token_i8x64[2], token_i8x64[3], 0xee);
        /* For now at the place of group i % 4 those of 16 columns of the tokens 8 l + i. */
        inputs_i8x64[i % 4][i / 4] = _mm512_shuffle_i32x4(low01, low23, 0x88);
        inputs_i8x64[4 + i % 4][i / 4] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
        inputs_i8x64[8 + i % 4][i / 4] = _mm512_shuffle_i32x4(high01, high23, 0x88);
    }
    for (int g = 0; g < LUT_PASS_GROUPS; g += 4)
        for (int half = 0; half < 2; half++) {
            __m512i four_i8x64[4], turned_i8x64[4];
            for (int i = 0; i < 4; i++) four_i8x64[i] = inputs_i8x64[g + i][half];
            lut_turn_four_avx512vnni(four_i8x64, turned_i8x64);
            for (int i = 0; i < 4; i++) inputs_i8x64[g + i][half] = turned_i8x64[i];
        }
}

/* The int16 inputs of 32 tokens, of column c of a group. */
BITNET_INLINE __m512i lut_column_avx512vnni(const __m512i inputs_i8x64[2], const int c) {
    const __m512i even_i32x16 = _mm512_srai_epi32(_mm512_slli_epi32(inputs_i8x64[0], 24 - 8 * c), 24);
    const __m512i odd_i32x16 = _mm512_srai_epi32(_mm512_slli_epi32(inputs_i8x64[1], 24 - 8 * c), 24);
    return _mm512_packs_epi32(even_i32x16, odd_i32x16);
}

/* The 9 sums of two weights and two inputs. */
BITNET_INLINE void lut_nine_avx512vnni(__m512i first_i16x32, __m512i second_i16x32, __m512i nine_i16x32[9]) {
    const __m512i zero_i16x32 = _mm512_setzero_si512();
    nine_i16x32[8] = _mm512_add_epi16(first_i16x32, second_i16x32);
    nine_i16x32[7] = first_i16x32;
    nine_i16x32[6] = _mm512_sub_epi16(first_i16x32, second_i16x32);
    nine_i16x32[5] = second_i16x32;
    nine_i16x32[4] = zero_i16x32;
    for (int i = 0; i < 4; i++) nine_i16x32[i] = _mm512_sub_epi16(zero_i16x32, nine_i16x32[8 - i]);
}

/* The tables of a tile, whose first 16 columns these are. One square needs only half of each sum, in tables half as large. */
BITNET_INLINE void lut_tile_tables_avx512vnni(const __m512i inputs_i8x64[4][2], const int squares, uint8_t *tables) {
    for (int c = 0; c < 4; c++) {
        __m512i a_i16x32[9], b_i16x32[9];
        lut_nine_avx512vnni(lut_column_avx512vnni(inputs_i8x64[0], c), lut_column_avx512vnni(inputs_i8x64[1], c), a_i16x32);
        lut_nine_avx512vnni(lut_column_avx512vnni(inputs_i8x64[2], c), lut_column_avx512vnni(inputs_i8x64[3], c), b_i16x32);
        for (int i = 0; i < 9; i++)
            for (int j = 0; j < 9; j++, tables += 32 * squares) {
                const __m512i sum_i16x32 = _mm512_add_epi16(a_i16x32[i], b_i16x32[j]);
                if (squares == 2)
                    _mm512_store_si512(tables, sum_i16x32);
                else
                    _mm256_store_si256((__m256i *)tables, _mm512_castsi512_si256(sum_i16x32));
            }
    }
}

/* Inputs of the four groups that are multiplied, and what their sums begin with: less than the inputs' sums, as codes are more
 * than weights. */
BITNET_INLINE void lut_multiplied_avx512vnni(const __m512i inputs_i8x64[LUT_PASS_GROUPS][2], const int has_fifth, uint8_t *to) {
    static const int GROUPS[2][4] = {{8, 9, 10, 11}, {4, 9, 10, 11}};
    __m512i sums_i32x16[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    for (int g = 0; g < 4; g++)
        for (int half = 0; half < 2; half++, to += 64) {
            const __m512i group_i8x64 = inputs_i8x64[GROUPS[has_fifth][g]][half];
            _mm512_store_si512(to, group_i8x64);
            sums_i32x16[half] = _mm512_dpbusd_epi32(sums_i32x16[half], _mm512_set1_epi8(1), group_i8x64);
        }
    for (int half = 0; half < 2; half++)
        _mm512_store_si512(to + 64 * half, _mm512_sub_epi32(_mm512_setzero_si512(), sums_i32x16[half]));
}

/* `squares` is a constant where this is inlined. */
BITNET_INLINE void lut_pass_tables_avx512vnni(const __m512i inputs_i8x64[LUT_PASS_GROUPS][2], const int has_fifth,
                                              const int squares, uint8_t *tables) {
    lut_tile_tables_avx512vnni(inputs_i8x64, squares, tables);
    lut_tile_tables_avx512vnni(inputs_i8x64 + 4 + has_fifth, squares, tables + 4 * LUT_SUMS * 32 * squares);
    lut_multiplied_avx512vnni(inputs_i8x64, has_fifth, tables + LUT_MULTIPLIED_AT);
}

BITNET_INLINE ptrdiff_t lut_clip_avx512vnni(ptrdiff_t n, ptrdiff_t most) {
    return n < 0 ? 0 : n < most ? n : most;
}

BITNET_KERNEL void lut_tables_avx512vnni(const int8_t *x, ptrdiff_t x_stride, ptrdiff_t tokens, ptrdiff_t tiles,
                                         ptrdiff_t pass, ptrdiff_t tile_cols, uint8_t *tables) {
    BITNET_ASSERT((uintptr_t)tables % 64 == 0 && tokens > 0 && tokens <= 2 * LUT_SQUARE);
    BITNET_ASSERT(pass < 5 && (tile_cols == 16 ? 3 * pass < tiles : tile_cols == 20 && 2 * pass < tiles));
    const int has_fifth = tile_cols == 20;
    const ptrdiff_t first = (has_fifth ? 40 : 48) * pass;
    const ptrdiff_t cols = lut_clip_avx512vnni(tiles * tile_cols - first, has_fifth ? 40 : 48);
    const ptrdiff_t more = has_fifth ? lut_clip_avx512vnni(tiles * tile_cols - 200 - 8 * pass, 8) : 0;
    __m512i inputs_i8x64[LUT_PASS_GROUPS][2];
    lut_inputs_avx512vnni(x + first, cols, x + 200 + 8 * pass, more, x_stride, tokens, inputs_i8x64);
    if (tokens > LUT_SQUARE)
        lut_pass_tables_avx512vnni(inputs_i8x64, has_fifth, 2, tables);
    else
        lut_pass_tables_avx512vnni(inputs_i8x64, has_fifth, 1, tables);
    _mm256_zeroupper();
}

BITNET_INLINE __m512i lut_add_avx512vnni(__m512i sum_i16x32, const uint8_t *table, uint64_t place) {
    return _mm512_add_epi16(sum_i16x32, _mm512_load_si512(table + place));
}

/* Adds the eight sums of row 4 l + i, for 32 tokens. */
BITNET_INLINE __m512i lut_row_avx512vnni(__m512i sum_i16x32, const uint8_t *panel, const uint8_t *tables, ptrdiff_t l, const int i) {
    const ptrdiff_t step = LUT_SUMS * 64;
    uint64_t first, second;
    memcpy(&first, panel + 32 * l + 8 * i, 8);
    memcpy(&second, panel + 128 + 32 * l + 8 * i, 8);
    __m512i a = lut_add_avx512vnni(sum_i16x32, tables, first & 0xffff);
    __m512i b = _mm512_load_si512(tables + step + (first >> 16 & 0xffff));
    a = lut_add_avx512vnni(a, tables + 2 * step, first >> 32 & 0xffff);
    b = lut_add_avx512vnni(b, tables + 3 * step, first >> 48);
    a = lut_add_avx512vnni(a, tables + 4 * step, second & 0xffff);
    b = lut_add_avx512vnni(b, tables + 5 * step, second >> 16 & 0xffff);
    a = lut_add_avx512vnni(a, tables + 6 * step, second >> 32 & 0xffff);
    b = lut_add_avx512vnni(b, tables + 7 * step, second >> 48);
    return _mm512_add_epi16(a, b);
}

BITNET_INLINE __m256i lut_add_16_avx512vnni(__m256i sum_i16x16, const uint8_t *table, uint64_t place) {
    return _mm256_add_epi16(sum_i16x16, _mm256_load_si256((const __m256i *)(table + place)));
}

/* The same for 16 tokens. */
BITNET_INLINE __m256i lut_row_16_avx512vnni(__m256i sum_i16x16, const uint8_t *panel, const uint8_t *tables, ptrdiff_t l,
                                            const int i) {
    const ptrdiff_t step = LUT_SUMS * 32;
    uint64_t first, second;
    memcpy(&first, panel + 32 * l + 8 * i, 8);
    memcpy(&second, panel + 128 + 32 * l + 8 * i, 8);
    __m256i a = lut_add_16_avx512vnni(sum_i16x16, tables, first & 0xffff);
    __m256i b = _mm256_load_si256((const __m256i *)(tables + step + (first >> 16 & 0xffff)));
    a = lut_add_16_avx512vnni(a, tables + 2 * step, first >> 32 & 0xffff);
    b = lut_add_16_avx512vnni(b, tables + 3 * step, first >> 48);
    a = lut_add_16_avx512vnni(a, tables + 4 * step, second & 0xffff);
    b = lut_add_16_avx512vnni(b, tables + 5 * step, second >> 16 & 0xffff);
    a = lut_add_16_avx512vnni(a, tables + 6 * step, second >> 32 & 0xffff);
    b = lut_add_16_avx512vnni(b, tables + 7 * step, second >> 48);
    return _mm256_add_epi16(a, b);
}

/* The codes of row 4 l + i in all lanes, or, for one square, in half of them, and those of the next row in the others. */
BITNET_INLINE __m512i lut_codes_avx512vnni(const uint8_t *panel, ptrdiff_t l, const int i, const int squares) {
    const uint8_t *at = panel + LUT_CODES_AT + 16 * l + 64 * i;
    const __m512i row_u8x64 = _mm512_broadcast_i32x4(_mm_load_si128((const __m128i *)at));
    if (squares == 2) return row_u8x64;
    return _mm512_mask_broadcast_i32x4(row_u8x64, 0xff00, _mm_load_si128((const __m128i *)(at + 64)));
}

/* What the groups that are multiplied give, as int16 sums of the tokens in their order; all is in registers. */
BITNET_INLINE __m512i lut_multiply_avx512vnni(__m512i codes_u8x64, const __m512i inputs_i8x64[5][2]) {
    const __m512i group_u8x64[4] = {_mm512_shuffle_epi32(codes_u8x64, 0x00), _mm512_shuffle_epi32(codes_u8x64, 0x55),
                                    _mm512_shuffle_epi32(codes_u8x64, 0xaa), _mm512_shuffle_epi32(codes_u8x64, 0xff)};
    __m512i even_i32x16 = inputs_i8x64[4][0], odd_i32x16 = inputs_i8x64[4][1];
    for (int g = 0; g < 4; g++) {
        even_i32x16 = _mm512_dpbusd_epi32(even_i32x16, group_u8x64[g], inputs_i8x64[g][0]);
        odd_i32x16 = _mm512_dpbusd_epi32(odd_i32x16, group_u8x64[g], inputs_i8x64[g][1]);
    }
    return _mm512_packs_epi32(even_i32x16, odd_i32x16);
}

BITNET_INLINE void lut_widen_avx512vnni(__m256i sum_i16x16, int32_t *sums, int is_new) {
    __m512i sum_i32x16 = _mm512_cvtepi16_epi32(sum_i16x16);
    if (!is_new) sum_i32x16 = _mm512_add_epi32(sum_i32x16, _mm512_loadu_si512(sums));
    _mm512_storeu_si512(sums, sum_i32x16);
}

/* All but `run` are constants where this is inlined. */
BITNET_INLINE void lut_rows_avx512vnni(const lut_run *run, const int squares, const int is_last) {
    const lut_run r = *run; /* whose members no store can change */
    const uint8_t *panel = r.indices, *tables = r.tables;
    __m512i inputs_i8x64[5][2];
    for (int g = 0; g < 5; g++)
        for (int half = 0; half < 2; half++) {
            const uint8_t *at = tables + LUT_MULTIPLIED_AT + 128 * g + 64 * half;
            inputs_i8x64[g][half] = squares == 2 ? _mm512_load_si512(at)
                                                 : _mm512_broadcast_i64x4(_mm256_load_si256((const __m256i *)at));
        }
    int16_t *at = r.short_sums;
    for (ptrdiff_t p = 0; p < r.panels; p++, panel += LUT_MULTIPLIED_PASS_BYTES) {
        int32_t *low = lut_panel_sums(&r.sums[0], p), *high = squares == 2 ? lut_panel_sums(&r.sums[1], p) : NULL;
        for (ptrdiff_t row = r.fetch_from; row < r.fetch_to; row++) {
            BITNET_PREFETCH_L2(low + row * r.sums[0].row_step);
            if (squares == 2) BITNET_PREFETCH_L2(high + row * r.sums[1].row_step);
        }
        for (ptrdiff_t i = 0; i < r.next_lines; i++) BITNET_PREFETCH_L2(r.next + p * r.next_step + 64 * i);
        for (ptrdiff_t l = 0; l < 4; l++)
            for (int i = 0; i < 4; i += 3 - squares, at += 2 * LUT_SQUARE) {
                /* Of one row and two squares, or of two rows and one. */
                __m512i sum_i16x32 = r.is_first ? _mm512_setzero_si512() : _mm512_load_si512(at);
                if (squares == 2) {
                    sum_i16x32 = lut_row_avx512vnni(sum_i16x32, panel, tables, l, i);
                } else {
                    const __m256i zero_i16x16 = _mm256_setzero_si256();
                    const __m256i one_i16x16 = lut_row_16_avx512vnni(zero_i16x16, panel, tables, l, i);
                    const __m256i two_i16x16 = lut_row_16_avx512vnni(zero_i16x16, panel, tables, l, i + 1);
                    sum_i16x32 = _mm512_add_epi16(
                        sum_i16x32, _mm512_inserti64x4(_mm512_castsi256_si512(one_i16x16), two_i16x16, 1));
                }
                const __m512i codes_u8x64 = lut_codes_avx512vnni(panel, l, i, squares);
                sum_i16x32 = _mm512_add_epi16(sum_i16x32, lut_multiply_avx512vnni(codes_u8x64, inputs_i8x64));
                if (!is_last) {
                    _mm512_store_si512(at, sum_i16x32);
                } else {
                    if (squares == 1) high = low + r.sums[0].row_step;
                    lut_widen_avx512vnni(_mm512_castsi512_si256(sum_i16x32), low, r.is_new);
                    lut_widen_avx512vnni(_mm512_extracti64x4_epi64(sum_i16x32, 1), high, r.is_new);
                    low += (3 - squares) * r.sums[0].row_step;
                    if (squares == 2) high += r.sums[1].row_step;
                }
            }
    }
}

BITNET_KERNEL void lut_look_up_avx512vnni(const lut_run *run) {
    BITNET_ASSERT((uintptr_t)run->tables % 64 == 0 && (uintptr_t)run->short_sums % 64 == 0);
    switch (run->is_last + 2 * (run->squares == 2)) {
    case 0: lut_rows_avx512vnni(run, 1, 0); break;
    case 1: lut_rows_avx512vnni(run, 1, 1); break;
    case 2: lut_rows_avx512vnni(run, 2, 0); break;
    default: lut_rows_avx512vnni(run, 2, 1); break;
    }
    _mm256_zeroupper();
}

BITNET_KERNEL void lut_finish_avx512vnni(const int32_t *sums, ptrdiff_t row_step, void *y, ptrdiff_t y_stride,
                                         ptrdiff_t rows, ptrdiff_t tokens, const float *scales, ptrdiff_t scale_step,
                                         const float *factors) {
    const __mmask16 rows_there = (__mmask16)(((uint32_t)1 << rows) - 1);
    __m512i row_i32x16[LUT_ROWS], turned_i32x16[LUT_ROWS];
    for (int r = 0; r < LUT_ROWS; r++) row_i32x16[r] = _mm512_loadu_si512(sums + r * row_step);
    if (scales != NULL) {
        const __m512 factor_f32x16 = _mm512_maskz_loadu_ps((__mmask16)(((uint32_t)1 << tokens) - 1), factors);
        for (int r = 0; r < rows; r++)
            row_i32x16[r] = _mm512_castps_si512(_mm512_mul_ps(
                _mm512_cvtepi32_ps(row_i32x16[r]), _mm512_mul_ps(_mm512_set1_ps(scales[r * scale_step]), factor_f32x16)));
    }
    /* turned[4 q + c]: in lane l of the rows 4 q to 4 q + 3 the token 4 l + c. */
    for (int q = 0; q < 4; q++) lut_turn_four_avx512vnni(row_i32x16 + 4 * q, turned_i32x16 + 4 * q);
    for (int c = 0; c < 4; c++) {
        const __m512i low01 = _mm512_shuffle_i32x4(turned_i32x16[c], turned_i32x16[4 + c], 0x88);
        const __m512i low23 = _mm512_shuffle_i32x4(turned_i32x16[8 + c], turned_i32x16[12 + c], 0x88);
        const __m512i high01 = _mm512_shuffle_i32x4(turned_i32x16[c], turned_i32x16[4 + c], 0xdd);
        const __m512i high23 = _mm512_shuffle_i32x4(turned_i32x16[8 + c], turned_i32x16[12 + c], 0xdd);
        row_i32x16[c] = _mm512_shuffle_i32x4(low01, low23, 0x88);
        row_i32x16[8 + c] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
        row_i32x16[4 + c] = _mm512_shuffle_i32x4(high01, high23, 0x88);
        row_i32x16[12 + c] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
    }
    for (int t = 0; t < LUT_SQUARE; t++)
        if (t < tokens) _mm512_mask_storeu_epi32((int32_t *)y + t * y_stride, rows_there, row_i32x16[t]);
    _mm256_zeroupper();
}

BITNET_TARGET_END
#endif

#endif
