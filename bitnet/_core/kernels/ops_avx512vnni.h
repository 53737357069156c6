/* The operations on AVX-512: ops_body.h, whose vectors of 16 floats are one register here.
 *
 *   vcvtph2ps, vcvtps2ph    16 float16 to floats, and back
 *   vpmovzxwd, vpslld       16 bfloat16 to floats: they are their upper halves
 *   vpmovsxbd, vcvtdq2ps    16 int8 to floats */
#ifndef BITNET_OPS_AVX512VNNI_H
#define BITNET_OPS_AVX512VNNI_H

#include "ops_kernel.h"

#if BITNET_X86
BITNET_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")

#define OPS(name) ops_##name##_avx512vnni
#define OPS_END() _mm256_zeroupper()
#define OPS_HALVES(from, to)                                                             \
    {                                                                                    \
        const __m512 all = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(from))); \
        memcpy(to, &all, 64);                                                            \
    }

#define OPS_BRAINS(from, to)                                                                                         \
    {                                                                                                                \
        const __m512i all = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(from)));                      \
        const __m512i floats = _mm512_slli_epi32(all, 16);                                                           \
        memcpy(to, &floats, 64);                                                                                     \
    }
#define OPS_BYTES(from, to)                                                                                          \
    {                                                                                                                \
        const __m512i all = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(from)));                          \
        const __m512 floats = _mm512_cvtepi32_ps(all);                                                               \
        memcpy(to, &floats, 64);                                                                                     \
    }

#define OPS_TO_HALVES(from, to)                                                                                      \
    _mm256_storeu_si256((__m256i *)(to), _mm512_cvtps_ph(_mm512_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT))
#define OPS_TILE 4

#include "ops_body.h"

BITNET_TARGET_END
#endif

#endif
