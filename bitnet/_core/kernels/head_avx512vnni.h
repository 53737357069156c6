/* The int8 head on AVX512-VNNI. Layout and contract: head_kernel.h.
 *
 *   vpxord     weights from -127..127 to 1..255, because
 *   vpdpbusd   multiplies u8 by i8, and sums four neighbours into the row's i32 lane */
#ifndef BITNET_HEAD_AVX512VNNI_H
#define BITNET_HEAD_AVX512VNNI_H

#include "head_kernel.h"

#if BITNET_X86
BITNET_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")

BITNET_INLINE __m512i head_tile_avx512vnni(const int8_t *w) {
    return _mm512_xor_si512(_mm512_load_si512(w), _mm512_set1_epi8((char)0x80));
}

BITNET_INLINE __m512i head_inputs_avx512vnni(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
}

/* `inputs` is a constant where this is inlined. vpdpbusd takes 4 cycles: with 2 rows of inputs every other tile has sums
 * of its own, so that 4 chains run; with 16 there are no registers for that. */
BITNET_INLINE void head_rows_avx512vnni(const int8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums,
                                        ptrdiff_t tiles, const int inputs) {
    const int odd = inputs <= 8 ? HEAD_MAX_INPUTS : 0;
    __m512i sums_i32x16[2 * HEAD_MAX_INPUTS];
    for (int t = 0; t < inputs; t++) sums_i32x16[t] = sums_i32x16[t + odd] = _mm512_setzero_si512();
    ptrdiff_t tile = 0;
    for (; tile + 2 <= tiles; tile += 2) {
        const int8_t *at = w + tile * HEAD_TILE_BYTES;
        BITNET_PREFETCH(at + 4096);
        BITNET_PREFETCH(at + 4096 + 64);
        const __m512i first_u8x64 = head_tile_avx512vnni(at), second_u8x64 = head_tile_avx512vnni(at + 64);
        for (int t = 0; t < inputs; t++) {
            const int8_t *in = x + t * x_stride + tile * HEAD_COLS;
            sums_i32x16[t] = _mm512_dpbusd_epi32(sums_i32x16[t], first_u8x64, head_inputs_avx512vnni(in));
            sums_i32x16[t + odd] =
                _mm512_dpbusd_epi32(sums_i32x16[t + odd], second_u8x64, head_inputs_avx512vnni(in + HEAD_COLS));
        }
    }
    if (tile < tiles) {
        const __m512i last_u8x64 = head_tile_avx512vnni(w + tile * HEAD_TILE_BYTES);
        for (int t = 0; t < inputs; t++)
            sums_i32x16[t] = _mm512_dpbusd_epi32(sums_i32x16[t], last_u8x64,
                                                 head_inputs_avx512vnni(x + t * x_stride + tile * HEAD_COLS));
    }
    for (int t = 0; t < inputs; t++) {
        const __m512i all = odd ? _mm512_add_epi32(sums_i32x16[t], sums_i32x16[t + odd]) : sums_i32x16[t];
        _mm512_storeu_si512(sums + 16 * t, all);
    }
}

BITNET_KERNEL void head_panel_avx512vnni(const int8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums,
                                         ptrdiff_t tiles, ptrdiff_t inputs) {
    BITNET_ASSERT((uintptr_t)w % HEAD_TILE_BYTES == 0 && tiles > 0);
    if (inputs > 8 && inputs < 16) {
        head_rows_avx512vnni(w, x, x_stride, sums, tiles, 8);
        x += 8 * x_stride, sums += 8 * HEAD_ROWS, inputs -= 8;
    }
    switch (inputs) {
    case 2: head_rows_avx512vnni(w, x, x_stride, sums, tiles, 2); break;
    case 4: head_rows_avx512vnni(w, x, x_stride, sums, tiles, 4); break;
    case 6: head_rows_avx512vnni(w, x, x_stride, sums, tiles, 6); break;
    case 8: head_rows_avx512vnni(w, x, x_stride, sums, tiles, 8); break;
    default: head_rows_avx512vnni(w, x, x_stride, sums, tiles, 16); break;
    }
    _mm256_zeroupper();
}

BITNET_TARGET_END
#endif

#endif
