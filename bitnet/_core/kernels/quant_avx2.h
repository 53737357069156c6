/* Quantisation on AVX2. Contract: quant_kernel.h.
 *
 *   vcvtps2pd             halves of 8 floats to 4 doubles each: sums in 16 double lanes
 *   vpmaxud               of bit patterns: for floats without their sign the order is that of integers
 *   vcvtps2dq             rounds half to even
 *   vpackssdw, vpacksswb  i32 to i8 within 128-bit lanes; vpermd puts the lanes in order
 *   vmovntdq              a store around the caches; sfence orders it before what follows */
#ifndef BITNET_QUANT_AVX2_H
#define BITNET_QUANT_AVX2_H

#include "quant_kernel.h"

#if BITNET_X86
BITNET_TARGET("avx2")

BITNET_INLINE uint32_t quant_largest_avx2(__m256i max_u32x8) {
    uint32_t lanes[8], largest = 0;
    _mm256_storeu_si256((__m256i *)lanes, max_u32x8);
    for (int i = 0; i < 8; i++) largest = lanes[i] > largest ? lanes[i] : largest;
    return largest;
}

BITNET_KERNEL uint32_t quant_sum_abs_avx2(const float *x, ptrdiff_t n, double lanes[16]) {
    BITNET_ASSERT(n % QUANT_STEP == 0);
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256d sum_f64x4[4];
    __m256i max_u32x8[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int k = 0; k < 4; k++) sum_f64x4[k] = _mm256_loadu_pd(lanes + 4 * k);
    for (ptrdiff_t i = 0; i < n; i += 16) {
        BITNET_PREFETCH((const char *)(x + i) + 2048);
        for (int k = 0; k < 2; k++) {
            const __m256i abs_u32x8 = _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(x + i + 8 * k)), magnitude);
            const __m256 abs_f32x8 = _mm256_castsi256_ps(abs_u32x8);
            max_u32x8[k] = _mm256_max_epu32(max_u32x8[k], abs_u32x8);
            sum_f64x4[2 * k] = _mm256_add_pd(sum_f64x4[2 * k], _mm256_cvtps_pd(_mm256_castps256_ps128(abs_f32x8)));
            sum_f64x4[2 * k + 1] =
                _mm256_add_pd(sum_f64x4[2 * k + 1], _mm256_cvtps_pd(_mm256_extractf128_ps(abs_f32x8, 1)));
        }
    }
    for (int k = 0; k < 4; k++) _mm256_storeu_pd(lanes + 4 * k, sum_f64x4[k]);
    const uint32_t largest = quant_largest_avx2(_mm256_max_epu32(max_u32x8[0], max_u32x8[1]));
    _mm256_zeroupper();
    return largest;
}

BITNET_KERNEL uint32_t quant_max_abs_avx2(const float *x, ptrdiff_t n) {
    BITNET_ASSERT(n % QUANT_STEP == 0);
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i max_u32x8[4];
    for (int k = 0; k < 4; k++) max_u32x8[k] = _mm256_setzero_si256();
    for (ptrdiff_t i = 0; i < n; i += 32)
        for (int k = 0; k < 4; k++) {
            const __m256i x_u32x8 = _mm256_loadu_si256((const __m256i *)(x + i + 8 * k));
            max_u32x8[k] = _mm256_max_epu32(max_u32x8[k], _mm256_and_si256(x_u32x8, magnitude));
        }
    const uint32_t largest = quant_largest_avx2(_mm256_max_epu32(_mm256_max_epu32(max_u32x8[0], max_u32x8[1]),
                                                                 _mm256_max_epu32(max_u32x8[2], max_u32x8[3])));
    _mm256_zeroupper();
    return largest;
}

BITNET_INLINE __m256i quant_narrow_avx2(__m256i a_i32x8, __m256i b_i32x8, __m256i c_i32x8, __m256i d_i32x8) {
    const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i ab_i16x16 = _mm256_packs_epi32(a_i32x8, b_i32x8), cd_i16x16 = _mm256_packs_epi32(c_i32x8, d_i32x8);
    return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(ab_i16x16, cd_i16x16), in_order);
}

BITNET_KERNEL void quant_ternary_avx2(const float *x, ptrdiff_t n, float s, int8_t *t, int streams) {
    BITNET_ASSERT(n % QUANT_STEP == 0);
    const __m256 s_f32x8 = _mm256_set1_ps(s), one = _mm256_set1_ps(1.0f), minus_one = _mm256_set1_ps(-1.0f);
    streams = streams && (uintptr_t)t % 32 == 0;
    for (ptrdiff_t i = 0; i < n; i += 32) {
        __m256i t_i32x8[4];
        BITNET_PREFETCH((const char *)(x + i) + 2048);
        BITNET_PREFETCH((const char *)(x + i) + 2112);
        for (int k = 0; k < 4; k++) {
            const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(x + i + 8 * k), s_f32x8);
            t_i32x8[k] = _mm256_cvtps_epi32(_mm256_max_ps(_mm256_min_ps(scaled, one), minus_one));
        }
        const __m256i t_i8x32 = quant_narrow_avx2(t_i32x8[0], t_i32x8[1], t_i32x8[2], t_i32x8[3]);
        if (streams)
            _mm256_stream_si256((__m256i *)(t + i), t_i8x32);
        else
            _mm256_storeu_si256((__m256i *)(t + i), t_i8x32);
    }
    if (streams) _mm_sfence();
    _mm256_zeroupper();
}

BITNET_KERNEL int32_t quant_int8_avx2(const float *x, ptrdiff_t n, float a, int8_t *q) {
    BITNET_ASSERT(n % QUANT_STEP == 0);
    const __m256 a_f32x8 = _mm256_set1_ps(a);
    __m256i sum_i32x8[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (ptrdiff_t i = 0; i < n; i += 32) {
        __m256i q_i32x8[4];
        for (int k = 0; k < 4; k++) {
            q_i32x8[k] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i + 8 * k), a_f32x8));
            sum_i32x8[k % 2] = _mm256_add_epi32(sum_i32x8[k % 2], q_i32x8[k]);
        }
        _mm256_storeu_si256((__m256i *)(q + i), quant_narrow_avx2(q_i32x8[0], q_i32x8[1], q_i32x8[2], q_i32x8[3]));
    }
    int32_t lanes[8], sum = 0;
    _mm256_storeu_si256((__m256i *)lanes, _mm256_add_epi32(sum_i32x8[0], sum_i32x8[1]));
    for (int i = 0; i < 8; i++) sum += lanes[i];
    _mm256_zeroupper();
    return sum;
}

BITNET_TARGET_END
#endif

#endif
