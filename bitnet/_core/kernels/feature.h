/* The CPU features that kernels ask for. A bit is a set of instructions, not a product. */
#ifndef BITNET_FEATURE_H
#define BITNET_FEATURE_H

enum {
    /* AVX2 with FMA and F16C, which every CPU with AVX2 that was ever sold has. */
    CPU_AVX2 = 1u << 0,
    /* AVX-512 F, BW, DQ, VL and VNNI. */
    CPU_AVX512VNNI = 1u << 1,
    CPU_AVX512VBMI = 1u << 2,
    /* vpdpbusd of 256 bits with the encoding of AVX, for CPUs without AVX-512. */
    CPU_AVXVNNI = 1u << 3,
    CPU_NEON = 1u << 8,
    /* sdot and udot of Armv8.2. */
    CPU_NEONDOT = 1u << 9
};

#endif
