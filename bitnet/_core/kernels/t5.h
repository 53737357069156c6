/* The kernels of t5, the preferred first (measured: bench/README.md). Included by packings/t5.pyx only. */
#ifndef BITNET_T5_H
#define BITNET_T5_H

#include "feature.h"
#include "kernel.h"
#include "t5_avx2.h"
#include "t5_avx512vbmi.h"
#include "t5_avxvnni.h"
#include "t5_neon.h"
#include "t5_neondot.h"

static const bitnet_kernel T5_KERNELS[] = {
#if BITNET_X86
    {"avx512vbmi", CPU_AVX512VNNI | CPU_AVX512VBMI, t5_panel_avx512vbmi,
     {t5_index_avx512vbmi, CPU_AVX512VNNI, 12, 5, 2, LUT_MULTIPLIED_PASS_BYTES, 15, 24}},
    /* AVX2's look-up, not measured on such a CPU: with two loads and two vpdpbusd a cycle it would be 114 multiply-accumulates a
     * cycle against 64. */
    BITNET_AVXVNNI_ROW({"avxvnni", CPU_AVXVNNI, t5_panel_avxvnni, {t5_index_avx2, CPU_AVX2, 12, 6, 2, LUT_FIFTH_PASS_BYTES, 9, 0}})
    {"avx2", CPU_AVX2, t5_panel_avx2, {t5_index_avx2, CPU_AVX2, 12, 6, 2, LUT_FIFTH_PASS_BYTES, 9, 0}},
#elif BITNET_ARM
    {"neondot", CPU_NEONDOT, t5_panel_neondot, BITNET_NO_LOOK_UP},
    {"neon", CPU_NEON, t5_panel_neon, BITNET_NO_LOOK_UP},
#endif
    {NULL, 0, NULL, BITNET_NO_LOOK_UP},
};

#endif
