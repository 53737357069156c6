/* The kernels for many tokens by look-up. Included by lut.pyx only. */
#ifndef BITNET_LUT_H
#define BITNET_LUT_H

#include "feature.h"
#include "lut_avx2.h"
#include "lut_kernel.h"

static const bitnet_lut_kernel LUT_KERNELS[] = {
#if BITNET_X86
    {"avx2", CPU_AVX2, lut_tables_avx2, lut_look_up_avx2, lut_finish_avx2},
#endif
    {NULL, 0, NULL, NULL, NULL},
};

#endif
