/* The contract of the probes. */
#ifndef BITNET_PROBE_KERNEL_H
#define BITNET_PROBE_KERNEL_H

#include "target.h"

typedef struct {
    const char *isa;
    uint32_t needs;
    const char *instruction; /* what `multiply` repeats */
    /* Reads n bytes, a multiple of 256, and returns a value made of them, so that no compiler leaves the loads out. */
    uint64_t (*read)(const uint8_t *data, ptrdiff_t n);
    /* Multiplies and adds bytes in registers; returns how many multiply-accumulates that was. NULL if there is no
     * instruction to speak of. */
    int64_t (*multiply)(int64_t rounds);
} bitnet_probe;

static uint64_t probe_read_portable(const uint8_t *data, ptrdiff_t n) {
    uint64_t a = 0, b = 0, c = 0, d = 0;
    for (ptrdiff_t i = 0; i < n; i += 32) {
        uint64_t words[4];
        memcpy(words, data + i, 32);
        a ^= words[0], b ^= words[1], c ^= words[2], d ^= words[3];
    }
    return a ^ b ^ c ^ d;
}

#endif
