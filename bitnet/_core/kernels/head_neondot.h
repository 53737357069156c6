/* The int8 head on NEON with the dot product of Armv8.2. Layout and contract: head_kernel.h.
 *
 *   sdot   multiplies i8 by i8, and sums four neighbours into the row's i32 lane */
#ifndef BITNET_HEAD_NEONDOT_H
#define BITNET_HEAD_NEONDOT_H

#include "head_kernel.h"

#if BITNET_ARM
/* clang knows such a region on Arm since its version 16. */
BITNET_TARGET("arch=armv8.2-a+dotprod")

/* `inputs`, at most 4, is a constant where this is inlined, so the sums stay in registers. */
BITNET_INLINE void head_rows_neondot(const int8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums,
                                     ptrdiff_t tiles, const int inputs) {
    int32x4_t sums_i32x4[4][4];
    for (int t = 0; t < inputs; t++)
        for (int q = 0; q < 4; q++) sums_i32x4[t][q] = vdupq_n_s32(0);
    for (ptrdiff_t tile = 0; tile < tiles; tile++) {
        const int8_t *at = w + tile * HEAD_TILE_BYTES;
        BITNET_PREFETCH(at + 4096);
        for (int t = 0; t < inputs; t++) {
            int32_t four;
            memcpy(&four, x + t * x_stride + tile * HEAD_COLS, 4);
            const int8x16_t in_i8x16 = vreinterpretq_s8_s32(vdupq_n_s32(four));
            for (int q = 0; q < 4; q++)
                sums_i32x4[t][q] = vdotq_s32(sums_i32x4[t][q], vld1q_s8(at + 16 * q), in_i8x16);
        }
    }
    for (int t = 0; t < inputs; t++)
        for (int q = 0; q < 4; q++) vst1q_s32(sums + 16 * t + 4 * q, sums_i32x4[t][q]);
}

BITNET_KERNEL void head_panel_neondot(const int8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums,
                                      ptrdiff_t tiles, ptrdiff_t inputs) {
    BITNET_ASSERT((uintptr_t)w % HEAD_TILE_BYTES == 0 && tiles > 0);
    ptrdiff_t t = 0;
    for (; t + 4 <= inputs; t += 4) head_rows_neondot(w, x + t * x_stride, x_stride, sums + 16 * t, tiles, 4);
    if (t < inputs) head_rows_neondot(w, x + t * x_stride, x_stride, sums + 16 * t, tiles, 2);
}

BITNET_TARGET_END
#endif

#endif
