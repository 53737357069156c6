/* The operations for any CPU: ops_body.h at the ABI's floor. */
#ifndef BITNET_OPS_PORTABLE_H
#define BITNET_OPS_PORTABLE_H

#include "ops_kernel.h"

#define OPS(name) ops_##name##_portable
#define OPS_END() ((void)0)
#define OPS_HALVES(from, to) \
    for (int k = 0; k < 16; k++) (*(to))[k] = ops_half_to_float((from)[k])

#define OPS_BRAINS(from, to) \
    for (int k = 0; k < 16; k++) (*(to))[k] = ops_float_of((uint32_t)(from)[k] << 16)
#define OPS_BYTES(from, to) \
    for (int k = 0; k < 16; k++) (*(to))[k] = (float)(from)[k]

#define OPS_TO_HALVES(from, to) \
    for (int k = 0; k < 16; k++) (to)[k] = ops_float_to_half((from)[k])
#define OPS_FUSE(a, b, c, to)                                                                                        \
    {                                                                                                                \
        const f32x16 a_f32x16 = a, b_f32x16 = b, c_f32x16 = c;                                                       \
        for (int k = 0; k < 16; k++) (*(to))[k] = BITNET_FMA(a_f32x16[k], b_f32x16[k], c_f32x16[k]);                 \
    }
#define OPS_RAISE(most, other)                                                                                       \
    {                                                                                                                \
        const f32x16 other_f32x16 = other;                                                                           \
        const i32x16 is_more = other_f32x16 > *(most);                                                               \
        *(most) = (f32x16)(((i32x16)other_f32x16 & is_more) | ((i32x16) * (most) & ~is_more));                       \
    }
#define OPS_TILE 1

BITNET_INLINE void ops_tile_portable(const int dtype, const int queries, const int vectors, const float *const *a,
                                     ptrdiff_t from, ptrdiff_t to, const char *b, ptrdiff_t row, ptrdiff_t ahead,
                                     float acc[OPS_QUERIES][16 * OPS_TILE]) {
    float taken[16];
    for (ptrdiff_t k = from; k < to; k++) {
        const char *at = b + k * row;
        if (dtype == OPS_FLOAT32) {
            memcpy(taken, at, 64);
        } else {
            OPS_HALVES((const uint16_t *)at, &taken);
        }
        for (int q = 0; q < queries; q++)
            for (int i = 0; i < 16; i++) acc[q][i] = BITNET_FMA(taken[i], a[q][k], acc[q][i]);
    }
    (void)vectors, (void)ahead;
}

#define OPS_DOTS 1
#define OPS_BIAS 0

BITNET_INLINE void ops_dots_portable(const int is_keys, const int rows, const int vectors, const int8_t *const *a,
                                     ptrdiff_t groups, const char *b, ptrdiff_t row, ptrdiff_t ahead,
                                     int32_t acc[][16 * OPS_DOTS]) {
    for (int r = 0; r < rows; r++)
        for (ptrdiff_t g = 0; g < groups; g++)
            for (int i = 0; i < 64; i++) {
                const char *at = b + g * row + i;
                const int32_t taken = is_keys ? *(const uint8_t *)at - 128 : *(const int8_t *)at;
                acc[r][i / 4] += taken * a[r][4 * g + i % 4];
            }
    (void)vectors, (void)ahead;
}

#include "ops_body.h"

#endif
