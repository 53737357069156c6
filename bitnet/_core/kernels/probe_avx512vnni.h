/* The probes on AVX512-VNNI. Contract: probe_kernel.h. */
#ifndef BITNET_PROBE_AVX512VNNI_H
#define BITNET_PROBE_AVX512VNNI_H

#include "probe_kernel.h"

#if BITNET_X86
BITNET_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")

BITNET_KERNEL uint64_t probe_read_avx512vnni(const uint8_t *data, ptrdiff_t n) {
    __m512i seen[4];
    for (int k = 0; k < 4; k++) seen[k] = _mm512_setzero_si512();
    for (ptrdiff_t i = 0; i < n; i += 256)
        for (int k = 0; k < 4; k++) {
            BITNET_PREFETCH(data + i + 4096 + 64 * k);
            seen[k] = _mm512_xor_si512(seen[k], _mm512_loadu_si512(data + i + 64 * k));
        }
    uint64_t words[8], all = 0;
    _mm512_storeu_si512(words, _mm512_xor_si512(_mm512_xor_si512(seen[0], seen[1]),
                                                _mm512_xor_si512(seen[2], seen[3])));
    for (int k = 0; k < 8; k++) all ^= words[k];
    _mm256_zeroupper();
    return all;
}

/* Eight sums hide the latency of the multiply; empty assembly keeps the compiler from taking equal products for one. */
#define PROBE_STEP(sum)                  \
    BITNET_OPAQUE_VECTOR(codes_u8x64);   \
    sum = _mm512_dpbusd_epi32(sum, codes_u8x64, x_i8x64); \
    BITNET_OPAQUE_VECTOR(sum);

BITNET_KERNEL int64_t probe_multiply_avx512vnni(int64_t rounds) {
    __m512i codes_u8x64 = _mm512_set1_epi8(1), x_i8x64 = _mm512_set1_epi8(1);
    __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a, e = a, f = a, g = a, h = a;
    for (int64_t i = 0; i < rounds; i++) {
        PROBE_STEP(a) PROBE_STEP(b) PROBE_STEP(c) PROBE_STEP(d) PROBE_STEP(e) PROBE_STEP(f) PROBE_STEP(g) PROBE_STEP(h)
    }
    _mm256_zeroupper();
    return rounds * 8 * 64;
}
#undef PROBE_STEP

BITNET_TARGET_END
#endif

#endif
