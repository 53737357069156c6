/* The int8 head on AVX2. Layout and contract: head_kernel.h.
 *
 *   vpmovsxbw   weights as i16
 *   vpmaddwd    i16 x i16, pairs summed to i32
 *
 * A byte of inputs at a time would need vpsignb, vpmaddubsw and vpmaddwd for each of two bytes. A pair is at most
 * 2 * 128 * 32639 in magnitude, and 256 of them fit i32; chunks of so many tiles are added up as doubles, which are exact
 * below 2^53. */
#ifndef BITNET_HEAD_AVX2_H
#define BITNET_HEAD_AVX2_H

#include "head_kernel.h"

#if BITNET_X86
BITNET_TARGET("avx2")

enum { HEAD_AVX2_CHUNK_TILES = 256, HEAD_AVX2_TOKENS = 4 };

/* Adds the sums of four rows, each in two lanes. */
BITNET_INLINE void head_add_avx2(double *to, __m256i pairs_i32x8) {
    const __m256d low_f64x4 = _mm256_cvtepi32_pd(_mm256_castsi256_si128(pairs_i32x8));
    const __m256d high_f64x4 = _mm256_cvtepi32_pd(_mm256_extracti128_si256(pairs_i32x8, 1));
    /* Rows 0, 2, 1, 3. */
    const __m256d rows_f64x4 = _mm256_hadd_pd(low_f64x4, high_f64x4);
    _mm256_storeu_pd(to, _mm256_add_pd(_mm256_loadu_pd(to), _mm256_permute4x64_pd(rows_f64x4, 0xd8)));
}

/* Adds what up to HEAD_AVX2_CHUNK_TILES tiles give, for 4 * `quarters` rows from `w` on; `quarters` and `tokens`, 8 in their
 * product at most, are constants where this is inlined, so the sums stay in registers. `step` bytes a tile are fetched from
 * `next` on. */
BITNET_INLINE void head_rows_avx2(const int8_t *w, const int16_t *x, ptrdiff_t x_stride, double *sums, ptrdiff_t tiles,
                                  const int8_t *next, ptrdiff_t step, const int quarters, const int tokens) {
    __m256i pairs_i32x8[8];
    for (int i = 0; i < quarters * tokens; i++) pairs_i32x8[i] = _mm256_setzero_si256();
    for (ptrdiff_t tile = 0; tile < tiles; tile++) {
        const int8_t *at = w + tile * HEAD_TILE_BYTES;
        if (step == HEAD_TILE_BYTES)
            BITNET_PREFETCH(next + tile * step);
        else
            BITNET_PREFETCH_L2(next + tile * step);
        __m256i w_i16x16[4];
        for (int i = 0; i < quarters; i++)
            w_i16x16[i] = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(at + 16 * i)));
        for (int t = 0; t < tokens; t++) {
            int64_t four;
            memcpy(&four, x + t * x_stride + tile * HEAD_COLS, 8);
            const __m256i x_i16x16 = _mm256_set1_epi64x(four);
            for (int i = 0; i < quarters; i++) {
                __m256i *sum = &pairs_i32x8[quarters * t + i];
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(w_i16x16[i], x_i16x16));
                BITNET_KEEP_SUM(*sum);
            }
        }
    }
    for (int t = 0; t < tokens; t++)
        for (int i = 0; i < quarters; i++) head_add_avx2(sums + HEAD_ROWS * t + 4 * i, pairs_i32x8[quarters * t + i]);
}

/* One or two tokens take whole panels as memory gives them. More of them take half a panel at a time, so that a row is widened
 * once for up to four, and go over it several times: each time a part of the next panel is fetched. */
BITNET_KERNEL void head_wide_avx2(const int8_t *w, const int16_t *x, ptrdiff_t x_stride, double *sums, ptrdiff_t tiles,
                                  ptrdiff_t tokens) {
    BITNET_ASSERT((uintptr_t)w % HEAD_TILE_BYTES == 0 && tiles > 0 && tokens > 0 && tokens <= HEAD_MAX_TOKENS);
    memset(sums, 0, (size_t)tokens * HEAD_ROWS * sizeof(double));
    for (ptrdiff_t start = 0; start < tiles; start += HEAD_AVX2_CHUNK_TILES) {
        const ptrdiff_t some = tiles - start < HEAD_AVX2_CHUNK_TILES ? tiles - start : HEAD_AVX2_CHUNK_TILES;
        const ptrdiff_t step = tokens <= 2 ? HEAD_TILE_BYTES : tokens <= 4 ? HEAD_TILE_BYTES / 2 : HEAD_TILE_BYTES / 4;
        const int8_t *chunk = w + start * HEAD_TILE_BYTES;
        const int8_t *next = chunk + (tokens <= 2 ? 4096 : tiles * HEAD_TILE_BYTES);
        for (ptrdiff_t t = 0; t < tokens; t += HEAD_AVX2_TOKENS) {
            const int16_t *in = x + t * x_stride + start * HEAD_COLS;
            double *to = sums + t * HEAD_ROWS;
            if (tokens == 1) {
                head_rows_avx2(chunk, in, x_stride, to, some, next, HEAD_TILE_BYTES, 4, 1);
            } else if (tokens == 2) {
                head_rows_avx2(chunk, in, x_stride, to, some, next, HEAD_TILE_BYTES, 4, 2);
            } else {
                for (int half = 0; half < 2; half++, next += some * step) {
                    const int8_t *at = chunk + 32 * half;
                    switch (tokens - t) {
                    case 1: head_rows_avx2(at, in, x_stride, to + 8 * half, some, next, step, 2, 1); break;
                    case 2: head_rows_avx2(at, in, x_stride, to + 8 * half, some, next, step, 2, 2); break;
                    case 3: head_rows_avx2(at, in, x_stride, to + 8 * half, some, next, step, 2, 3); break;
                    default: head_rows_avx2(at, in, x_stride, to + 8 * half, some, next, step, 2, 4);
                    }
                }
            }
        }
    }
    _mm256_zeroupper();
}

BITNET_TARGET_END
#endif

#endif
