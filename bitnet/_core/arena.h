/* Large pieces of memory: arenas from the operating system, cut into extents. Included by blocks.pyx only, first.
 *
 * An arena begins on a 2 MiB boundary, is a multiple of 2 MiB long and is advised to use huge pages: reading weights then
 * spends no time on page-table walks. Extents are multiples of 4 KiB, so that neighbours share a huge page. They know
 * their neighbours, and free ones that touch become one. What describes them comes from the C library, outside the
 * memory described: a program that writes past its block cannot damage it.
 *
 * The owner of the set holds its lock around every call. */
#ifndef BITNET_ARENA_H
#define BITNET_ARENA_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "kernels/target.h"

enum {
    BITNET_GRAIN = 4096,
    BITNET_HUGE_PAGE = 2 << 20,
    /* Arenas grow with what there is, so that a small pool stays small and a large one makes few system calls. */
    BITNET_MIN_ARENA = 4 << 20,
    BITNET_MAX_ARENA = 64 << 20,
    /* Of arenas without a block, so much is kept: memory that comes and goes need not come from the system each time. */
    BITNET_KEPT_BYTES = 64 << 20,
};

typedef struct bitnet_arena bitnet_arena;

typedef struct bitnet_extent {
    struct bitnet_extent *before, *after; /* neighbours in the arena */
    struct bitnet_extent *previous, *next; /* in the list of free extents */
    bitnet_arena *arena;
    uint8_t *start;
    size_t length;
    int is_free;
    int is_dirty; /* else it is as the system gave it: zeros, and no page of it was touched */
} bitnet_extent;

struct bitnet_arena {
    bitnet_arena *previous, *next;
    uint8_t *start;
    size_t length;
    int is_huge;
};

typedef struct {
    bitnet_arena *arenas;
    bitnet_extent *free;
    int wants_huge_pages;
    size_t reserved, huge, unused; /* bytes mapped; of them advised to use huge pages; in arenas without a block */
} bitnet_arenas;

static size_t bitnet_round_up(size_t n, size_t to) { return (n + to - 1) & ~(to - 1); }

static void bitnet_link_free(bitnet_arenas *set, bitnet_extent *extent) {
    extent->is_free = 1;
    extent->previous = NULL;
    extent->next = set->free;
    if (set->free != NULL) set->free->previous = extent;
    set->free = extent;
}

static void bitnet_unlink_free(bitnet_arenas *set, bitnet_extent *extent) {
    extent->is_free = 0;
    if (extent->previous != NULL) extent->previous->next = extent->next;
    else set->free = extent->next;
    if (extent->next != NULL) extent->next->previous = extent->previous;
}

/* Linux only; elsewhere, and where the system refuses, the arena stays on ordinary pages. */
static int bitnet_advise_huge(void *address, size_t length) {
#ifdef MADV_HUGEPAGE
    return madvise(address, length, MADV_HUGEPAGE) == 0;
#else
    (void)address;
    (void)length;
    return 0;
#endif
}

/* An arena with one free extent over all of it, or NULL where the system refuses. */
static bitnet_extent *bitnet_map_arena(bitnet_arenas *set, size_t length) {
    if (length > SIZE_MAX / 2 - BITNET_HUGE_PAGE) return NULL;
    bitnet_arena *arena = calloc(1, sizeof *arena);
    bitnet_extent *extent = calloc(1, sizeof *extent);
    /* A huge page more, to begin on a boundary; what is too much goes back. */
    const size_t mapped = length + BITNET_HUGE_PAGE;
    uint8_t *base = arena != NULL && extent != NULL
                        ? mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
                        : MAP_FAILED;
    if (base == MAP_FAILED) {
        free(arena);
        free(extent);
        return NULL;
    }
    arena->start = (uint8_t *)bitnet_round_up((uintptr_t)base, BITNET_HUGE_PAGE);
    arena->length = length;
    const size_t front = (size_t)(arena->start - base), back = mapped - length - front;
    if (front > 0) munmap(base, front);
    if (back > 0) munmap(arena->start + length, back);
    arena->is_huge = set->wants_huge_pages && bitnet_advise_huge(arena->start, length);
    arena->next = set->arenas;
    if (set->arenas != NULL) set->arenas->previous = arena;
    set->arenas = arena;
    set->reserved += length;
    set->huge += arena->is_huge ? length : 0;
    set->unused += length;
    extent->arena = arena;
    extent->start = arena->start;
    extent->length = length;
    bitnet_link_free(set, extent);
    BITNET_POISON(extent->start, extent->length);
    return extent;
}

/* `extent` is free and its whole arena. */
static void bitnet_unmap_arena(bitnet_arenas *set, bitnet_extent *extent) {
    bitnet_arena *arena = extent->arena;
    bitnet_unlink_free(set, extent);
    if (arena->previous != NULL) arena->previous->next = arena->next;
    else set->arenas = arena->next;
    if (arena->next != NULL) arena->next->previous = arena->previous;
    set->reserved -= arena->length;
    set->huge -= arena->is_huge ? arena->length : 0;
    set->unused -= arena->length;
    BITNET_UNPOISON(arena->start, arena->length);
    munmap(arena->start, arena->length);
    free(arena);
    free(extent);
}

static int bitnet_is_whole_arena(const bitnet_extent *extent) { return extent->length == extent->arena->length; }

static size_t bitnet_skipped(const bitnet_extent *extent, size_t alignment) {
    return bitnet_round_up((uintptr_t)extent->start, alignment) - (uintptr_t)extent->start;
}

/* The smallest that fits, and of those the lowest: small holes fill up, and whole arenas become free. */
static bitnet_extent *bitnet_best_fit(const bitnet_arenas *set, size_t length, size_t alignment) {
    bitnet_extent *best = NULL;
    for (bitnet_extent *one = set->free; one != NULL; one = one->next) {
        if (one->length < length || one->length - length < bitnet_skipped(one, alignment)) continue;
        if (best == NULL || one->length < best->length || (one->length == best->length && one->start < best->start))
            best = one;
    }
    return best;
}

/* Cut `extent` after `length` bytes; `rest`, which is new, becomes what follows, and is free. */
static void bitnet_cut(bitnet_arenas *set, bitnet_extent *extent, size_t length, bitnet_extent *rest) {
    *rest = *extent;
    rest->start = extent->start + length;
    rest->length = extent->length - length;
    rest->before = extent;
    extent->length = length;
    extent->after = rest;
    if (rest->after != NULL) rest->after->before = rest;
    bitnet_link_free(set, rest);
}

/* At least `length` bytes at a multiple of `alignment`, a power of two of at most 2 MiB; NULL where there are none. */
static bitnet_extent *bitnet_take_extent(bitnet_arenas *set, size_t length, size_t alignment) {
    if (length > SIZE_MAX / 2) return NULL;
    length = bitnet_round_up(length > 0 ? length : 1, BITNET_GRAIN);
    if (alignment < BITNET_GRAIN) alignment = BITNET_GRAIN;
    bitnet_extent *found = bitnet_best_fit(set, length, alignment);
    if (found == NULL) {
        const size_t least = bitnet_round_up(length, BITNET_HUGE_PAGE);
        size_t wanted = set->reserved < BITNET_MIN_ARENA ? BITNET_MIN_ARENA : set->reserved;
        if (wanted > BITNET_MAX_ARENA) wanted = BITNET_MAX_ARENA;
        wanted = bitnet_round_up(wanted, BITNET_HUGE_PAGE);
        if (wanted > least) found = bitnet_map_arena(set, wanted);
        if (found == NULL) found = bitnet_map_arena(set, least);
        if (found == NULL) return NULL;
    }
    const size_t front = bitnet_skipped(found, alignment);
    const int has_rest = found->length - front > length;
    bitnet_extent *first = front > 0 ? malloc(sizeof *first) : NULL;
    bitnet_extent *rest = has_rest ? malloc(sizeof *rest) : NULL;
    if ((front > 0 && first == NULL) || (has_rest && rest == NULL)) {
        free(first);
        free(rest);
        return NULL;
    }
    if (bitnet_is_whole_arena(found)) set->unused -= found->length;
    if (front > 0) {
        bitnet_cut(set, found, front, first); /* `found` stays free, in front */
        found = first;
    }
    bitnet_unlink_free(set, found);
    if (has_rest) bitnet_cut(set, found, length, rest);
    BITNET_UNPOISON(found->start, found->length);
    return found;
}

/* `after` goes, and belongs to `extent`; both are free. */
static void bitnet_join(bitnet_arenas *set, bitnet_extent *extent, bitnet_extent *after) {
    bitnet_unlink_free(set, after);
    extent->length += after->length;
    extent->is_dirty |= after->is_dirty;
    extent->after = after->after;
    if (extent->after != NULL) extent->after->before = extent;
    free(after);
}

static void bitnet_give_extent(bitnet_arenas *set, bitnet_extent *extent) {
    BITNET_POISON(extent->start, extent->length);
    extent->is_dirty = 1;
    bitnet_link_free(set, extent);
    if (extent->after != NULL && extent->after->is_free) bitnet_join(set, extent, extent->after);
    if (extent->before != NULL && extent->before->is_free) {
        extent = extent->before;
        bitnet_join(set, extent, extent->after);
    }
    if (bitnet_is_whole_arena(extent)) {
        set->unused += extent->length;
        if (set->unused > BITNET_KEPT_BYTES) bitnet_unmap_arena(set, extent);
    }
}

/* Gives what is free back to the system: arenas without a block, and the pages of other free extents that were touched.
 * Returns how many bytes. */
static size_t bitnet_trim_arenas(bitnet_arenas *set) {
    size_t given = 0;
    bitnet_extent *next;
    for (bitnet_extent *one = set->free; one != NULL; one = next) {
        next = one->next;
        if (bitnet_is_whole_arena(one)) {
            given += one->length;
            bitnet_unmap_arena(set, one);
        } else if (one->is_dirty && madvise(one->start, one->length, MADV_DONTNEED) == 0) {
            given += one->length;
            /* Elsewhere than on Linux it may keep its bytes. */
            one->is_dirty = !BITNET_DONTNEED_ZEROES;
        }
    }
    return given;
}

#endif
