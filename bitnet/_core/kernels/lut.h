/* The kernels for many tokens by look-up, which packings choose by what they need. Included by lut.pyx only. */
#ifndef BITNET_LUT_H
#define BITNET_LUT_H

#include "feature.h"
#include "lut_avx2.h"
#include "lut_avx512vnni.h"
#include "lut_kernel.h"

static const bitnet_lut_kernel LUT_KERNELS[] = {
#if BITNET_X86
    {"avx512vnni", CPU_AVX512VNNI, 2, lut_largest_avx512vnni, lut_tables_avx512vnni,
     lut_look_up_avx512vnni, lut_finish_avx512vnni},
    {"avx2", CPU_AVX2, 1, lut_largest_avx2, lut_tables_avx2, lut_look_up_avx2, lut_finish_avx2},
#endif
    {NULL, 0, 0, NULL, NULL, NULL, NULL},
};

#endif
