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
    {"avx512vnni", CPU_AVX512VNNI, i2_panel_avx512vnni, i2_expand_avx512vnni, 24, NULL, 0},
    BITNET_AVXVNNI_ROW({"avxvnni", CPU_AVXVNNI, i2_panel_avxvnni, NULL, 0, NULL, 0})
    {"avx2", CPU_AVX2, i2_panel_avx2, NULL, 0, i2_index_avx2, 13},
#elif BITNET_ARM
    {"neondot", CPU_NEONDOT, i2_panel_neondot, NULL, 0, NULL, 0},
    {"neon", CPU_NEON, i2_panel_neon, NULL, 0, NULL, 0},
#endif
    {NULL, 0, NULL, NULL, 0, NULL, 0},
};

#endif
