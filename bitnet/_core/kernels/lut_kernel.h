/* Products of many tokens by look-up: the contract.
 *
 * Four weights of a row have 81 values. Their sums with the inputs of 16 or 32 tokens make a table of 81 rows of int16
 * numbers, one for each token, that all rows of the weight share: a row's product grows by one load and one addition for
 * 4 multiply-accumulates of each token. Where there is a dot product, whose instruction needs other parts of a core, it does
 * some of the columns meanwhile.
 *
 * Tokens come in squares of 16, as wide as panels have rows; a look-up is for one or two squares. Columns come in parts, and
 * parts in passes. Two tiles of a pass are looked up: byte c of each group of 4 bytes holds the codes of columns c, 4 + c, 8 + c
 * and 12 + c of its tile. The others:
 *
 *   AVX2       t5: the fifth codes, columns 16 to 19 of each tile, have a fifth table
 *   AVX-512    i2: a third tile is multiplied; pass p of a part has the tiles 3 p to 3 p + 2
 *              t5: pass p has the tiles 2 p and 2 p + 1, up to 10; their fifth codes are multiplied, and eight columns, from
 *              8 p on, of what the part has behind 10 tiles
 *
 * A packing's kernel (kernel.h) makes of a pass, for each panel, what its rows need, one panel after the other:
 *
 *   from 0     of each row and tile four places of sums in their tables, in bytes, uint16:
 *              27 c0 + 9 c1 + 3 c2 + c3 sums of the codes above; the first tile's rows, then those of the second
 *   from 256   AVX2: the fifth places of the first tile's rows, then of the second's; AVX-512: codes of the columns that are
 *              multiplied, four groups of four side by side, those of row 4 l + i at 64 i + 16 l
 *
 * Of bytes that no packing writes it makes places in the table, too. Where a pass has fewer tiles, inputs are zeros.
 *
 * A sum of LUT_PART_COLS inputs is at most 255 * 128 = 32640 in magnitude and fits int16, whatever they are; of the tokens at
 * hand `largest` says how many more columns fit before the sums are widened. Tables have weights in place of codes, so their
 * sums need no correction; what is multiplied begins with it. */
#ifndef BITNET_LUT_KERNEL_H
#define BITNET_LUT_KERNEL_H

#include "target.h"

enum {
    LUT_SQUARE = 16, /* tokens */
    LUT_ROWS = 16,   /* of a panel */
    LUT_SUMS = 81,   /* of a table */
    LUT_PART_COLS = 255,
    LUT_GROUP_PANELS = 16, /* as many as a square has tokens */
    LUT_CODES_AT = 256,
    LUT_FIFTH_PASS_BYTES = 256 + 64,       /* of a panel, with fifth places */
    LUT_MULTIPLIED_PASS_BYTES = 256 + 256, /* likewise with codes */
    LUT_PANELS_AHEAD = 3, /* how far ahead of its reads a packing's kernel asks for memory */
    /* At most, over the instruction sets. */
    LUT_MOST_SQUARES = 2,
    LUT_MOST_PART_BYTES = 5 * 512, /* of a part's passes and a panel */
    LUT_MOST_TABLES_BYTES = 8 * LUT_SUMS * 64 + 10 * 64
};

/* Where the int32 sums of a square are: lut_panel_sums(). */
typedef struct {
    int32_t *at;
    ptrdiff_t group_step, panel_step, row_step;
} lut_square;

/* Where a pass reads and adds. */
typedef struct {
    const uint8_t *indices; /* of the first panel */
    const uint8_t *tables;
    ptrdiff_t tile_cols, tiles, panels, squares; /* tiles: how many of the two there are; only AVX2 asks */
    int16_t *short_sums; /* (rows, LUT_SQUARE * squares); 64-byte aligned */
    int is_first;        /* the short sums begin here */
    /* Where they end, in a pass that is_last: added to, or put where `is_new`. Before that pass it is fetched: of each panel
     * the rows from fetch_from to fetch_to - 1. */
    lut_square sums[LUT_MOST_SQUARES];
    int is_last, is_new;
    ptrdiff_t fetch_from, fetch_to;
    /* What is fetched meanwhile, for each panel: so many lines, `next_step` bytes further. */
    const uint8_t *next;
    ptrdiff_t next_lines, next_step;
} lut_run;

typedef struct {
    const char *isa;
    uint32_t needs;
    ptrdiff_t squares; /* of a look-up, at most */
    /* The largest of the tokens' sums of magnitudes over some columns, a multiple of 4 up to LUT_PART_COLS. */
    ptrdiff_t (*largest)(const int8_t *x, ptrdiff_t x_stride, ptrdiff_t tokens, ptrdiff_t cols);
    /* Makes the tables of a pass of a part of `tiles` tiles, for 1 to LUT_SQUARE * squares tokens, x + t * x_stride at the part's
     * first column, and what it multiplies; of other tokens they have zeros. */
    void (*tables)(const int8_t *x, ptrdiff_t x_stride, ptrdiff_t tokens, ptrdiff_t tiles, ptrdiff_t pass, ptrdiff_t tile_cols,
                   uint8_t *tables);
    void (*look_up)(const lut_run *run);
    /* Turns a square, sums[r * row_step + token], into y[token * y_stride + r]: int32, or where `scales` is given
     * float32(sum) * (scales[r * scale_step] * factors[token]). `sums` may be `y` where their steps are equal and rows and
     * tokens are 16. */
    void (*finish)(const int32_t *sums, ptrdiff_t row_step, void *y, ptrdiff_t y_stride, ptrdiff_t rows, ptrdiff_t tokens,
                   const float *scales, ptrdiff_t scale_step, const float *factors);
} bitnet_lut_kernel;

/* Where those of a panel's first row are; the next row's are row_step numbers further. */
BITNET_INLINE int32_t *lut_panel_sums(const lut_square *square, ptrdiff_t panel) {
    return square->at + panel / LUT_GROUP_PANELS * square->group_step + panel % LUT_GROUP_PANELS * square->panel_step;
}

#endif
