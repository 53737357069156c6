/* The contract of the quantisation kernels. They take n to be a multiple of QUANT_STEP; the rest is portable. */
#ifndef BITNET_QUANT_KERNEL_H
#define BITNET_QUANT_KERNEL_H

#include "target.h"

enum { QUANT_STEP = 64 };

typedef struct {
    const char *isa;
    uint32_t needs;
    /* lanes[i % 16] += |x[i]| as double, in the order of i; returns the largest bit pattern of |x[i]|, which is
     * 0x7f800000 or more if there is a NaN or an infinity. */
    uint32_t (*sum_abs)(const float *x, ptrdiff_t n, double lanes[16]);
    /* The largest bit pattern of |x[i]|. */
    uint32_t (*max_abs)(const float *x, ptrdiff_t n);
    /* t[i] = round_half_even(clamp(x[i] * s, -1, 1)). `streams` advises to write t around the caches, where the
     * instruction set can and t is aligned for it: lines that are written whole need not be read first. */
    void (*ternary)(const float *x, ptrdiff_t n, float s, int8_t *t, int streams);
    /* q[i] = round_half_even(x[i] * a), which must lie in -127..127; returns the sum of q. */
    int32_t (*int8)(const float *x, ptrdiff_t n, float a, int8_t *q);
} bitnet_quant_kernel;

#endif
