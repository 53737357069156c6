/* i2 on NEON, which every AArch64 has. Layout: packings/i2.pyx. Contract: kernel.h.
 *
 *   ushr, and       bring a group's 2-bit fields down, four rows of four columns a register
 *   smlal, smlal2   i8 codes x i8 inputs, added to i16: a lane per row and column of the group
 *   sadalp          i16 pairs added to i32
 *
 * A code is 0..2 and x is -128..127: an i16 lane adds one product of -256..254 a group, and 128 of them
 * (2 * BITNET_INT16_GROUPS, as no pairs are summed) are -32768..32512, which fits i16. A chunk of 32 tiles has 128
 * groups; chunks are widened to i32. */
#ifndef BITNET_I2_NEON_H
#define BITNET_I2_NEON_H

#include "kernel.h"

#if BITNET_ARM
/* No target region: the ABI has NEON. */

enum { I2_NEON_CHUNK_TILES = 2 * BITNET_INT16_GROUPS / 4, I2_NEON_TOKENS = 4 };

BITNET_INLINE int8x16_t i2_group_neon(uint8x16_t packed_u8x16, int group) {
    const uint8x16_t field = vdupq_n_u8(3);
    switch (group) {
    case 0: return vreinterpretq_s8_u8(vandq_u8(packed_u8x16, field));
    case 1: return vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(packed_u8x16, 2), field));
    case 2: return vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(packed_u8x16, 4), field));
    default: return vreinterpretq_s8_u8(vshrq_n_u8(packed_u8x16, 6));
    }
}

/* Adds the products of a group's codes, `quads` registers, with one token's four inputs. Here and below,
 * what is written out is no loop because clang leaves it rolled, with the sums in memory. */
BITNET_INLINE void i2_products_neon(int16x8_t *low_i16x8, int16x8_t *high_i16x8, const int8x16_t *codes_i8x16,
                                    const int8_t *x, const int quads) {
    int32_t four;
    memcpy(&four, x, 4);
    const int8x16_t x_i8x16 = vreinterpretq_s8_s32(vdupq_n_s32(four));
#define I2_QUAD(q)                                                                                                     \
    if ((q) < quads) {                                                                                                 \
        low_i16x8[q] = vmlal_s8(low_i16x8[q], vget_low_s8(codes_i8x16[q]), vget_low_s8(x_i8x16));                      \
        high_i16x8[q] = vmlal_high_s8(high_i16x8[q], codes_i8x16[q], x_i8x16);                                         \
    }
    I2_QUAD(0) I2_QUAD(1) I2_QUAD(2) I2_QUAD(3)
#undef I2_QUAD
}

/* The rows of `quads` registers of a tile, four rows each. `quads` and `tokens` are constants where this is inlined, so
 * the loops over them unroll and the int16 sums, at most 16 registers, stay in registers. */
BITNET_INLINE void i2_rows_neon(const uint8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums,
                                ptrdiff_t tiles, const int quads, const int tokens) {
    int32x4_t low_i32x4[I2_NEON_TOKENS][4], high_i32x4[I2_NEON_TOKENS][4];
    for (int t = 0; t < tokens; t++)
        for (int q = 0; q < quads; q++) low_i32x4[t][q] = high_i32x4[t][q] = vdupq_n_s32(0);

    for (ptrdiff_t start = 0; start < tiles; start += I2_NEON_CHUNK_TILES) {
        const ptrdiff_t end = start + I2_NEON_CHUNK_TILES < tiles ? start + I2_NEON_CHUNK_TILES : tiles;
        int16x8_t low_i16x8[I2_NEON_TOKENS][4], high_i16x8[I2_NEON_TOKENS][4];
        for (int t = 0; t < tokens; t++)
            for (int q = 0; q < quads; q++) low_i16x8[t][q] = high_i16x8[t][q] = vdupq_n_s16(0);

        for (ptrdiff_t tile = start; tile < end; tile++) {
            const uint8_t *at = w + tile * BITNET_TILE_BYTES;
            BITNET_PREFETCH(at + BITNET_PREFETCH_BYTES);
            uint8x16_t packed_u8x16[4];
            int8x16_t codes_i8x16[4];
            for (int q = 0; q < quads; q++) packed_u8x16[q] = vld1q_u8(at + 16 * q);
#define I2_TOKEN(g, t)                                                                                                 \
    if ((t) < tokens)                                                                                                  \
        i2_products_neon(low_i16x8[t], high_i16x8[t], codes_i8x16, x + (t) * x_stride + tile * 16 + 4 * (g), quads);
#define I2_GROUP(g)                                                                                                    \
    for (int q = 0; q < quads; q++) codes_i8x16[q] = i2_group_neon(packed_u8x16[q], g);                                \
    I2_TOKEN(g, 0) I2_TOKEN(g, 1) I2_TOKEN(g, 2) I2_TOKEN(g, 3)
            I2_GROUP(0) I2_GROUP(1) I2_GROUP(2) I2_GROUP(3)
#undef I2_GROUP
#undef I2_TOKEN
        }
        for (int t = 0; t < tokens; t++)
            for (int q = 0; q < quads; q++) {
                low_i32x4[t][q] = vpadalq_s16(low_i32x4[t][q], low_i16x8[t][q]);
                high_i32x4[t][q] = vpadalq_s16(high_i32x4[t][q], high_i16x8[t][q]);
            }
    }
    for (int t = 0; t < tokens; t++)
        for (int q = 0; q < quads; q++)
            vst1q_s32(sums + 16 * t + 4 * q, vpaddq_s32(low_i32x4[t][q], high_i32x4[t][q]));
}

/* A token's int16 sums fill eight registers: three and four tokens go over the tiles twice, eight rows at a time. */
BITNET_KERNEL void i2_panel_neon(const uint8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums,
                                 ptrdiff_t tiles, ptrdiff_t tokens) {
    BITNET_ASSERT_PANEL(w, tiles, tokens);
    for (; tokens >= 4; tokens -= 4, x += 4 * x_stride, sums += 64) {
        i2_rows_neon(w, x, x_stride, sums, tiles, 2, 4);
        i2_rows_neon(w + 32, x, x_stride, sums + 8, tiles, 2, 4);
    }
    switch (tokens) {
    case 3:
        i2_rows_neon(w, x, x_stride, sums, tiles, 2, 3);
        i2_rows_neon(w + 32, x, x_stride, sums + 8, tiles, 2, 3);
        break;
    case 2: i2_rows_neon(w, x, x_stride, sums, tiles, 4, 2); break;
    case 1: i2_rows_neon(w, x, x_stride, sums, tiles, 4, 1); break;
    default: break;
    }
}

#endif

#endif
