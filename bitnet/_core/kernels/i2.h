/* The kernels of i2, the preferred first (measured: bench/README.md). Included by packings/i2.pyx only. */
#ifndef BITNET_I2_H
#define BITNET_I2_H

#include "feature.h"
#include "i2_avx2.h"
#include "i2_avx512vnni.h"
#include "i2_avxvnni.h"
#include "i2_neon.h"
#include "i2_neondot.h"
#include "kernel.h"

static const bitnet_kernel I2_KERNELS[] = {
#if BITNET_X86
    {"avx512vnni", CPU_AVX512VNNI, i2_panel_avx512vnni,
     {i2_index_avx512vnni, CPU_AVX512VNNI, 15, 5, 3, LUT_MULTIPLIED_PASS_BYTES, 15, 24}},
    /* AVX2's look-up, not measured on such a CPU: with two loads and two vpdpbusd a cycle it would be 114 multiply-accumulates a
     * cycle against 64. */
    BITNET_AVXVNNI_ROW({"avxvnni", CPU_AVXVNNI, i2_panel_avxvnni, {i2_index_avx2, CPU_AVX2, 14, 7, 2, LUT_CODES_AT, 13, 0}})
    {"avx2", CPU_AVX2, i2_panel_avx2, {i2_index_avx2, CPU_AVX2, 14, 7, 2, LUT_CODES_AT, 13, 0}},
#elif BITNET_ARM
    {"neondot", CPU_NEONDOT, i2_panel_neondot, BITNET_NO_LOOK_UP},
    {"neon", CPU_NEON, i2_panel_neon, BITNET_NO_LOOK_UP},
#endif
    {NULL, 0, NULL, BITNET_NO_LOOK_UP},
};

#endif
