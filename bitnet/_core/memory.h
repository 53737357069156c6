/* Counts of native memory, and the advice to use huge pages. Included by memory.pyx only. */
#ifndef BITNET_MEMORY_H
#define BITNET_MEMORY_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

/* Blocks may be freed by any thread, and without the GIL where there is none. */
static struct {
    _Atomic int64_t live_blocks, live_bytes, peak_bytes, total_blocks;
} bitnet_memory;

static void bitnet_count_block(int64_t blocks, int64_t bytes) {
    atomic_fetch_add(&bitnet_memory.live_blocks, blocks);
    if (blocks > 0) atomic_fetch_add(&bitnet_memory.total_blocks, blocks);
    const int64_t live = atomic_fetch_add(&bitnet_memory.live_bytes, bytes) + bytes;
    int64_t peak = atomic_load(&bitnet_memory.peak_bytes);
    while (live > peak && !atomic_compare_exchange_weak(&bitnet_memory.peak_bytes, &peak, live)) {}
}

static int64_t bitnet_live_blocks(void) { return atomic_load(&bitnet_memory.live_blocks); }
static int64_t bitnet_live_bytes(void) { return atomic_load(&bitnet_memory.live_bytes); }
static int64_t bitnet_peak_bytes(void) { return atomic_load(&bitnet_memory.peak_bytes); }
static int64_t bitnet_total_blocks(void) { return atomic_load(&bitnet_memory.total_blocks); }

/* Linux only; elsewhere the blocks stay on ordinary pages. */
static int bitnet_advise_huge(void *address, size_t length) {
#ifdef MADV_HUGEPAGE
    return madvise(address, length, MADV_HUGEPAGE);
#else
    (void)address;
    (void)length;
    return -1;
#endif
}

#endif
