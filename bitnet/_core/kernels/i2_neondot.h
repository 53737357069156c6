/* i2 on NEON with the dot product of Armv8.2. Layout: packings/i2.pyx. Contract: kernel.h.
 *
 *   ushr, and   bring a group's 2-bit fields down, four rows of four columns a register
 *   sdot        i8 codes x i8 inputs, four neighbours summed into the row's i32 lane; the inputs of a tile are the
 *               four lanes of one register
 *
 * There is no int16 to overflow. Group 1 of one and two tokens stays two bits up, which saves its shift and gives the
 * sums a second set of registers to hide the latency of sdot in: sums of 4 x code * x, kept apart and divided by 4
 * at the end, without remainder. They cover a quarter of the columns: 4 * 2 * 128 * BITNET_MAX_COLS / 4 = 2^30. */
#ifndef BITNET_I2_NEONDOT_H
#define BITNET_I2_NEONDOT_H

#include "kernel.h"

#if BITNET_ARM
/* clang knows such a region on Arm since its version 16. */
BITNET_TARGET("arch=armv8.2-a+dotprod")

/* The rows of `quads` registers of a tile, four rows each. `quads` and `tokens` are constants where this is inlined, so
 * the loops over them unroll and the sums, at most 16, stay in registers. */
BITNET_INLINE void i2_rows_neondot(const uint8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums,
                                   ptrdiff_t tiles, const int quads, const int tokens) {
    const int apart = tokens <= 2;
    const uint8x16_t ones_u8x16 = vdupq_n_u8(0x03), fours_u8x16 = vdupq_n_u8(0x0c);
    int32x4_t sums_i32x4[2][4][BITNET_TOKENS];
    for (int q = 0; q < quads; q++)
        for (int t = 0; t < tokens; t++) sums_i32x4[0][q][t] = sums_i32x4[1][q][t] = vdupq_n_s32(0);

    for (ptrdiff_t tile = 0; tile < tiles; tile++) {
        const uint8_t *at = w + tile * BITNET_TILE_BYTES;
        BITNET_PREFETCH(at + BITNET_PREFETCH_BYTES);
        int8x16_t x_i8x16[BITNET_TOKENS];
        for (int t = 0; t < tokens; t++) x_i8x16[t] = vld1q_s8(x + t * x_stride + tile * 16);
        for (int q = 0; q < quads; q++) {
            const uint8x16_t packed_u8x16 = vld1q_u8(at + 16 * q);
            const uint8x16_t group1_u8x16 =
                apart ? vandq_u8(packed_u8x16, fours_u8x16) : vandq_u8(vshrq_n_u8(packed_u8x16, 2), ones_u8x16);
            const int8x16_t group0_i8x16 = vreinterpretq_s8_u8(vandq_u8(packed_u8x16, ones_u8x16));
            const int8x16_t group1_i8x16 = vreinterpretq_s8_u8(group1_u8x16);
            const int8x16_t group2_i8x16 = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(packed_u8x16, 4), ones_u8x16));
            const int8x16_t group3_i8x16 = vreinterpretq_s8_u8(vshrq_n_u8(packed_u8x16, 6));
            for (int t = 0; t < tokens; t++) {
                int32x4_t *one = &sums_i32x4[0][q][t], *four = &sums_i32x4[apart][q][t];
                *one = vdotq_laneq_s32(*one, group0_i8x16, x_i8x16[t], 0);
                *four = vdotq_laneq_s32(*four, group1_i8x16, x_i8x16[t], 1);
                *one = vdotq_laneq_s32(*one, group2_i8x16, x_i8x16[t], 2);
                *one = vdotq_laneq_s32(*one, group3_i8x16, x_i8x16[t], 3);
            }
        }
    }
    for (int q = 0; q < quads; q++)
        for (int t = 0; t < tokens; t++) {
            const int32x4_t one = sums_i32x4[0][q][t], four = sums_i32x4[1][q][t];
            vst1q_s32(sums + 16 * t + 4 * q, apart ? vsraq_n_s32(one, four, 2) : one);
        }
}

/* More than four tokens go over the tiles twice, eight rows at a time: their codes are still decoded only once. */
BITNET_KERNEL void i2_panel_neondot(const uint8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums,
                                    ptrdiff_t tiles, ptrdiff_t tokens) {
    BITNET_ASSERT_PANEL(w, tiles, tokens);
    switch (tokens) {
    case 1: i2_rows_neondot(w, x, x_stride, sums, tiles, 4, 1); return;
    case 2: i2_rows_neondot(w, x, x_stride, sums, tiles, 4, 2); return;
    case 3: i2_rows_neondot(w, x, x_stride, sums, tiles, 4, 3); return;
    case 4: i2_rows_neondot(w, x, x_stride, sums, tiles, 4, 4); return;
    default: break;
    }
    for (int half = 0; half < 2; half++, w += 32, sums += 8) switch (tokens) {
        case 5: i2_rows_neondot(w, x, x_stride, sums, tiles, 2, 5); break;
        case 6: i2_rows_neondot(w, x, x_stride, sums, tiles, 2, 6); break;
        case 7: i2_rows_neondot(w, x, x_stride, sums, tiles, 2, 7); break;
        default: i2_rows_neondot(w, x, x_stride, sums, tiles, 2, 8); break;
        }
}

BITNET_TARGET_END
#endif

#endif
