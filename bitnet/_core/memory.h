/* The pool: blocks of any size, their counts, and their return to the system. Included by blocks.pyx only, after arena.h
 * and slab.h.
 *
 * A block up to the pool's threshold is a slot of a slab, taken without a lock. Larger blocks, and those that must begin on
 * more than a page, are extents of their own, under the pool's lock. So is a new slab. Counts are atomic, each by itself:
 * a reading taken while others allocate may see one of two changed. */
#ifndef BITNET_MEMORY_H
#define BITNET_MEMORY_H

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

enum {
    BITNET_TAGS = 64,
    /* Bytes at least behind a block of a pool with guards, and what they, new and freed memory are filled with. */
    BITNET_GUARD = 16,
    BITNET_GUARD_BYTE = 0xFB,
    BITNET_NEW_BYTE = 0xCD,
    BITNET_FREED_BYTE = 0xDD,
};

enum { BITNET_DONE, BITNET_BEYOND_LIMIT, BITNET_REFUSED };

typedef struct bitnet_node { struct bitnet_node *previous, *next; } bitnet_node;

typedef struct { _Atomic int64_t bytes, blocks; } bitnet_tag;

typedef struct bitnet_pool {
    struct bitnet_pool *previous, *next; /* all pools, for fork */
    pthread_mutex_t lock;
    bitnet_arenas arenas;
    size_t threshold;
    int classes, has_guards;
    _Atomic int64_t bytes, peak, limit, failed, large_allocated, large_freed, large_bytes;
    _Atomic int64_t large_by_log2[64]; /* live ones, of more than 2^(i - 1) and at most 2^i bytes */
    _Atomic int64_t references; /* the owner and each block */
    pthread_mutex_t live_lock;  /* guards `live`, and what is in its nodes; taken alone */
    bitnet_node live;           /* the blocks of Python objects, by their numbers */
    _Atomic uint64_t tracked;   /* the number of the last of them */
    bitnet_tag tags[BITNET_TAGS];
    bitnet_class slots[BITNET_CLASSES];
} bitnet_pool;

typedef struct {
    uint8_t *data;
    size_t size, alignment;
    bitnet_pool *pool;
    bitnet_extent *extent; /* of a large block, else NULL */
    bitnet_slab *slab;
    uint32_t slot;         /* number among all slots of the class */
    int class_index, tag;
} bitnet_block;

/* One slot of a new slab; the others go on the stack. */
static int bitnet_grow(bitnet_pool *pool, bitnet_class *c, bitnet_block *block) {
    pthread_mutex_lock(&pool->lock);
    int has_slot = bitnet_pop(c, &block->slot, &block->slab); /* another thread may have been here */
    bitnet_extent *extent = NULL;
    if (!has_slot) {
        const size_t bytes = c->slot_bytes << c->log2_slots;
        extent = bitnet_take_extent(&pool->arenas, bytes, BITNET_GRAIN);
    }
    if (extent != NULL) {
        bitnet_slab *slab = bitnet_bare_slab(c);
        if (slab == NULL) {
            bitnet_give_extent(&pool->arenas, extent);
        } else {
            slab->extent = extent;
            slab->start = extent->start;
            const uint32_t slots = 1u << c->log2_slots;
            for (uint32_t i = 1; i + 1 < slots; i++)
                atomic_store_explicit(&slab->links[i], slab->first + i + 2, memory_order_relaxed);
            BITNET_POISON(extent->start, extent->length);
            if (slots > 1) bitnet_push(c, slab->first + 1, &slab->links[slots - 1]);
            block->slab = slab;
            block->slot = slab->first;
            has_slot = 1;
        }
    }
    pthread_mutex_unlock(&pool->lock);
    return has_slot;
}

/* ---- pools ---- */

static pthread_mutex_t bitnet_pools_lock = PTHREAD_MUTEX_INITIALIZER;
static bitnet_pool *bitnet_pools = NULL;

static void bitnet_set_up_classes(bitnet_pool *pool) {
    memset(pool->slots, 0, sizeof pool->slots);
    pool->classes = bitnet_class_of(pool->threshold) + 1;
    for (int i = 0; i < pool->classes; i++) {
        bitnet_class *c = &pool->slots[i];
        c->slot_bytes = bitnet_slot_bytes(i);
        const size_t slots = BITNET_SLAB_BYTES / c->slot_bytes;
        c->log2_slots = slots > 1 ? BITNET_LOG2(slots) : 0;
    }
}

/* NULL where there is no memory. The threshold is a power of two from 4 KiB to 16 MiB. */
static bitnet_pool *bitnet_new_pool(size_t threshold, int64_t limit, int wants_huge_pages, int has_guards) {
    void *memory = NULL;
    if (posix_memalign(&memory, 64, bitnet_round_up(sizeof(bitnet_pool), 64)) != 0) return NULL;
    bitnet_pool *pool = memory;
    memset(pool, 0, sizeof *pool);
    pool->threshold = threshold;
    pool->has_guards = has_guards;
    pool->arenas.wants_huge_pages = wants_huge_pages;
    pool->live.previous = pool->live.next = &pool->live;
    atomic_store(&pool->limit, limit);
    atomic_store(&pool->references, 1);
    bitnet_set_up_classes(pool);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_mutex_init(&pool->live_lock, NULL);
    pthread_mutex_lock(&bitnet_pools_lock);
    pool->next = bitnet_pools;
    if (bitnet_pools != NULL) bitnet_pools->previous = pool;
    bitnet_pools = pool;
    pthread_mutex_unlock(&bitnet_pools_lock);
    return pool;
}

/* All memory goes back; no block is live, and no other thread uses the pool. */
static void bitnet_empty_pool(bitnet_pool *pool) {
    for (int i = 0; i < pool->classes; i++) {
        bitnet_class *c = &pool->slots[i];
        for (uint32_t number = 0; number < c->slabs; number++) {
            bitnet_slab *slab = bitnet_slab_at(c, number);
            if (slab->extent != NULL) bitnet_give_extent(&pool->arenas, slab->extent);
            free(slab);
        }
        for (int segment = 0; segment < BITNET_SEGMENTS; segment++) free(atomic_load(&c->segments[segment]));
    }
    bitnet_trim_arenas(&pool->arenas);
}

/* The owner or a block lets go of the pool, which ends with the last. */
static void bitnet_release_pool(bitnet_pool *pool) {
    if (atomic_fetch_sub_explicit(&pool->references, 1, memory_order_acq_rel) != 1) return;
    pthread_mutex_lock(&bitnet_pools_lock);
    if (pool->previous != NULL) pool->previous->next = pool->next;
    else bitnet_pools = pool->next;
    if (pool->next != NULL) pool->next->previous = pool->previous;
    pthread_mutex_unlock(&bitnet_pools_lock);
    bitnet_empty_pool(pool);
    pthread_mutex_destroy(&pool->lock);
    pthread_mutex_destroy(&pool->live_lock);
    free(pool);
}

/* Makes the pool as it was at first. Returns how many blocks are in the way, which are live. */
static int64_t bitnet_reset_pool(bitnet_pool *pool) {
    pthread_mutex_lock(&pool->lock);
    const int64_t live = atomic_load(&pool->references) - 1;
    if (live == 0) {
        bitnet_empty_pool(pool);
        bitnet_set_up_classes(pool);
        atomic_store(&pool->peak, 0);
        atomic_store(&pool->failed, 0);
        atomic_store(&pool->large_allocated, 0);
        atomic_store(&pool->large_freed, 0);
    }
    pthread_mutex_unlock(&pool->lock);
    return live;
}

/* Gives unused memory back to the system; returns how many bytes. All free slots of a class are taken; slabs that have
 * all of theirs among them lose their memory, the slots of others go back. */
static size_t bitnet_trim_pool(bitnet_pool *pool) {
    pthread_mutex_lock(&pool->lock);
    for (int i = 0; i < pool->classes; i++) {
        bitnet_class *c = &pool->slots[i];
        const uint32_t slots = 1u << c->log2_slots;
        for (uint32_t number = 0; number < c->slabs; number++) bitnet_slab_at(c, number)->seen = 0;
        uint64_t top = atomic_load(&c->free);
        while (!atomic_compare_exchange_weak(&c->free, &top, ((top >> 32) + 1) << 32)) {}
        uint32_t first = (uint32_t)top, kept = 0, last = 0, next;
        for (uint32_t one = first; one != 0; one = next) {
            bitnet_slab *slab = bitnet_slab_of(c, one - 1);
            next = atomic_load_explicit(bitnet_link_of(slab, one - 1), memory_order_relaxed);
            slab->seen++;
        }
        for (uint32_t one = first; one != 0; one = next) {
            bitnet_slab *slab = bitnet_slab_of(c, one - 1);
            next = atomic_load_explicit(bitnet_link_of(slab, one - 1), memory_order_relaxed);
            if (slab->seen == slots) continue;
            atomic_store_explicit(bitnet_link_of(slab, one - 1), kept, memory_order_relaxed);
            if (kept == 0) last = one;
            kept = one;
        }
        if (kept != 0) bitnet_push(c, kept - 1, bitnet_link_of(bitnet_slab_of(c, last - 1), last - 1));
        for (uint32_t number = 0; number < c->slabs; number++) {
            bitnet_slab *slab = bitnet_slab_at(c, number);
            if (slab->extent == NULL || slab->seen != slots) continue;
            bitnet_give_extent(&pool->arenas, slab->extent);
            slab->extent = NULL;
            slab->next_bare = c->bare;
            c->bare = number + 1;
        }
    }
    const size_t given = bitnet_trim_arenas(&pool->arenas);
    pthread_mutex_unlock(&pool->lock);
    return given;
}

/* ---- blocks ---- */

/* How much the large ones are; `sign` is -1 before one goes or changes. */
static void bitnet_count_large(const bitnet_block *block, int sign) {
    const size_t size = block->size > 1 ? block->size : 2;
    atomic_fetch_add_explicit(&block->pool->large_bytes, sign * (int64_t)block->size, memory_order_relaxed);
    atomic_fetch_add_explicit(&block->pool->large_by_log2[BITNET_LOG2(size - 1) + 1], sign, memory_order_relaxed);
}

static size_t bitnet_capacity(const bitnet_block *block) {
    return block->extent != NULL ? block->extent->length : block->pool->slots[block->class_index].slot_bytes;
}

/* Whether `size` more bytes stay within the limit; then they are counted. */
static int bitnet_count_in(bitnet_pool *pool, int64_t size) {
    const int64_t limit = atomic_load_explicit(&pool->limit, memory_order_relaxed);
    int64_t bytes = atomic_load_explicit(&pool->bytes, memory_order_relaxed);
    do { /* never counted for a moment: another thread would be refused for it */
        if (limit > 0 && size > limit - bytes) return 0;
    } while (!atomic_compare_exchange_weak_explicit(&pool->bytes, &bytes, bytes + size, memory_order_relaxed,
                                                    memory_order_relaxed));
    bytes += size;
    int64_t peak = atomic_load_explicit(&pool->peak, memory_order_relaxed);
    while (bytes > peak && !atomic_compare_exchange_weak_explicit(&pool->peak, &peak, bytes, memory_order_relaxed,
                                                                   memory_order_relaxed)) {}
    return 1;
}

/* A pool with guards shows reads of memory that was never written, and writes behind the block. */
static void bitnet_set_guards(bitnet_block *block, size_t old_size) {
    const size_t capacity = bitnet_capacity(block);
    BITNET_UNPOISON(block->data, capacity);
    if (block->size > old_size) memset(block->data + old_size, BITNET_NEW_BYTE, block->size - old_size);
    memset(block->data + block->size, BITNET_GUARD_BYTE, capacity - block->size);
}

/* The place, from the block's beginning, of the first guard byte that was written to, or -1. */
static ptrdiff_t bitnet_damaged_guard(const bitnet_block *block) {
    if (!block->pool->has_guards) return -1;
    const size_t capacity = bitnet_capacity(block);
    for (size_t i = block->size; i < capacity; i++)
        if (block->data[i] != BITNET_GUARD_BYTE) return (ptrdiff_t)i;
    return -1;
}

static int bitnet_take_large(bitnet_pool *pool, size_t size, size_t alignment, bitnet_block *block) {
    pthread_mutex_lock(&pool->lock);
    block->extent = bitnet_take_extent(&pool->arenas, size, alignment);
    pthread_mutex_unlock(&pool->lock);
    if (block->extent == NULL) return 0;
    block->data = block->extent->start;
    block->slab = NULL;
    block->class_index = -1;
    return 1;
}

static int bitnet_take_small(bitnet_pool *pool, size_t size, size_t alignment, bitnet_block *block) {
    int i = bitnet_class_of(bitnet_round_up(size > 0 ? size : 1, alignment));
    /* A power of two is among the next eight classes, and it is a multiple of the alignment, or large enough to be. */
    while (i < pool->classes && (pool->slots[i].slot_bytes & (alignment - 1)) != 0) i++;
    if (i >= pool->classes) return bitnet_take_large(pool, size, alignment, block);
    bitnet_class *c = &pool->slots[i];
    if (!bitnet_pop(c, &block->slot, &block->slab) && !bitnet_grow(pool, c, block)) return 0;
    atomic_fetch_add_explicit(&c->allocated, 1, memory_order_relaxed);
    block->extent = NULL;
    block->class_index = i;
    block->data = block->slab->start + (size_t)(block->slot - block->slab->first) * c->slot_bytes;
    return 1;
}

/* Takes a block. The alignment is a power of two of at most 2 MiB, the tag below BITNET_TAGS. */
static int bitnet_allocate(bitnet_pool *pool, size_t size, size_t alignment, int tag, int is_zeroed, bitnet_block *block) {
    if (size > SIZE_MAX / 4) return BITNET_REFUSED;
    if (!bitnet_count_in(pool, (int64_t)size)) return BITNET_BEYOND_LIMIT;
    const size_t taken = pool->has_guards ? size + BITNET_GUARD : size;
    const int is_small = taken <= pool->threshold && alignment <= BITNET_GRAIN;
    if (!(is_small ? bitnet_take_small : bitnet_take_large)(pool, taken, alignment, block)) {
        atomic_fetch_sub_explicit(&pool->bytes, (int64_t)size, memory_order_relaxed);
        return BITNET_REFUSED;
    }
    block->pool = pool;
    block->size = size;
    block->alignment = alignment;
    block->tag = tag;
    if (block->extent != NULL) {
        atomic_fetch_add_explicit(&pool->large_allocated, 1, memory_order_relaxed);
        bitnet_count_large(block, 1);
    }
    if (pool->has_guards) bitnet_set_guards(block, 0);
    else BITNET_UNPOISON(block->data, size);
    if (is_zeroed && (pool->has_guards || block->extent == NULL || block->extent->is_dirty)) memset(block->data, 0, size);
    atomic_fetch_add_explicit(&pool->references, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&pool->tags[tag].bytes, (int64_t)size, memory_order_relaxed);
    atomic_fetch_add_explicit(&pool->tags[tag].blocks, 1, memory_order_relaxed);
    return BITNET_DONE;
}

static void bitnet_free(bitnet_block *block) {
    bitnet_pool *pool = block->pool;
    if (pool->has_guards) memset(block->data, BITNET_FREED_BYTE, bitnet_capacity(block));
    atomic_fetch_sub_explicit(&pool->bytes, (int64_t)block->size, memory_order_relaxed);
    atomic_fetch_sub_explicit(&pool->tags[block->tag].bytes, (int64_t)block->size, memory_order_relaxed);
    atomic_fetch_sub_explicit(&pool->tags[block->tag].blocks, 1, memory_order_relaxed);
    if (block->extent != NULL) {
        atomic_fetch_add_explicit(&pool->large_freed, 1, memory_order_relaxed);
        bitnet_count_large(block, -1);
        pthread_mutex_lock(&pool->lock);
        bitnet_give_extent(&pool->arenas, block->extent);
        pthread_mutex_unlock(&pool->lock);
    } else {
        bitnet_class *c = &pool->slots[block->class_index];
        BITNET_POISON(block->data, c->slot_bytes);
        bitnet_push(c, block->slot, bitnet_link_of(block->slab, block->slot));
        atomic_fetch_add_explicit(&c->freed, 1, memory_order_relaxed);
    }
    block->data = NULL;
    block->pool = NULL;
    bitnet_release_pool(pool);
}

/* Changes the size of a block where it is, and says so; or leaves it, because the new size does not fit, goes beyond the
 * limit, or would waste more than half, unless it may. */
static int bitnet_resize_in_place(bitnet_block *block, size_t size, int may_waste) {
    bitnet_pool *pool = block->pool;
    const size_t capacity = bitnet_capacity(block), taken = pool->has_guards ? size + BITNET_GUARD : size;
    if (taken > capacity || size > SIZE_MAX / 4 || (taken < capacity / 2 && !may_waste)) return 0;
    const int64_t more = (int64_t)size - (int64_t)block->size;
    if (more > 0 && !bitnet_count_in(pool, more)) return 0;
    if (more < 0) atomic_fetch_add_explicit(&pool->bytes, more, memory_order_relaxed);
    atomic_fetch_add_explicit(&pool->tags[block->tag].bytes, more, memory_order_relaxed);
    const size_t old_size = block->size;
    if (block->extent != NULL) bitnet_count_large(block, -1);
    block->size = size;
    if (block->extent != NULL) bitnet_count_large(block, 1);
    if (pool->has_guards) {
        bitnet_set_guards(block, old_size);
    } else if (more < 0) {
        BITNET_POISON(block->data + bitnet_round_up(size, 8), capacity - bitnet_round_up(size, 8));
    } else {
        BITNET_UNPOISON(block->data, size);
    }
    return 1;
}

/* ---- what is tracked, and when ---- */

/* Returns the block's number, in the order of allocation. */
static uint64_t bitnet_track(bitnet_pool *pool, bitnet_node *node) {
    pthread_mutex_lock(&pool->live_lock);
    node->previous = pool->live.previous;
    node->next = &pool->live;
    node->previous->next = node;
    pool->live.previous = node;
    const uint64_t number = atomic_fetch_add(&pool->tracked, 1) + 1;
    pthread_mutex_unlock(&pool->live_lock);
    return number;
}

static void bitnet_untrack(bitnet_pool *pool, bitnet_node *node) {
    pthread_mutex_lock(&pool->live_lock);
    node->previous->next = node->next;
    node->next->previous = node->previous;
    node->next = NULL;
    pthread_mutex_unlock(&pool->live_lock);
}

/* What nobody may change meanwhile: no Python, and no other lock, until `bitnet_unlock_live`. */
static void bitnet_lock_live(bitnet_pool *pool) { pthread_mutex_lock(&pool->live_lock); }

static void bitnet_unlock_live(bitnet_pool *pool) { pthread_mutex_unlock(&pool->live_lock); }

/* Nanoseconds of a clock that is read within a few of them, and moves every few milliseconds. */
static int64_t bitnet_coarse_ns(void) {
    struct timespec now;
    clock_gettime(BITNET_COARSE_CLOCK, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* ---- readings ---- */

typedef struct {
    int64_t bytes, peak, failed, small_allocated, small_freed, large_allocated, large_freed, large_bytes, reserved, huge;
    int64_t live_by_log2[64]; /* as large_by_log2; small blocks by their slots */
} bitnet_reading;

static void bitnet_read_pool(bitnet_pool *pool, bitnet_reading *reading) {
    memset(reading, 0, sizeof *reading);
    for (int i = 0; i < 64; i++) reading->live_by_log2[i] = atomic_load(&pool->large_by_log2[i]);
    for (int i = 0; i < pool->classes; i++) {
        bitnet_class *c = &pool->slots[i];
        const int64_t freed = atomic_load(&c->freed), allocated = atomic_load(&c->allocated);
        reading->small_allocated += allocated;
        reading->small_freed += freed;
        reading->live_by_log2[BITNET_LOG2(c->slot_bytes - 1) + 1] += allocated - freed;
    }
    reading->large_bytes = atomic_load(&pool->large_bytes);
    reading->bytes = atomic_load(&pool->bytes);
    reading->peak = atomic_load(&pool->peak);
    reading->failed = atomic_load(&pool->failed);
    reading->large_allocated = atomic_load(&pool->large_allocated);
    reading->large_freed = atomic_load(&pool->large_freed);
    pthread_mutex_lock(&pool->lock);
    reading->reserved = (int64_t)pool->arenas.reserved;
    reading->huge = (int64_t)pool->arenas.huge;
    pthread_mutex_unlock(&pool->lock);
}

static int64_t bitnet_reserved(bitnet_pool *pool) {
    pthread_mutex_lock(&pool->lock);
    const int64_t reserved = (int64_t)pool->arenas.reserved;
    pthread_mutex_unlock(&pool->lock);
    return reserved;
}

/* Writes the address and the length of each arena, of as many as there is room for; returns how many there are. */
static size_t bitnet_list_arenas(bitnet_pool *pool, uintptr_t *ranges, size_t most) {
    size_t count = 0;
    pthread_mutex_lock(&pool->lock);
    for (const bitnet_arena *arena = pool->arenas.arenas; arena != NULL; arena = arena->next, count++) {
        if (count >= most) continue;
        ranges[2 * count] = (uintptr_t)arena->start;
        ranges[2 * count + 1] = arena->length;
    }
    pthread_mutex_unlock(&pool->lock);
    return count;
}

/* ---- fork: no lock may be held by a thread that the child lacks. The stacks are whole at any moment; a block that
 * such a thread was about to take is lost to the child. ---- */

static void bitnet_before_fork(void) {
    pthread_mutex_lock(&bitnet_pools_lock);
    for (bitnet_pool *pool = bitnet_pools; pool != NULL; pool = pool->next) {
        pthread_mutex_lock(&pool->lock);
        pthread_mutex_lock(&pool->live_lock);
    }
}

static void bitnet_after_fork_in_parent(void) {
    for (bitnet_pool *pool = bitnet_pools; pool != NULL; pool = pool->next) {
        pthread_mutex_unlock(&pool->live_lock);
        pthread_mutex_unlock(&pool->lock);
    }
    pthread_mutex_unlock(&bitnet_pools_lock);
}

static void bitnet_after_fork_in_child(void) {
    for (bitnet_pool *pool = bitnet_pools; pool != NULL; pool = pool->next) {
        pthread_mutex_init(&pool->lock, NULL);
        pthread_mutex_init(&pool->live_lock, NULL);
    }
    pthread_mutex_init(&bitnet_pools_lock, NULL);
}

static int bitnet_prepare_fork(void) {
    return pthread_atfork(bitnet_before_fork, bitnet_after_fork_in_parent, bitnet_after_fork_in_child);
}

#endif
