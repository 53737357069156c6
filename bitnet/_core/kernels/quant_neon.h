/* Quantisation on NEON. Contract: quant_kernel.h.
 *
 *   fcvtl, fcvtl2   halves of 4 floats to 2 doubles each: sums in 16 double lanes
 *   umax            of bit patterns: for floats without their sign the order is that of integers
 *   fcvtns          rounds half to even
 *   uzp1            the low halves of two registers: i32 to i16, then to i8
 *   saddlp, sadalp  i8 pairs summed to i16, i16 pairs added to i32 */
#ifndef BITNET_QUANT_NEON_H
#define BITNET_QUANT_NEON_H

#include "quant_kernel.h"

#if BITNET_ARM
/* No target region: the ABI has NEON. */

BITNET_INLINE uint32x4_t quant_magnitude_neon(const float *x) {
    return vandq_u32(vreinterpretq_u32_f32(vld1q_f32(x)), vdupq_n_u32(0x7fffffff));
}

BITNET_KERNEL uint32_t quant_sum_abs_neon(const float *x, ptrdiff_t n, double lanes[16]) {
    BITNET_ASSERT(n % QUANT_STEP == 0);
    float64x2_t sum_f64x2[8];
    uint32x4_t max_u32x4[4];
    for (int k = 0; k < 8; k++) sum_f64x2[k] = vld1q_f64(lanes + 2 * k);
    for (int k = 0; k < 4; k++) max_u32x4[k] = vdupq_n_u32(0);
    for (ptrdiff_t i = 0; i < n; i += 16) {
        BITNET_PREFETCH((const char *)(x + i) + 2048);
        for (int k = 0; k < 4; k++) {
            const uint32x4_t abs_u32x4 = quant_magnitude_neon(x + i + 4 * k);
            const float32x4_t abs_f32x4 = vreinterpretq_f32_u32(abs_u32x4);
            max_u32x4[k] = vmaxq_u32(max_u32x4[k], abs_u32x4);
            sum_f64x2[2 * k] = vaddq_f64(sum_f64x2[2 * k], vcvt_f64_f32(vget_low_f32(abs_f32x4)));
            sum_f64x2[2 * k + 1] = vaddq_f64(sum_f64x2[2 * k + 1], vcvt_high_f64_f32(abs_f32x4));
        }
    }
    for (int k = 0; k < 8; k++) vst1q_f64(lanes + 2 * k, sum_f64x2[k]);
    return vmaxvq_u32(vmaxq_u32(vmaxq_u32(max_u32x4[0], max_u32x4[1]), vmaxq_u32(max_u32x4[2], max_u32x4[3])));
}

BITNET_KERNEL uint32_t quant_max_abs_neon(const float *x, ptrdiff_t n) {
    BITNET_ASSERT(n % QUANT_STEP == 0);
    uint32x4_t max_u32x4[4];
    for (int k = 0; k < 4; k++) max_u32x4[k] = vdupq_n_u32(0);
    for (ptrdiff_t i = 0; i < n; i += 16)
        for (int k = 0; k < 4; k++) max_u32x4[k] = vmaxq_u32(max_u32x4[k], quant_magnitude_neon(x + i + 4 * k));
    return vmaxvq_u32(vmaxq_u32(vmaxq_u32(max_u32x4[0], max_u32x4[1]), vmaxq_u32(max_u32x4[2], max_u32x4[3])));
}

BITNET_INLINE int8x16_t quant_narrow_neon(int32x4_t a_i32x4, int32x4_t b_i32x4, int32x4_t c_i32x4, int32x4_t d_i32x4) {
    const int16x8_t ab_i16x8 = vuzp1q_s16(vreinterpretq_s16_s32(a_i32x4), vreinterpretq_s16_s32(b_i32x4));
    const int16x8_t cd_i16x8 = vuzp1q_s16(vreinterpretq_s16_s32(c_i32x4), vreinterpretq_s16_s32(d_i32x4));
    return vuzp1q_s8(vreinterpretq_s8_s16(ab_i16x8), vreinterpretq_s8_s16(cd_i16x8));
}

BITNET_KERNEL void quant_ternary_neon(const float *x, ptrdiff_t n, float s, int8_t *t, int streams) {
    BITNET_ASSERT(n % QUANT_STEP == 0);
    (void)streams; /* NEON has no such store */
    const float32x4_t s_f32x4 = vdupq_n_f32(s), one = vdupq_n_f32(1.0f), minus_one = vdupq_n_f32(-1.0f);
    for (ptrdiff_t i = 0; i < n; i += 16) {
        int32x4_t t_i32x4[4];
        BITNET_PREFETCH((const char *)(x + i) + 2048);
        for (int k = 0; k < 4; k++) {
            const float32x4_t scaled = vmulq_f32(vld1q_f32(x + i + 4 * k), s_f32x4);
            t_i32x4[k] = vcvtnq_s32_f32(vmaxq_f32(vminq_f32(scaled, one), minus_one));
        }
        vst1q_s8(t + i, quant_narrow_neon(t_i32x4[0], t_i32x4[1], t_i32x4[2], t_i32x4[3]));
    }
}

BITNET_KERNEL int32_t quant_int8_neon(const float *x, ptrdiff_t n, float a, int8_t *q) {
    BITNET_ASSERT(n % QUANT_STEP == 0);
    const float32x4_t a_f32x4 = vdupq_n_f32(a);
    int32x4_t sum_i32x4 = vdupq_n_s32(0);
    for (ptrdiff_t i = 0; i < n; i += 16) {
        int32x4_t q_i32x4[4];
        for (int k = 0; k < 4; k++) q_i32x4[k] = vcvtnq_s32_f32(vmulq_f32(vld1q_f32(x + i + 4 * k), a_f32x4));
        const int8x16_t q_i8x16 = quant_narrow_neon(q_i32x4[0], q_i32x4[1], q_i32x4[2], q_i32x4[3]);
        vst1q_s8(q + i, q_i8x16);
        sum_i32x4 = vpadalq_s16(sum_i32x4, vpaddlq_s8(q_i8x16));
    }
    return vaddvq_s32(sum_i32x4);
}

#endif

#endif
