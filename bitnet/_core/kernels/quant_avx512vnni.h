/* Quantisation on AVX-512. Contract: quant_kernel.h.
 *
 *   vcvtps2pd   8 floats to 8 doubles: sums in 16 double lanes
 *   vpmaxud     of bit patterns: for floats without their sign the order is that of integers
 *   vcvtps2dq   rounds half to even
 *   vpmovdb     i32 to i8
 *   vmovntdq    a store around the caches; sfence orders it before what follows */
#ifndef BITNET_QUANT_AVX512VNNI_H
#define BITNET_QUANT_AVX512VNNI_H

#include "quant_kernel.h"

#if BITNET_X86
BITNET_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")

BITNET_KERNEL uint32_t quant_sum_abs_avx512vnni(const float *x, ptrdiff_t n, double lanes[16]) {
    BITNET_ASSERT(n % QUANT_STEP == 0);
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512d low_f64x8 = _mm512_loadu_pd(lanes), high_f64x8 = _mm512_loadu_pd(lanes + 8);
    __m512i max_u32x16 = _mm512_setzero_si512();
    for (ptrdiff_t i = 0; i < n; i += 16) {
        BITNET_PREFETCH((const char *)(x + i) + 4096);
        const __m512i abs_u32x16 = _mm512_and_si512(_mm512_loadu_si512(x + i), magnitude);
        const __m512 abs_f32x16 = _mm512_castsi512_ps(abs_u32x16);
        max_u32x16 = _mm512_max_epu32(max_u32x16, abs_u32x16);
        low_f64x8 = _mm512_add_pd(low_f64x8, _mm512_cvtps_pd(_mm512_castps512_ps256(abs_f32x16)));
        high_f64x8 = _mm512_add_pd(high_f64x8, _mm512_cvtps_pd(_mm512_extractf32x8_ps(abs_f32x16, 1)));
    }
    _mm512_storeu_pd(lanes, low_f64x8);
    _mm512_storeu_pd(lanes + 8, high_f64x8);
    const uint32_t largest = _mm512_reduce_max_epu32(max_u32x16);
    _mm256_zeroupper();
    return largest;
}

BITNET_KERNEL uint32_t quant_max_abs_avx512vnni(const float *x, ptrdiff_t n) {
    BITNET_ASSERT(n % QUANT_STEP == 0);
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i max_u32x16[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    for (ptrdiff_t i = 0; i < n; i += 32)
        for (int k = 0; k < 2; k++)
            max_u32x16[k] =
                _mm512_max_epu32(max_u32x16[k], _mm512_and_si512(_mm512_loadu_si512(x + i + 16 * k), magnitude));
    const uint32_t largest = _mm512_reduce_max_epu32(_mm512_max_epu32(max_u32x16[0], max_u32x16[1]));
    _mm256_zeroupper();
    return largest;
}

BITNET_KERNEL void quant_ternary_avx512vnni(const float *x, ptrdiff_t n, float s, int8_t *t, int streams) {
    BITNET_ASSERT(n % QUANT_STEP == 0);
    const __m512 s_f32x16 = _mm512_set1_ps(s), one = _mm512_set1_ps(1.0f), minus_one = _mm512_set1_ps(-1.0f);
    streams = streams && (uintptr_t)t % 16 == 0;
    for (ptrdiff_t i = 0; i < n; i += 16) {
        BITNET_PREFETCH((const char *)(x + i) + 4096);
        const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(x + i), s_f32x16);
        const __m512i t_i32x16 = _mm512_cvtps_epi32(_mm512_max_ps(_mm512_min_ps(scaled, one), minus_one));
        if (streams)
            _mm_stream_si128((__m128i *)(t + i), _mm512_cvtepi32_epi8(t_i32x16));
        else
            _mm_storeu_si128((__m128i *)(t + i), _mm512_cvtepi32_epi8(t_i32x16));
    }
    if (streams) _mm_sfence();
    _mm256_zeroupper();
}

BITNET_KERNEL int32_t quant_int8_avx512vnni(const float *x, ptrdiff_t n, float a, int8_t *q) {
    BITNET_ASSERT(n % QUANT_STEP == 0);
    const __m512 a_f32x16 = _mm512_set1_ps(a);
    __m512i sum_i32x16[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    for (ptrdiff_t i = 0; i < n; i += 32)
        for (int k = 0; k < 2; k++) {
            const __m512i q_i32x16 = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i + 16 * k), a_f32x16));
            sum_i32x16[k] = _mm512_add_epi32(sum_i32x16[k], q_i32x16);
            _mm_storeu_si128((__m128i *)(q + i + 16 * k), _mm512_cvtepi32_epi8(q_i32x16));
        }
    const int32_t sum = _mm512_reduce_add_epi32(_mm512_add_epi32(sum_i32x16[0], sum_i32x16[1]));
    _mm256_zeroupper();
    return sum;
}

BITNET_TARGET_END
#endif

#endif
