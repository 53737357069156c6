/* What this CPU has and this operating system saves: a kernel needs both. Included by cpu.pyx only.
 *
 * CPUID says what the core can do; XCR0 says which registers the operating system keeps over a task switch. AVX
 * without the second is a crash (Intel SDM volume 1, 13.3 and 14.3). */
#ifndef BITNET_CPU_H
#define BITNET_CPU_H

#include "feature.h"
#include "target.h"

#if BITNET_X86

static uint32_t bitnet_cpu_features(void) {
    enum { YMM = 0x06, ZMM = 0xe6 };
    uint32_t r[4], features = 0;
    bitnet_cpuid(0, 0, r);
    const uint32_t leaves = r[0];
    if (leaves < 7) return 0;

    bitnet_cpuid(1, 0, r);
    const int has_osxsave = r[2] >> 27 & 1, has_fma = r[2] >> 12 & 1, has_f16c = r[2] >> 29 & 1;
    if (!has_osxsave) return 0;
    const uint64_t saved = bitnet_xgetbv();

    bitnet_cpuid(7, 0, r);
    const int has_avx2 = r[1] >> 5 & 1;
    if ((saved & YMM) == YMM && has_avx2 && has_fma && has_f16c) features |= CPU_AVX2;

    const int has_f = r[1] >> 16 & 1, has_dq = r[1] >> 17 & 1, has_bw = r[1] >> 30 & 1, has_vl = r[1] >> 31 & 1;
    const int has_vbmi = r[2] >> 1 & 1, has_vnni = r[2] >> 11 & 1;
    if ((features & CPU_AVX2) && (saved & ZMM) == ZMM && has_f && has_dq && has_bw && has_vl && has_vnni) {
        features |= CPU_AVX512VNNI;
        if (has_vbmi) features |= CPU_AVX512VBMI;
    }
    const uint32_t subleaves = r[0];
    if ((features & CPU_AVX2) && subleaves >= 1) {
        bitnet_cpuid(7, 1, r);
        if (r[0] >> 4 & 1) features |= CPU_AVXVNNI;
    }
    return features;
}

#elif BITNET_ARM

static uint32_t bitnet_cpu_features(void) {
    /* NEON is part of the ABI of AArch64. */
    return CPU_NEON | (bitnet_has_dot_product() ? CPU_NEONDOT : 0);
}

#else

static uint32_t bitnet_cpu_features(void) { return 0; }

#endif

#endif
