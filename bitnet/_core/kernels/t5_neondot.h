/* t5 on NEON with the dot product of Armv8.2. Layout: packings/t5.pyx. Contract: kernel.h.
 *
 *   sdot   i8 x i8, four neighbours summed into the row's i32 lane; wraps around
 *   mul    by three in i8, which wraps: the next digit is on top
 *
 * and for two tokens and more, whose products outnumber the decoding:
 *
 *   cmgt, cmgt, add   a byte is above -43 if its next code is 1 or 2, above 42 if it is 2; a comparison that holds is
 *                     -1, so their sum is minus the code; neg at the end turns the sums' sign
 *
 * One token takes the fractions themselves for operands. A fraction s, its digit w and the next fraction s' satisfy
 * 3 s = 256 w + s', so no digit is ever made:
 *
 *     sum w * x = (3 * sum s * x - sum s' * x) / 256,    sum code * x = sum w * x + sum x
 *
 * The terms wrap around in i32, their difference is exact as long as 256 * 128 * columns < 2^31: a chunk of 3276 tiles
 * has 65520 columns. There is no int16 to overflow. */
#ifndef BITNET_T5_NEONDOT_H
#define BITNET_T5_NEONDOT_H

#include "kernel.h"

#if BITNET_ARM
/* clang knows such a region on Arm since its version 16. */
BITNET_TARGET("arch=armv8.2-a+dotprod")

enum { T5_NEONDOT_CHUNK_TILES = 65535 / 20 };

BITNET_INLINE int8x16_t t5_four_inputs_neondot(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

BITNET_INLINE void t5_token_neondot(const uint8_t *w, const int8_t *x, int32_t *sums, ptrdiff_t tiles) {
    const int8x16_t one_i8x16 = vdupq_n_s8(1), three_i8x16 = vdupq_n_s8(3);
    int32x4_t sums_i32x4[4], x_i32x4 = vdupq_n_s32(0), last_x_i32x4 = vdupq_n_s32(0);
    for (int q = 0; q < 4; q++) sums_i32x4[q] = vdupq_n_s32(0);

    for (ptrdiff_t start = 0; start < tiles; start += T5_NEONDOT_CHUNK_TILES) {
        const ptrdiff_t end = start + T5_NEONDOT_CHUNK_TILES < tiles ? start + T5_NEONDOT_CHUNK_TILES : tiles;
        int32x4_t this_i32x4[4], next_i32x4[4];
        for (int q = 0; q < 4; q++) this_i32x4[q] = next_i32x4[q] = vdupq_n_s32(0);

        for (ptrdiff_t tile = start; tile < end; tile++) {
            const uint8_t *at = w + tile * BITNET_TILE_BYTES;
            BITNET_PREFETCH(at + BITNET_PREFETCH_BYTES);
            const int8x16_t x_i8x16 = vld1q_s8(x + tile * 20);
            const int8x16_t last_x_i8x16 = t5_four_inputs_neondot(x + tile * 20 + 16);
            x_i32x4 = vdotq_s32(x_i32x4, x_i8x16, one_i8x16);
            last_x_i32x4 = vdotq_s32(last_x_i32x4, last_x_i8x16, one_i8x16);
            for (int q = 0; q < 4; q++) {
                int8x16_t fraction_i8x16 = vreinterpretq_s8_u8(vld1q_u8(at + 16 * q));
#define T5_GROUP(g)                                                                                                    \
    this_i32x4[q] = vdotq_laneq_s32(this_i32x4[q], fraction_i8x16, x_i8x16, g);                                        \
    fraction_i8x16 = vmulq_s8(fraction_i8x16, three_i8x16);                                                            \
    next_i32x4[q] = vdotq_laneq_s32(next_i32x4[q], fraction_i8x16, x_i8x16, g);
                T5_GROUP(0) T5_GROUP(1) T5_GROUP(2) T5_GROUP(3)
#undef T5_GROUP
                this_i32x4[q] = vdotq_s32(this_i32x4[q], fraction_i8x16, last_x_i8x16);
                fraction_i8x16 = vmulq_s8(fraction_i8x16, three_i8x16);
                next_i32x4[q] = vdotq_s32(next_i32x4[q], fraction_i8x16, last_x_i8x16);
            }
        }
        for (int q = 0; q < 4; q++) {
            const int32x4_t tripled_i32x4 = vaddq_s32(vaddq_s32(this_i32x4[q], this_i32x4[q]), this_i32x4[q]);
            sums_i32x4[q] = vsraq_n_s32(sums_i32x4[q], vsubq_s32(tripled_i32x4, next_i32x4[q]), 8);
        }
    }
    /* The last four columns were summed in every lane, the others lane by lane. */
    const int32x4_t all_x_i32x4 = vaddq_s32(last_x_i32x4, vdupq_n_s32(vaddvq_s32(x_i32x4)));
    for (int q = 0; q < 4; q++) vst1q_s32(sums + 4 * q, vaddq_s32(sums_i32x4[q], all_x_i32x4));
}

/* The rows of `quads` registers of a tile, four rows each. `quads` and `tokens` are constants where this is inlined, so
 * the loops over them unroll and the sums, at most 16, stay in registers. */
BITNET_INLINE void t5_rows_neondot(const uint8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums,
                                   ptrdiff_t tiles, const int quads, const int tokens) {
    const int8x16_t limit_i8x16 = vdupq_n_s8(42), lower_i8x16 = vdupq_n_s8(-43), three_i8x16 = vdupq_n_s8(3);
    int32x4_t sums_i32x4[4][BITNET_TOKENS];
    for (int q = 0; q < quads; q++)
        for (int t = 0; t < tokens; t++) sums_i32x4[q][t] = vdupq_n_s32(0);

    for (ptrdiff_t tile = 0; tile < tiles; tile++) {
        const uint8_t *at = w + tile * BITNET_TILE_BYTES;
        BITNET_PREFETCH(at + BITNET_PREFETCH_BYTES);
        int8x16_t x_i8x16[BITNET_TOKENS], minus_i8x16[4];
        for (int t = 0; t < tokens; t++) x_i8x16[t] = vld1q_s8(x + t * x_stride + tile * 20);
        for (int q = 0; q < quads; q++) {
            int8x16_t fraction_i8x16 = vreinterpretq_s8_u8(vld1q_u8(at + 16 * q));
#define T5_GROUP                                                                                                       \
    minus_i8x16[q] = vreinterpretq_s8_u8(                                                                              \
        vaddq_u8(vcgtq_s8(fraction_i8x16, lower_i8x16), vcgtq_s8(fraction_i8x16, limit_i8x16)));                       \
    fraction_i8x16 = vmulq_s8(fraction_i8x16, three_i8x16);
#define T5_PRODUCTS(g)                                                                                                 \
    for (int t = 0; t < tokens; t++)                                                                                   \
        sums_i32x4[q][t] = vdotq_laneq_s32(sums_i32x4[q][t], minus_i8x16[q], x_i8x16[t], g);
            T5_GROUP T5_PRODUCTS(0) T5_GROUP T5_PRODUCTS(1)
            T5_GROUP T5_PRODUCTS(2) T5_GROUP T5_PRODUCTS(3) T5_GROUP
#undef T5_GROUP
#undef T5_PRODUCTS
        }
        for (int t = 0; t < tokens; t++) {
            const int8x16_t last_x_i8x16 = t5_four_inputs_neondot(x + t * x_stride + tile * 20 + 16);
            for (int q = 0; q < quads; q++)
                sums_i32x4[q][t] = vdotq_s32(sums_i32x4[q][t], minus_i8x16[q], last_x_i8x16);
        }
    }
    for (int q = 0; q < quads; q++)
        for (int t = 0; t < tokens; t++) vst1q_s32(sums + 16 * t + 4 * q, vnegq_s32(sums_i32x4[q][t]));
}

/* More than four tokens go over the tiles twice, eight rows at a time: their codes are still decoded only once. */
BITNET_KERNEL void t5_panel_neondot(const uint8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums,
                                    ptrdiff_t tiles, ptrdiff_t tokens) {
    BITNET_ASSERT_PANEL(w, tiles, tokens);
    switch (tokens) {
    case 1: t5_token_neondot(w, x, sums, tiles); return;
    case 2: t5_rows_neondot(w, x, x_stride, sums, tiles, 4, 2); return;
    case 3: t5_rows_neondot(w, x, x_stride, sums, tiles, 4, 3); return;
    case 4: t5_rows_neondot(w, x, x_stride, sums, tiles, 4, 4); return;
    default: break;
    }
    for (int half = 0; half < 2; half++, w += 32, sums += 8) switch (tokens) {
        case 5: t5_rows_neondot(w, x, x_stride, sums, tiles, 2, 5); break;
        case 6: t5_rows_neondot(w, x, x_stride, sums, tiles, 2, 6); break;
        case 7: t5_rows_neondot(w, x, x_stride, sums, tiles, 2, 7); break;
        default: t5_rows_neondot(w, x, x_stride, sums, tiles, 2, 8); break;
        }
}

BITNET_TARGET_END
#endif

#endif
