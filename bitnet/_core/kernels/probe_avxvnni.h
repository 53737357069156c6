/* The multiply probe on AVX-VNNI. Contract: probe_kernel.h. */
#ifndef BITNET_PROBE_AVXVNNI_H
#define BITNET_PROBE_AVXVNNI_H

#include "probe_kernel.h"

#if BITNET_X86 && BITNET_HAS_AVXVNNI
BITNET_TARGET("avx2,avxvnni")

/* Twelve sums hide the latency of two instructions a cycle. */
#define PROBE_STEP(sum) sum = BITNET_DPBUSD_AVX(sum, codes_u8x32, x_i8x32); BITNET_OPAQUE_VECTOR(sum);

BITNET_KERNEL int64_t probe_multiply_avxvnni(int64_t rounds) {
    __m256i codes_u8x32 = _mm256_set1_epi8(1), x_i8x32 = _mm256_set1_epi8(1);
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a, e = a, f = a, g = a, h = a, i = a, j = a, k = a, l = a;
    for (int64_t round = 0; round < rounds; round++) {
        PROBE_STEP(a) PROBE_STEP(b) PROBE_STEP(c) PROBE_STEP(d) PROBE_STEP(e) PROBE_STEP(f) PROBE_STEP(g) PROBE_STEP(h)
        PROBE_STEP(i) PROBE_STEP(j) PROBE_STEP(k) PROBE_STEP(l)
    }
    _mm256_zeroupper();
    return rounds * 12 * 32;
}
#undef PROBE_STEP

BITNET_TARGET_END
#endif

#endif
