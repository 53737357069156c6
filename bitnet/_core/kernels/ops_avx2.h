/* The operations on AVX2: ops_body.h, whose vectors of 16 floats are two registers here.
 *
 *   vcvtph2ps, vcvtps2ph     8 float16 to floats (F16C, which is part of CPU_AVX2), and back
 *   vpmovzxwd, vpslld        8 bfloat16 to floats: they are their upper halves
 *   vpmovsxbd, vcvtdq2ps     8 int8 to floats
 *   vfmadd231ps              the products of attention
 *   vpsignb, vpmaddubsw,     those with an int8 cache: |a| (sign of a) b, pairs summed to i16, at most 2 * 127 * 128 in
 *   vpmaddwd                 magnitude, and pairs of them to i32 */
#ifndef BITNET_OPS_AVX2_H
#define BITNET_OPS_AVX2_H

#include "ops_kernel.h"

#if BITNET_X86
BITNET_TARGET("avx2,f16c,fma")

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
#define OPS_FUSE(a, b, c, to)                                                                          \
    {                                                                                                  \
        const f32x16 a_f32x16 = a, b_f32x16 = b, c_f32x16 = c;                                         \
        for (int k = 0; k < 2; k++) {                                                                  \
            const __m256 eight_f32x8 = _mm256_fmadd_ps(_mm256_loadu_ps((const float *)&a_f32x16 + 8 * k), \
                                                       _mm256_loadu_ps((const float *)&b_f32x16 + 8 * k), \
                                                       _mm256_loadu_ps((const float *)&c_f32x16 + 8 * k)); \
            memcpy((char *)(to) + 32 * k, &eight_f32x8, 32);                                           \
        }                                                                                              \
    }
/* vmaxps gives the second operand where one is a NaN. */
#define OPS_RAISE(most, other)                                                                         \
    {                                                                                                  \
        const f32x16 other_f32x16 = other;                                                             \
        for (int k = 0; k < 2; k++) {                                                                  \
            const __m256 eight_f32x8 = _mm256_max_ps(_mm256_loadu_ps((const float *)&other_f32x16 + 8 * k), \
                                                     _mm256_loadu_ps((const float *)(most) + 8 * k));  \
            memcpy((char *)(most) + 32 * k, &eight_f32x8, 32);                                         \
        }                                                                                              \
    }
#define OPS_TILE 1

/* 8 sums in registers: 4 queries by 16 numbers, which are taken once for all 4. */
BITNET_INLINE void ops_tile_avx2(const int dtype, const int queries, const int vectors, const float *const *a,
                                 ptrdiff_t from, ptrdiff_t to, const char *b, ptrdiff_t row, ptrdiff_t ahead,
                                 float acc[OPS_QUERIES][16 * OPS_TILE]) {
    __m256 sums_f32x8[OPS_QUERIES][2], taken_f32x8[2];
    for (int q = 0; q < queries; q++)
        for (int v = 0; v < 2; v++) sums_f32x8[q][v] = _mm256_loadu_ps(acc[q] + 8 * v);
    for (ptrdiff_t k = from; k < to; k++) {
        const char *at = b + k * row;
        for (int line = 0; line < 16 * vectors * OPS_BYTES_OF(dtype); line += 64) BITNET_PREFETCH_L2(at + ahead + line);
        if (dtype == OPS_FLOAT32) {
            for (int v = 0; v < 2; v++) taken_f32x8[v] = _mm256_loadu_ps((const float *)at + 8 * v);
        } else {
            OPS_HALVES((const uint16_t *)at, taken_f32x8);
        }
        for (int q = 0; q < queries; q++) {
            const __m256 times_f32x8 = _mm256_set1_ps(a[q][k]);
            for (int v = 0; v < 2; v++)
                sums_f32x8[q][v] = _mm256_fmadd_ps(taken_f32x8[v], times_f32x8, sums_f32x8[q][v]);
        }
    }
    for (int q = 0; q < queries; q++)
        for (int v = 0; v < 2; v++) _mm256_storeu_ps(acc[q] + 8 * v, sums_f32x8[q][v]);
    (void)vectors;
}

#define OPS_DOTS 1
#define OPS_BIAS 0

/* Both planes of a query by 16 numbers in registers; they are taken anew for each query. */
BITNET_INLINE void ops_dots_avx2(const int is_keys, const int rows, const int vectors, const int8_t *const *a,
                                 ptrdiff_t groups, const char *b, ptrdiff_t row, ptrdiff_t ahead,
                                 int32_t acc[][16 * OPS_DOTS]) {
    const __m256i ones_i16x16 = _mm256_set1_epi16(1), flip_u8x32 = _mm256_set1_epi8((char)0x80);
    for (int first = 0; first < rows; first += 2) {
        __m256i sums_i32x8[2][2];
        for (int r = 0; r < 2; r++)
            for (int v = 0; v < 2; v++)
                sums_i32x8[r][v] = _mm256_loadu_si256((const __m256i *)(acc[first + r] + 8 * v));
        for (ptrdiff_t g = 0; g < groups; g++) {
            const char *at = b + g * row;
            if (first == 0) BITNET_PREFETCH_L2(at + ahead);
            __m256i taken_i8x32[2];
            for (int v = 0; v < 2; v++) {
                taken_i8x32[v] = _mm256_loadu_si256((const __m256i *)(at + 32 * v));
                if (is_keys) taken_i8x32[v] = _mm256_xor_si256(taken_i8x32[v], flip_u8x32);
            }
            for (int r = 0; r < 2; r++) {
                int32_t four;
                memcpy(&four, a[first + r] + 4 * g, 4);
                const __m256i four_i8x32 = _mm256_set1_epi32(four), size_u8x32 = _mm256_abs_epi8(four_i8x32);
                for (int v = 0; v < 2; v++) {
                    const __m256i pairs_i16x16 =
                        is_keys ? _mm256_maddubs_epi16(size_u8x32, _mm256_sign_epi8(taken_i8x32[v], four_i8x32))
                                : _mm256_maddubs_epi16(four_i8x32, taken_i8x32[v]);
                    sums_i32x8[r][v] = _mm256_add_epi32(sums_i32x8[r][v], _mm256_madd_epi16(pairs_i16x16, ones_i16x16));
                }
            }
        }
        for (int r = 0; r < 2; r++)
            for (int v = 0; v < 2; v++) _mm256_storeu_si256((__m256i *)(acc[first + r] + 8 * v), sums_i32x8[r][v]);
    }
    (void)vectors;
}

#include "ops_body.h"

BITNET_TARGET_END
#endif

#endif
