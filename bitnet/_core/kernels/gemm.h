/* The kernels for many tokens. Included by gemm.pyx only. */
#ifndef BITNET_GEMM_H
#define BITNET_GEMM_H

#include "feature.h"
#include "gemm_avx512vnni.h"
#include "gemm_kernel.h"

static const bitnet_gemm_kernel GEMM_KERNELS[] = {
#if BITNET_X86 && BITNET_HAS_ASM
    {"avx512vnni", CPU_AVX512VNNI, gemm_prepare_avx512vnni, gemm_multiply_avx512vnni, gemm_finish_avx512vnni},
#endif
    {NULL, 0, NULL, NULL, NULL},
};

#endif
