/* Products of many tokens, beside the kernels of kernel.h: the contract.
 *
 * Weights are expanded once for many tokens, in blocks of 64 rows (4 panels) and steps of 20 columns, 5 groups of 4:
 *
 *   groups 0, 1      as codes, 0 to 2, for a dot-product instruction
 *   groups 2, 3, 4   as 4 triples, (g2[j], g3[j], g4[j]) for j = 0 to 3: 27 values, for a look-up in a table of the sums
 *                    of three inputs
 *
 * so that two kinds of instructions, which run beside one another, share the work. A packing's kernel expands (kernel.h),
 * in the form that this instruction set wants. Inputs are prepared for 4 tokens at a
 * time: the tables, and the inputs of groups 0 and 1. A sum of three inputs is at most 384 in magnitude, and a chunk of
 * GEMM_STEPS adds 64 of them: 24576 fits int16. The tables of a chunk, 16 KiB, and the weights that pass by stay in a
 * first-level cache of 32 KiB. */
#ifndef BITNET_GEMM_KERNEL_H
#define BITNET_GEMM_KERNEL_H

#include "target.h"

enum {
    GEMM_PANELS = 4,
    GEMM_ROWS = 64,
    GEMM_TOKENS = 4,
    GEMM_GROUPS = 5,
    GEMM_COLS = 20,
    GEMM_STEPS = 16,              /* of a chunk, at most */
    GEMM_WEIGHT_BYTES = 768,      /* of a step of a block */
    GEMM_TABLE_BYTES = 1024,      /* of a step of 4 tokens */
    GEMM_INPUT_BYTES = 32,        /* likewise */
    GEMM_CHUNK_WEIGHT_BYTES = GEMM_STEPS * GEMM_WEIGHT_BYTES,
    GEMM_CHUNK_INPUT_BYTES = GEMM_STEPS * (GEMM_TABLE_BYTES + GEMM_INPUT_BYTES)
};

typedef struct {
    const char *isa;
    uint32_t needs;
    /* Prepares the inputs of 4 tokens, x + t * x_stride, for `steps` steps; adds to sums[t] those of groups 0 and 1. */
    void (*prepare)(const int8_t *x, ptrdiff_t x_stride, ptrdiff_t steps, uint8_t *inputs, int32_t *sums);
    /* Makes y[t][r], for 64 rows and 4 tokens, of before[t][r] and what expanded weights and prepared inputs give:
     * sum of code * x over groups 0 and 1, and of weight * x over the others. `before` may be `y`. Meanwhile a line a step
     * is fetched from `next` on and from next + next_stride on: two panels of what is to be expanded next. */
    void (*multiply)(const uint8_t *weights, const uint8_t *inputs, ptrdiff_t steps, int32_t *const *before,
                     int32_t *const *y, const uint8_t *next, ptrdiff_t next_stride);
    /* Makes of int32 numbers y[r] in place: y[r] - sum, or as float32 (y[r] - sum) * (scales[r * step] * factor). */
    void (*finish)(void *y, ptrdiff_t rows, int32_t sum, const float *scales, ptrdiff_t step, float factor);
} bitnet_gemm_kernel;

#endif
