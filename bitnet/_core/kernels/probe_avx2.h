/* The probes on AVX2. Contract: probe_kernel.h. */
#ifndef BITNET_PROBE_AVX2_H
#define BITNET_PROBE_AVX2_H

#include "probe_kernel.h"

#if BITNET_X86
BITNET_TARGET("avx2")

BITNET_KERNEL uint64_t probe_read_avx2(const uint8_t *data, ptrdiff_t n) {
    __m256i seen[4];
    for (int k = 0; k < 4; k++) seen[k] = _mm256_setzero_si256();
    for (ptrdiff_t i = 0; i < n; i += 128) {
        BITNET_PREFETCH(data + i + 4096);
        BITNET_PREFETCH(data + i + 4160);
        for (int k = 0; k < 4; k++)
            seen[k] = _mm256_xor_si256(seen[k], _mm256_loadu_si256((const __m256i *)(data + i + 32 * k)));
    }
    uint64_t words[4];
    _mm256_storeu_si256((__m256i *)words, _mm256_xor_si256(_mm256_xor_si256(seen[0], seen[1]),
                                                           _mm256_xor_si256(seen[2], seen[3])));
    _mm256_zeroupper();
    return words[0] ^ words[1] ^ words[2] ^ words[3];
}

/* Eight sums hide the latency of the addition; empty assembly keeps the compiler from taking equal products for one. */
#define PROBE_STEP(sum)                  \
    BITNET_OPAQUE_VECTOR(codes_u8x32);   \
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes_u8x32, x_i8x32)); \
    BITNET_OPAQUE_VECTOR(sum);

BITNET_KERNEL int64_t probe_multiply_avx2(int64_t rounds) {
    __m256i codes_u8x32 = _mm256_set1_epi8(1), x_i8x32 = _mm256_set1_epi8(1);
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a, e = a, f = a, g = a, h = a;
    for (int64_t i = 0; i < rounds; i++) {
        PROBE_STEP(a) PROBE_STEP(b) PROBE_STEP(c) PROBE_STEP(d) PROBE_STEP(e) PROBE_STEP(f) PROBE_STEP(g) PROBE_STEP(h)
    }
    _mm256_zeroupper();
    return rounds * 8 * 32;
}
#undef PROBE_STEP

BITNET_TARGET_END
#endif

#endif
