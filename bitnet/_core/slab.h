/* Slots of a few sizes in slabs, taken and given back without a lock. Included by blocks.pyx only, between arena.h and
 * memory.h.
 *
 * A slab is an extent cut into slots of one size. The free slots of a size are a stack of their numbers, whose links lie
 * beside the slabs, not in the slots. A slot is taken and given back by one compare-and-swap of the stack's top, which
 * carries a count of its changes: a thread that was away between reading the top and swapping it finds the count
 * changed, whatever slots came and went. What describes a slab stays until the pool ends, so the link that such a thread
 * reads is always there, if out of date. */
#ifndef BITNET_SLAB_H
#define BITNET_SLAB_H

#include <stdatomic.h>

enum {
    BITNET_CLASSES = 131, /* sizes of slots up to 16 MiB */
    BITNET_SLAB_BYTES = 64 << 10,
    BITNET_SEGMENTS = 24,
    BITNET_FIRST_SEGMENT = 4, /* log2 of its slabs; each further one has twice as many */
};

typedef struct {
    bitnet_extent *extent; /* NULL: its memory was given back; guarded by the pool's lock, as `seen` and `next_bare` are */
    uint32_t first, seen;
    uint32_t next_bare;    /* another slab of this kind without memory, its number + 1 */
    uint8_t *start;
    _Atomic uint32_t links[]; /* the slot below in the stack, its number + 1 */
} bitnet_slab;

typedef struct {
    BITNET_ALIGN64 _Atomic uint64_t free; /* changes << 32 | number of the top slot + 1 */
    size_t slot_bytes;
    int log2_slots;
    uint32_t slabs, bare; /* how many; the first without memory, + 1; guarded by the pool's lock */
    _Atomic(bitnet_slab **) segments[BITNET_SEGMENTS];
    _Atomic int64_t allocated, freed;
} bitnet_class;

/* ---- sizes ---- */

/* Steps of 16 up to 64 bytes, of 64 up to 512, then eight steps between powers of two: a slot is at most an eighth
 * larger than what it is for, but for the small ones. */
static int bitnet_class_of(size_t size) {
    if (size <= 64) return size == 0 ? 0 : (int)((size + 15) / 16) - 1;
    if (size <= 512) return 2 + (int)((size + 63) / 64);
    const int e = BITNET_LOG2(size - 1);
    return 11 + (e - 9) * 8 + (int)((size - 1 - ((size_t)1 << e)) >> (e - 3));
}

static size_t bitnet_slot_bytes(int class_index) {
    if (class_index < 4) return 16 * (size_t)(class_index + 1);
    if (class_index < 11) return 64 * (size_t)(class_index - 2);
    const int e = 9 + (class_index - 11) / 8, k = (class_index - 11) % 8;
    return ((size_t)1 << e) + ((size_t)(k + 1) << (e - 3));
}

/* ---- slabs ---- */

static bitnet_slab *bitnet_slab_at(bitnet_class *c, uint32_t number) {
    const uint32_t j = number + (1u << BITNET_FIRST_SEGMENT);
    const int segment = BITNET_LOG2(j) - BITNET_FIRST_SEGMENT;
    bitnet_slab **slabs = atomic_load_explicit(&c->segments[segment], memory_order_acquire);
    return slabs[j - (1u << (segment + BITNET_FIRST_SEGMENT))];
}

static bitnet_slab *bitnet_slab_of(bitnet_class *c, uint32_t slot) { return bitnet_slab_at(c, slot >> c->log2_slots); }

static _Atomic uint32_t *bitnet_link_of(bitnet_slab *slab, uint32_t slot) { return &slab->links[slot - slab->first]; }

/* Whether there was one; then which, and its slab. */
static int bitnet_pop(bitnet_class *c, uint32_t *taken, bitnet_slab **of) {
    uint64_t top = atomic_load_explicit(&c->free, memory_order_acquire);
    for (;;) {
        if ((uint32_t)top == 0) return 0;
        const uint32_t slot = (uint32_t)top - 1;
        bitnet_slab *slab = bitnet_slab_of(c, slot);
        const uint32_t below = atomic_load_explicit(bitnet_link_of(slab, slot), memory_order_relaxed);
        const uint64_t changed = ((top >> 32) + 1) << 32 | below;
        if (atomic_compare_exchange_weak_explicit(&c->free, &top, changed, memory_order_acq_rel, memory_order_acquire)) {
            *of = slab;
            *taken = slot;
            return 1;
        }
    }
}

/* Slots that are linked from `first` down to `last`. */
static void bitnet_push(bitnet_class *c, uint32_t first, _Atomic uint32_t *last) {
    uint64_t top = atomic_load_explicit(&c->free, memory_order_relaxed), changed;
    do {
        atomic_store_explicit(last, (uint32_t)top, memory_order_relaxed);
        changed = ((top >> 32) + 1) << 32 | (first + 1);
    } while (!atomic_compare_exchange_weak_explicit(&c->free, &top, changed, memory_order_acq_rel, memory_order_relaxed));
}

/* A slab without memory: one whose memory was given back, else a new one. NULL where there is no room for more. */
static bitnet_slab *bitnet_bare_slab(bitnet_class *c) {
    if (c->bare != 0) {
        bitnet_slab *slab = bitnet_slab_at(c, c->bare - 1);
        c->bare = slab->next_bare;
        return slab;
    }
    const uint32_t slots = 1u << c->log2_slots, j = c->slabs + (1u << BITNET_FIRST_SEGMENT);
    const int segment = BITNET_LOG2(j) - BITNET_FIRST_SEGMENT;
    if (segment >= BITNET_SEGMENTS || c->slabs >= (UINT32_MAX >> c->log2_slots) - 1) return NULL;
    bitnet_slab **slabs = atomic_load_explicit(&c->segments[segment], memory_order_relaxed);
    if (slabs == NULL) {
        slabs = calloc((size_t)1 << (segment + BITNET_FIRST_SEGMENT), sizeof *slabs);
        if (slabs == NULL) return NULL;
        atomic_store_explicit(&c->segments[segment], slabs, memory_order_release);
    }
    bitnet_slab *slab = calloc(1, sizeof *slab + slots * sizeof slab->links[0]);
    if (slab == NULL) return NULL;
    slab->first = c->slabs << c->log2_slots;
    slabs[j - (1u << (segment + BITNET_FIRST_SEGMENT))] = slab;
    c->slabs++;
    return slab;
}

#endif
