/* Quantisation: what its kernels are, and the table of them. Included by quant.pyx only.
 *
 * All give the same bits as the portable functions of quant.pyx: products are single float operations, rounding is
 * half to even, and sums of doubles have 16 fixed lanes. */
#ifndef BITNET_QUANT_H
#define BITNET_QUANT_H

#include "feature.h"
#include "quant_avx2.h"
#include "quant_avx512vnni.h"
#include "quant_kernel.h"
#include "quant_neon.h"

/* The preferred first (measured: bench/README.md). */
static const bitnet_quant_kernel QUANT_KERNELS[] = {
#if BITNET_X86
    {"avx512vnni", CPU_AVX512VNNI, quant_sum_abs_avx512vnni, quant_max_abs_avx512vnni, quant_ternary_avx512vnni,
     quant_int8_avx512vnni},
    {"avx2", CPU_AVX2, quant_sum_abs_avx2, quant_max_abs_avx2, quant_ternary_avx2, quant_int8_avx2},
#elif BITNET_ARM
    {"neon", CPU_NEON, quant_sum_abs_neon, quant_max_abs_neon, quant_ternary_neon, quant_int8_neon},
#endif
    {NULL, 0, NULL, NULL, NULL, NULL},
};

#endif
