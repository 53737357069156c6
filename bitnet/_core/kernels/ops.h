/* The vector operations of a forward pass, the preferred instruction set first. Included by ops.pyx only. */
#ifndef BITNET_OPS_H
#define BITNET_OPS_H

#include "feature.h"
#include "ops_avx2.h"
#include "ops_avx512vnni.h"
#include "ops_kernel.h"
#include "ops_portable.h"

#define OPS_ROW(isa, needs)                                                                               \
    {                                                                                                     \
        #isa, needs, ops_rms_norm_##isa, ops_rope_##isa, ops_gate_##isa, ops_add_##isa, ops_dot_##isa,    \
            ops_load_##isa, ops_store_##isa, ops_prepare_query_##isa, ops_attend_##isa, ops_merge_##isa,  \
            ops_store_keys_##isa, ops_store_value_##isa, ops_floats_##isa                                 \
    }

static const bitnet_ops OPS_KERNELS[] = {
#if BITNET_X86
    OPS_ROW(avx512vnni, CPU_AVX512VNNI),
    OPS_ROW(avx2, CPU_AVX2),
#endif
    OPS_ROW(portable, 0),
};

#undef OPS_ROW

#endif
