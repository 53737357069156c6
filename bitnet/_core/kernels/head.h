/* The kernels of the int8 head, the preferred first. Included by head.pyx only. */
#ifndef BITNET_HEAD_H
#define BITNET_HEAD_H

#include "feature.h"
#include "head_avx2.h"
#include "head_avx512vnni.h"
#include "head_avxvnni.h"
#include "head_kernel.h"
#include "head_neondot.h"

static const bitnet_head_kernel HEAD_KERNELS[] = {
#if BITNET_X86
    {"avx512vnni", CPU_AVX512VNNI, 128, head_panel_avx512vnni, NULL},
    BITNET_AVXVNNI_ROW({"avxvnni", CPU_AVXVNNI, 128, head_panel_avxvnni, NULL})
    {"avx2", CPU_AVX2, 0, NULL, head_wide_avx2},
#elif BITNET_ARM
    {"neondot", CPU_NEONDOT, 0, head_panel_neondot, NULL},
#endif
    {NULL, 0, 0, NULL, NULL},
};

#endif
