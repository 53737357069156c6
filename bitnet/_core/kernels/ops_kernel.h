/* Vector operations of a forward pass: the contract of their kernels.
 *
 * They are written once, in ops_body.h, on vectors of 16 floats, and compiled for each instruction set. Sums have 16
 * fixed lanes, and products are fused with additions in attention and in powers of e, everywhere, and nowhere else, so the
 * bits are the same on every instruction set. */
#ifndef BITNET_OPS_KERNEL_H
#define BITNET_OPS_KERNEL_H

#include "target.h"

/* How numbers are stored, in a cache or a head. */
enum { OPS_FLOAT32, OPS_FLOAT16, OPS_BFLOAT16, OPS_INT8 };

#define OPS_BYTES_OF(dtype) ((dtype) == OPS_FLOAT32 ? 4 : (dtype) == OPS_FLOAT16 ? 2 : 1)

/* Positions that attend takes at once, a multiple of 16; and queries, at most. */
enum { OPS_BLOCK = 64, OPS_QUERIES = 4 };

/* Bytes of a head's key in an int8 cache; and of a query that is prepared for one (ops_attend_int8.h), a multiple of 64. */
#define OPS_PADDED(width) (((width) + 3) & ~(ptrdiff_t)3)
#define OPS_QUERY_BYTES(width) ((2 * OPS_PADDED(width) + 12 + 63) & ~(ptrdiff_t)63)

/* Bytes of the keys, or the values, of a block. */
#define OPS_BLOCK_BYTES(dtype, width) \
    (OPS_BLOCK * ((dtype) == OPS_INT8 ? OPS_PADDED(width) + 4 : OPS_BYTES_OF(dtype) * (width)))

/* The function of a gate. */
enum { OPS_RELU2, OPS_SILU, OPS_GELU, OPS_GELU_TANH };

static inline float ops_float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* IEEE binary16, one number at a time; every value, denormals, infinities and NaN included. */
static inline float ops_half_to_float(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, magnitude = half & 0x7fff;
    if (magnitude >= 0x7c00) return ops_float_of(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    /* As a float with the same fields it is 2^112 too small, denormals too. */
    return ops_float_of(sign | magnitude << 13) * 0x1p112f;
}

/* Rounds half to even; what is too large becomes infinite. */
static inline uint16_t ops_float_to_half(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return sign | 0x7e00 | (uint16_t)(bits >> 13 & 0x3ff); /* a NaN keeps its upper bits */
    if (bits >= 0x477ff000) return sign | 0x7c00;
    if (bits < 0x38800000) {
        /* Below the normal ones: adding 0.5 leaves the number in units of 2^-24, rounded, in the low bits. */
        const float magic = ops_float_of(bits) + 0.5f;
        uint32_t shifted;
        memcpy(&shifted, &magic, 4);
        return sign | (uint16_t)(shifted - 0x3f000000);
    }
    return sign | (uint16_t)((bits + 0xfff + (bits >> 13 & 1) - 0x38000000) >> 13);
}

typedef struct {
    const char *isa;
    uint32_t needs;
    /* y[i] = x[i] / sqrt(mean(x^2) + eps) * gain[i]; y may be x. */
    void (*rms_norm)(const float *x, const float *gain, float eps, ptrdiff_t n, float *y);
    /* Rotates the halves of one head: x[i], x[half + i] by the angle of cosine[i], sine[i]. */
    void (*rope)(float *x, const float *cosine, const float *sine, ptrdiff_t half);
    /* y[i] = function(gate[i]) * up[i]. */
    void (*gate)(int function, const float *gate, const float *up, ptrdiff_t n, float *y);
    /* y[i] += x[i]. */
    void (*add)(const float *x, ptrdiff_t n, float *y);
    /* sum_i row[i] * x[i]. */
    float (*dot)(int dtype, const void *row, const float *x, ptrdiff_t n);
    /* Numbers as stored to floats, and floats to OPS_FLOAT32 or OPS_FLOAT16. */
    void (*load)(int dtype, const void *row, ptrdiff_t n, float *y);
    void (*store)(int dtype, const float *x, ptrdiff_t n, void *row);
    /* A query for an int8 cache: OPS_QUERY_BYTES of the width. */
    void (*prepare_query)(const float *x, ptrdiff_t width, void *to);
    /* Up to OPS_QUERIES queries, floats, or prepared for an int8 cache, against one block of keys and values
     * (ops_attend.h), each from a position of its own, 0
     * or above, up to a number of positions of its own; what lies before counts for nothing. It goes on with a softmax
     * whose largest score so far is state[q][0] and whose sum is state[q][1], and with the weighted sum of values in
     * sum[q]. The next block, or this one again, is fetched meanwhile. */
    void (*attend)(int dtype, int queries, const void *const *query, const void *keys, const void *values,
                   const void *next_keys, const void *next_values, const ptrdiff_t *from, const ptrdiff_t *positions,
                   ptrdiff_t width, float scale, float (*state)[2], float *const *sum);
    /* Adds what one query has of some more blocks: their largest score and sum, and their weighted sum of values. */
    void (*merge)(const float *part_state, const float *part, ptrdiff_t width, float *state, float *sum);
    /* The keys of some positions, or the value of one, into their block, as OPS_FLOAT32, OPS_FLOAT16 or OPS_INT8. */
    void (*store_keys)(int dtype, const float *x, ptrdiff_t x_stride, ptrdiff_t positions, ptrdiff_t n, void *block,
                       ptrdiff_t position);
    void (*store_value)(int dtype, const float *x, ptrdiff_t n, void *block, ptrdiff_t position);
    /* Tiles of a panel of packing i2 against floats, (tokens, 16 * tiles) at a distance of x_stride; at most 8 tokens:
     * sums[16 * t + r] = sum_c weight[r, c] * x[t, c], added column by column. */
    void (*floats)(const uint8_t *w, const float *x, ptrdiff_t x_stride, float *sums, ptrdiff_t tiles,
                   ptrdiff_t tokens);
} bitnet_ops;

#endif
