/* t5 on NEON, which every AArch64 has. Layout: packings/t5.pyx. Contract: kernel.h.
 *
 *   cmgt, cmgt, add   a byte is above -43 if its next code is 1 or 2, above 42 if it is 2; a comparison that holds is
 *                     -1, so their sum is minus the code
 *   mul               by three in i8, which wraps: the next digit is on top
 *   smlal, smlal2     i8 codes x i8 inputs, added to i16: a lane per row and column of the group
 *   sadalp            i16 pairs added to i32; neg at the end turns the sums' sign
 *
 * Minus a code is -2..0 and x is -128..127: an i16 lane adds one product of -254..256 a group, so 127 of them fit i16
 * (2 * BITNET_INT16_GROUPS would be 32768). A chunk of 25 tiles has 125 groups; chunks are widened to i32. */
#ifndef BITNET_T5_NEON_H
#define BITNET_T5_NEON_H

#include "kernel.h"

#if BITNET_ARM
/* No target region: the ABI has NEON. */

enum { T5_NEON_CHUNK_TILES = (2 * BITNET_INT16_GROUPS - 1) / 5, T5_NEON_TOKENS = 4 };

/* Adds the products of a group's codes, `quads` registers, with one token's four inputs. Here and below,
 * what is written out is no loop because clang leaves it rolled, with the sums in memory. */
BITNET_INLINE void t5_products_neon(int16x8_t *low_i16x8, int16x8_t *high_i16x8, const int8x16_t *codes_i8x16,
                                    const int8_t *x, const int quads) {
    int32_t four;
    memcpy(&four, x, 4);
    const int8x16_t x_i8x16 = vreinterpretq_s8_s32(vdupq_n_s32(four));
#define T5_QUAD(q)                                                                                                     \
    if ((q) < quads) {                                                                                                 \
        low_i16x8[q] = vmlal_s8(low_i16x8[q], vget_low_s8(codes_i8x16[q]), vget_low_s8(x_i8x16));                      \
        high_i16x8[q] = vmlal_high_s8(high_i16x8[q], codes_i8x16[q], x_i8x16);                                         \
    }
    T5_QUAD(0) T5_QUAD(1) T5_QUAD(2) T5_QUAD(3)
#undef T5_QUAD
}

/* The rows of `quads` registers of a tile, four rows each. `quads` and `tokens` are constants where this is inlined, so
 * the loops over them unroll and the int16 sums, at most 16 registers, stay in registers. */
BITNET_INLINE void t5_rows_neon(const uint8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums,
                                ptrdiff_t tiles, const int quads, const int tokens) {
    const int8x16_t limit_i8x16 = vdupq_n_s8(42), lower_i8x16 = vdupq_n_s8(-43), three_i8x16 = vdupq_n_s8(3);
    int32x4_t low_i32x4[T5_NEON_TOKENS][4], high_i32x4[T5_NEON_TOKENS][4];
    for (int t = 0; t < tokens; t++)
        for (int q = 0; q < quads; q++) low_i32x4[t][q] = high_i32x4[t][q] = vdupq_n_s32(0);

    for (ptrdiff_t start = 0; start < tiles; start += T5_NEON_CHUNK_TILES) {
        const ptrdiff_t end = start + T5_NEON_CHUNK_TILES < tiles ? start + T5_NEON_CHUNK_TILES : tiles;
        int16x8_t low_i16x8[T5_NEON_TOKENS][4], high_i16x8[T5_NEON_TOKENS][4];
        for (int t = 0; t < tokens; t++)
            for (int q = 0; q < quads; q++) low_i16x8[t][q] = high_i16x8[t][q] = vdupq_n_s16(0);

        for (ptrdiff_t tile = start; tile < end; tile++) {
            const uint8_t *at = w + tile * BITNET_TILE_BYTES;
            BITNET_PREFETCH(at + BITNET_PREFETCH_BYTES);
            int8x16_t fraction_i8x16[4];
            for (int q = 0; q < quads; q++) fraction_i8x16[q] = vreinterpretq_s8_u8(vld1q_u8(at + 16 * q));
            /* Unrolled, gcc loads all inputs of a tile ahead and spills the sums. */
            BITNET_KEEP_LOOP
            for (int g = 0; g < 5; g++) {
                int8x16_t minus_i8x16[4];
                for (int q = 0; q < quads; q++) {
                    minus_i8x16[q] = vreinterpretq_s8_u8(vaddq_u8(vcgtq_s8(fraction_i8x16[q], lower_i8x16),
                                                                  vcgtq_s8(fraction_i8x16[q], limit_i8x16)));
                    fraction_i8x16[q] = vmulq_s8(fraction_i8x16[q], three_i8x16);
                }
#define T5_TOKEN(t)                                                                                                    \
    if ((t) < tokens)                                                                                                  \
        t5_products_neon(low_i16x8[t], high_i16x8[t], minus_i8x16, x + (t) * x_stride + tile * 20 + 4 * g, quads);
                T5_TOKEN(0) T5_TOKEN(1) T5_TOKEN(2) T5_TOKEN(3)
#undef T5_TOKEN
            }
        }
        for (int t = 0; t < tokens; t++)
            for (int q = 0; q < quads; q++) {
                low_i32x4[t][q] = vpadalq_s16(low_i32x4[t][q], low_i16x8[t][q]);
                high_i32x4[t][q] = vpadalq_s16(high_i32x4[t][q], high_i16x8[t][q]);
            }
    }
    for (int t = 0; t < tokens; t++)
        for (int q = 0; q < quads; q++)
            vst1q_s32(sums + 16 * t + 4 * q, vnegq_s32(vpaddq_s32(low_i32x4[t][q], high_i32x4[t][q])));
}

/* A token's int16 sums fill eight registers: three and four tokens go over the tiles twice, eight rows at a time. */
BITNET_KERNEL void t5_panel_neon(const uint8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums,
                                 ptrdiff_t tiles, ptrdiff_t tokens) {
    BITNET_ASSERT_PANEL(w, tiles, tokens);
    for (; tokens >= 4; tokens -= 4, x += 4 * x_stride, sums += 64) {
        t5_rows_neon(w, x, x_stride, sums, tiles, 2, 4);
        t5_rows_neon(w + 32, x, x_stride, sums + 8, tiles, 2, 4);
    }
    switch (tokens) {
    case 3:
        t5_rows_neon(w, x, x_stride, sums, tiles, 2, 3);
        t5_rows_neon(w + 32, x, x_stride, sums + 8, tiles, 2, 3);
        break;
    case 2: t5_rows_neon(w, x, x_stride, sums, tiles, 4, 2); break;
    case 1: t5_rows_neon(w, x, x_stride, sums, tiles, 4, 1); break;
    default: break;
    }
}

#endif

#endif
