/* The operations on AVX2: ops_body.h, whose vectors of 16 floats are two registers here.
 *
 *   vcvtph2ps, vcvtps2ph     8 float16 to floats (F16C, which is part of CPU_AVX2), and back
 *   vpmovzxwd, vpslld        8 bfloat16 to floats: they are their upper halves
 *   vpmovsxbd, vcvtdq2ps     8 int8 to floats */
#ifndef BITNET_OPS_AVX2_H
#define BITNET_OPS_AVX2_H

#include "ops_kernel.h"

#if BITNET_X86
BITNET_TARGET("avx2,f16c")

#define OPS(name) ops_##name##_avx2
#define OPS_END() _mm256_zeroupper()
#define OPS_HALVES(from, to)                                                                \
    {                                                                                       \
        const __m256 low = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from)));       \
        const __m256 high = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((from) + 8))); \
        memcpy(to, &low, 32);                                                               \
        memcpy((char *)(to) + 32, &high, 32);                                               \
    }

#define OPS_BRAINS(from, to)                                                                           \
    for (int k = 0; k < 2; k++) {                                                                      \
        const __m128i eight_u16x8 = _mm_loadu_si128((const __m128i *)((from) + 8 * k));                \
        const __m256i eight_u32x8 = _mm256_slli_epi32(_mm256_cvtepu16_epi32(eight_u16x8), 16);         \
        memcpy((char *)(to) + 32 * k, &eight_u32x8, 32);                                               \
    }
#define OPS_BYTES(from, to)                                                                            \
    for (int k = 0; k < 2; k++) {                                                                      \
        const __m128i eight_i8x8 = _mm_loadl_epi64((const __m128i *)((from) + 8 * k));                 \
        const __m256 eight_f32x8 = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight_i8x8));               \
        memcpy((char *)(to) + 32 * k, &eight_f32x8, 32);                                               \
    }

#define OPS_TO_HALVES(from, to)                                                                        \
    for (int k = 0; k < 2; k++) {                                                                      \
        const __m256 eight_f32x8 = _mm256_loadu_ps((from) + 8 * k);                                    \
        _mm_storeu_si128((__m128i *)((to) + 8 * k), _mm256_cvtps_ph(eight_f32x8, _MM_FROUND_TO_NEAREST_INT)); \
    }
#define OPS_TILE 1

#include "ops_body.h"

BITNET_TARGET_END
#endif

#endif
