/* The limits of the machine, taken with the instructions that the kernels use. Included by probe.pyx only. */
#ifndef BITNET_PROBE_H
#define BITNET_PROBE_H

#include "feature.h"
#include "probe_avx2.h"
#include "probe_avx512vnni.h"
#include "probe_avxvnni.h"
#include "probe_kernel.h"

static const bitnet_probe PROBES[] = {
#if BITNET_X86
    {"avx512vnni", CPU_AVX512VNNI, "vpdpbusd, 512 bits", probe_read_avx512vnni, probe_multiply_avx512vnni},
    BITNET_AVXVNNI_ROW({"avxvnni", CPU_AVXVNNI, "vpdpbusd, 256 bits", probe_read_avx2, probe_multiply_avxvnni})
    {"avx2", CPU_AVX2, "vpmaddubsw + vpaddw, 256 bits", probe_read_avx2, probe_multiply_avx2},
#endif
    {"portable", 0, "", probe_read_portable, NULL},
};

#endif
