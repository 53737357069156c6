/* The operations on AVX-512: ops_body.h, whose vectors of 16 floats are one register here.
 *
 *   vcvtph2ps, vcvtps2ph    16 float16 to floats, and back
 *   vpmovzxwd, vpslld       16 bfloat16 to floats: they are their upper halves
 *   vpmovsxbd, vcvtdq2ps    16 int8 to floats
 *   vfmadd231ps             the products of attention
 *   vpdpbusd                those with an int8 cache: u8 of the cache x i8, four neighbours summed to i32 */
#ifndef BITNET_OPS_AVX512VNNI_H
#define BITNET_OPS_AVX512VNNI_H

#include "ops_kernel.h"

#if BITNET_X86
BITNET_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c,fma")

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
#define OPS_FUSE(a, b, c, to)                                                                                        \
    {                                                                                                                \
        const f32x16 a_f32x16 = a, b_f32x16 = b, c_f32x16 = c;                                                       \
        const __m512 all = _mm512_fmadd_ps(_mm512_loadu_ps(&a_f32x16), _mm512_loadu_ps(&b_f32x16),                   \
                                           _mm512_loadu_ps(&c_f32x16));                                              \
        memcpy(to, &all, 64);                                                                                        \
    }
/* vmaxps gives the second operand where one is a NaN. */
#define OPS_RAISE(most, other)                                                                                       \
    {                                                                                                                \
        const f32x16 other_f32x16 = other;                                                                           \
        const __m512 all = _mm512_max_ps(_mm512_loadu_ps(&other_f32x16), _mm512_loadu_ps(most));                     \
        memcpy(most, &all, 64);                                                                                      \
    }
#define OPS_TILE 4

/* 16 sums in registers: 4 queries by 64 numbers, which are taken once for all 4. */
BITNET_INLINE void ops_tile_avx512vnni(const int dtype, const int queries, const int vectors, const float *const *a,
                                       ptrdiff_t from, ptrdiff_t to, const char *b, ptrdiff_t row, ptrdiff_t ahead,
                                       float acc[OPS_QUERIES][16 * OPS_TILE]) {
    __m512 sums_f32x16[OPS_QUERIES][OPS_TILE], taken_f32x16[OPS_TILE];
    for (int q = 0; q < queries; q++)
        for (int v = 0; v < vectors; v++) sums_f32x16[q][v] = _mm512_loadu_ps(acc[q] + 16 * v);
    for (ptrdiff_t k = from; k < to; k++) {
        const char *at = b + k * row;
        for (int line = 0; line < 16 * vectors * OPS_BYTES_OF(dtype); line += 64) BITNET_PREFETCH_L2(at + ahead + line);
        for (int v = 0; v < vectors; v++) {
            if (dtype == OPS_FLOAT32) {
                taken_f32x16[v] = _mm512_loadu_ps(at + 64 * v);
            } else {
                OPS_HALVES((const uint16_t *)at + 16 * v, &taken_f32x16[v]);
            }
        }
        for (int q = 0; q < queries; q++) {
            const __m512 times_f32x16 = _mm512_set1_ps(a[q][k]);
            for (int v = 0; v < vectors; v++)
                sums_f32x16[q][v] = _mm512_fmadd_ps(taken_f32x16[v], times_f32x16, sums_f32x16[q][v]);
        }
    }
    for (int q = 0; q < queries; q++)
        for (int v = 0; v < vectors; v++) _mm512_storeu_ps(acc[q] + 16 * v, sums_f32x16[q][v]);
}

#define OPS_DOTS 2
#define OPS_BIAS 128

/* 16 sums in registers: both planes of 4 queries by 32 numbers. */
BITNET_INLINE void ops_dots_avx512vnni(const int is_keys, const int rows, const int vectors, const int8_t *const *a,
                                       ptrdiff_t groups, const char *b, ptrdiff_t row, ptrdiff_t ahead,
                                       int32_t acc[][16 * OPS_DOTS]) {
    __m512i sums_i32x16[2 * OPS_QUERIES][OPS_DOTS], taken_8x64[OPS_DOTS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) sums_i32x16[r][v] = _mm512_loadu_si512(acc[r] + 16 * v);
    for (ptrdiff_t g = 0; g < groups; g++) {
        const char *at = b + g * row;
        for (int v = 0; v < vectors; v++) {
            BITNET_PREFETCH_L2(at + ahead + 64 * v);
            taken_8x64[v] = _mm512_loadu_si512(at + 64 * v);
        }
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, a[r] + 4 * g, 4);
            const __m512i four_8x64 = _mm512_set1_epi32(four);
            for (int v = 0; v < vectors; v++)
                if (is_keys) {
                    BITNET_DPBUSD_512(sums_i32x16[r][v], taken_8x64[v], four_8x64);
                } else {
                    BITNET_DPBUSD_512(sums_i32x16[r][v], four_8x64, taken_8x64[v]);
                }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) _mm512_storeu_si512(acc[r] + 16 * v, sums_i32x16[r][v]);
}

#include "ops_body.h"

BITNET_TARGET_END
#endif

#endif
