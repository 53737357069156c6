/* The operations for any CPU: ops_body.h at the ABI's floor. */
#ifndef BITNET_OPS_PORTABLE_H
#define BITNET_OPS_PORTABLE_H

#include "ops_kernel.h"

#define OPS(name) ops_##name##_portable
#define OPS_END() ((void)0)
#define OPS_HALVES(from, to) \
    for (int k = 0; k < 16; k++) (*(to))[k] = ops_half_to_float((from)[k])

#define OPS_BRAINS(from, to) \
    for (int k = 0; k < 16; k++) (*(to))[k] = ops_float_of((uint32_t)(from)[k] << 16)
#define OPS_BYTES(from, to) \
    for (int k = 0; k < 16; k++) (*(to))[k] = (float)(from)[k]

#define OPS_TO_HALVES(from, to) \
    for (int k = 0; k < 16; k++) (to)[k] = ops_float_to_half((from)[k])
#define OPS_TILE 1

#include "ops_body.h"

#endif
