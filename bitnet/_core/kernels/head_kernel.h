/* Products of an int8 head: the contract of their kernels.
 *
 * Rows come in panels of 16, columns in tiles of 4: byte 4 r + c of a tile's 64 is the weight of row r and column c, -127
 * to 127. Inputs are int8, too, in pairs of which a token has two (head.pyx). A sum over K columns is at most
 * 255 * 128 * K in magnitude, so int32 holds it up to HEAD_MAX_COLS columns. */
#ifndef BITNET_HEAD_KERNEL_H
#define BITNET_HEAD_KERNEL_H

#include "target.h"

enum { HEAD_ROWS = 16, HEAD_COLS = 4, HEAD_TILE_BYTES = 64, HEAD_MAX_INPUTS = 16, HEAD_MAX_COLS = 65536 };
enum { HEAD_MAX_TOKENS = HEAD_MAX_INPUTS / 2, HEAD_LARGEST_INPUT = 127 * 256 + 127 };

/* sums[16 * t + r] = sum over the columns of (weight[r, c] + bias) * x[t * x_stride + c], for one panel and an
 * even number of rows of inputs, up to HEAD_MAX_INPUTS.
 *
 *   w     tiles * HEAD_TILE_BYTES bytes, 64-byte aligned
 *   x     per row 4 * tiles values; zero where the weight has no column */
typedef void (*bitnet_head_panel)(const int8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums, ptrdiff_t tiles,
                                  ptrdiff_t inputs);

/* sums[16 * t + r] = sum over the columns of weight[r, c] * x[t * x_stride + c], exact, for one panel and 1 to
 * HEAD_MAX_TOKENS tokens: both rows of a token in one, 16 bits a number, HEAD_LARGEST_INPUT at most in magnitude. */
typedef void (*bitnet_head_wide)(const int8_t *w, const int16_t *x, ptrdiff_t x_stride, double *sums, ptrdiff_t tiles,
                                 ptrdiff_t tokens);

typedef struct {
    const char *isa;
    uint32_t needs;
    int32_t bias; /* what the instructions at hand add to each weight; the caller takes it away again */
    /* One of them; the other is NULL. */
    bitnet_head_panel panel;
    bitnet_head_wide wide;
} bitnet_head_kernel;

#endif
