/* Products of many tokens by look-up, where an instruction set has no dot product: the contract.
 *
 * Four weights of a row have 81 values. Their sums with the inputs of 16 tokens make a table of 81 rows of 16 int16
 * numbers, one for each token, that all rows of the weight share: a row's product grows by one load and one addition for
 * 64 multiply-accumulates, where vpmaddubsw and an addition do 32. Tables of two tiles stay in a first-level cache of
 * 32 KiB beside what passes by.
 *
 * A tile is 16 columns in four groups, or 20 in five:
 *
 *   group c = 0 to 3     columns c, 4 + c, 8 + c and 12 + c: what a byte of a packing's tile holds
 *   group 4              columns 16 to 19
 *
 * A packing's kernel (kernel.h) makes of a tile the place of each sum in its table in bytes, uint16,
 * LUT_SUM_BYTES * (27 c0 + 9 c1 + 3 c2 + c3) for the codes of a group's columns: four of each row, rows one after the
 * other, and behind those of all rows the fifth of each, if there is one. Of bytes that no packing writes it makes places in
 * the table, too.
 *
 * A sum of four inputs is at most 512 in magnitude: sums of 63 groups fit int16. Tables have weights in place of codes, so
 * sums need no correction. */
#ifndef BITNET_LUT_KERNEL_H
#define BITNET_LUT_KERNEL_H

#include "target.h"

enum {
    LUT_TOKENS = 16,
    LUT_ROWS = 16, /* of a panel */
    LUT_SUM_BYTES = 2 * LUT_TOKENS,
    LUT_TABLE_BYTES = 81 * LUT_SUM_BYTES,
    LUT_TILES = 2, /* whose tables there are at once */
    LUT_SHORT_GROUPS = 63,
    LUT_PANELS_AHEAD = 3, /* how far ahead of its reads a packing's kernel asks for memory */
    LUT_TABLES_BYTES = LUT_TILES * 5 * LUT_TABLE_BYTES
};

/* Where a run of `look_up` reads and adds. */
typedef struct {
    const uint8_t *indices; /* of the first tile and row */
    ptrdiff_t tile_bytes;   /* from a tile's indices to the next one's */
    ptrdiff_t fifth_at;     /* from a tile's first index to the first of its fifth ones; 0: none */
    const uint8_t *tables;
    ptrdiff_t tiles, panels;
    int16_t *short_sums; /* (rows, LUT_TOKENS); 32-byte aligned */
    int is_first;        /* the short sums begin here */
    /* Where they end: added to, or put where `is_new`, sums[panel * panel_step + r * row_step + token]; else NULL. */
    int32_t *sums;
    ptrdiff_t panel_step, row_step;
    int is_new;
    const uint8_t *next; /* what is fetched meanwhile: a line for each tile, `next_step` bytes further for each panel */
    ptrdiff_t next_step;
} lut_run;

typedef struct {
    const char *isa;
    uint32_t needs;
    /* Makes the tables of 1 or LUT_TILES tiles, for 1 to LUT_TOKENS tokens x + t * x_stride; of others they have zeros. */
    void (*tables)(const int8_t *x, ptrdiff_t x_stride, ptrdiff_t tokens, ptrdiff_t tiles, ptrdiff_t tile_cols,
                   uint8_t *tables);
    void (*look_up)(const lut_run *run);
    /* Turns the sums of a panel, sums[r * row_step + token], into y[token * y_stride + r]: int32, or where `scales` is given
     * float32(sum) * (scales[r * scale_step] * factors[token]). `sums` may be `y` where their steps are equal and rows and
     * tokens are 16. */
    void (*finish)(const int32_t *sums, ptrdiff_t row_step, void *y, ptrdiff_t y_stride, ptrdiff_t rows, ptrdiff_t tokens,
                   const float *scales, ptrdiff_t scale_step, const float *factors);
} bitnet_lut_kernel;

#endif
