/* Threads that take, write, check, resize and give back blocks of one pool at random, without Python between them: the
 * core's headers by themselves, so that the thread sanitizer sees every access. Usage: pool_stress THREADS SECONDS SEED.
 * Prints what the pool counted; the exit code is 1 where a block was not as it was left, or the counts do not add up. */
#include <stddef.h>
#include <stdint.h>

#include "arena.h"
#include "slab.h"
#include "memory.h"

#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BLOCKS = 64 };

typedef struct {
    bitnet_pool *pool;
    int64_t until;
    uint64_t random;
    long taken, bad;
} worker;

static uint64_t next_random(worker *w) { /* xorshift64 */
    w->random ^= w->random << 13;
    w->random ^= w->random >> 7;
    w->random ^= w->random << 17;
    return w->random;
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static uint8_t mark_of(const bitnet_block *block) { return (uint8_t)((uintptr_t)block * 31 + block->size); }

/* All of a small block, some places in a large one. */
static size_t step_of(size_t size) { return size > (64 << 10) ? 65519 : size > 1024 ? 251 : 1; }

static void fill(bitnet_block *block) {
    for (size_t i = 0; i < block->size; i += step_of(block->size)) block->data[i] = mark_of(block);
    if (block->size > 0) block->data[block->size - 1] = mark_of(block);
}

static int is_filled(const bitnet_block *block) {
    for (size_t i = 0; i < block->size; i += step_of(block->size))
        if (block->data[i] != mark_of(block)) return 0;
    return block->size == 0 || block->data[block->size - 1] == mark_of(block);
}

static size_t random_size(worker *w) {
    const uint64_t r = next_random(w);
    switch (r % 16) {
    case 0: return (size_t)(r >> 8) % (3 << 20);
    case 1: return (size_t)(1 << 20) + (r >> 8) % 3 - 1; /* around the threshold */
    case 2: case 3: return (size_t)(r >> 8) % (100 << 10);
    default: return (size_t)(r >> 8) % 600;
    }
}

static void *work(void *argument) {
    worker *w = argument;
    bitnet_block blocks[BLOCKS];
    int is_live[BLOCKS] = {0};
    do {
        for (int round = 0; round < 50; round++) {
            const uint64_t r = next_random(w);
            bitnet_block *block = &blocks[r % BLOCKS];
            if (!is_live[r % BLOCKS]) {
                const size_t alignment = (size_t)1 << ((r >> 20) % 14);
                if (bitnet_allocate(w->pool, random_size(w), alignment, (int)(r >> 40) % 8, 0, block) != BITNET_DONE) {
                    w->bad++;
                    continue;
                }
                w->bad += ((uintptr_t)block->data & (alignment - 1)) != 0;
                is_live[r % BLOCKS] = 1;
                w->taken++;
                fill(block);
            } else if ((r >> 30) % 4 == 0) {
                const size_t old_size = block->size;
                w->bad += !is_filled(block);
                if (!bitnet_resize_in_place(block, old_size / 2 + (r >> 32) % (old_size + 1), (r >> 29) & 1)) w->bad += block->size != old_size;
                fill(block);
            } else {
                w->bad += !is_filled(block) || bitnet_damaged_guard(block) >= 0;
                bitnet_free(block);
                is_live[r % BLOCKS] = 0;
            }
        }
        if (next_random(w) % 64 == 0) bitnet_trim_pool(w->pool);
    } while (now_ns() < w->until); /* at least once: on a busy machine a child's time is over before it runs */
    for (int i = 0; i < BLOCKS; i++) {
        if (!is_live[i]) continue;
        w->bad += !is_filled(&blocks[i]);
        bitnet_free(&blocks[i]);
    }
    return NULL;
}

static long run(bitnet_pool *pool, int threads, int64_t until, uint64_t seed, long *taken) {
    pthread_t ids[64];
    worker workers[64];
    long bad = 0;
    for (int i = 0; i < threads; i++) {
        workers[i] = (worker){.pool = pool, .until = until, .random = seed + 977 * (uint64_t)i + 1};
        bad += pthread_create(&ids[i], NULL, work, &workers[i]) != 0;
    }
    for (int i = 0; i < threads; i++) {
        pthread_join(ids[i], NULL);
        bad += workers[i].bad;
        *taken += workers[i].taken;
    }
    return bad;
}

/* While others allocate: the child must be able to, too. */
static void *fork_often(void *argument) {
    worker *w = argument;
    while (now_ns() < w->until) {
        usleep(20000);
        const pid_t child = fork();
        if (child == 0) {
            worker own = {.pool = w->pool, .until = now_ns() + 2000000, .random = 7};
            alarm(20); /* a lock that nobody holds would hang it */
            work(&own);
            _exit(own.bad != 0 || own.taken == 0);
        }
        int status = 0;
        w->bad += child < 0 || waitpid(child, &status, 0) != child || status != 0;
        w->taken++;
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    const int threads = atoi(argv[1]);
    const int64_t until = now_ns() + (int64_t)(atof(argv[2]) * 1e9);
    if (threads < 1 || threads > 64 || bitnet_prepare_fork() != 0) return 2;
    bitnet_pool *pools[2] = {bitnet_new_pool(1 << 20, 0, 1, 0), bitnet_new_pool(1 << 16, 0, 0, 1)};
    long bad = 0;
    for (int i = 0; i < 2; i++) {
        long taken = 0;
        const int64_t end = i == 0 ? (now_ns() + until) / 2 : until;
        worker forker = {.pool = pools[i], .until = end};
        pthread_t id;
        if (!BITNET_NO_FORK) bad += pthread_create(&id, NULL, fork_often, &forker) != 0;
        bad += run(pools[i], threads, end, (uint64_t)atoll(argv[3]) * 7919, &taken);
        if (!BITNET_NO_FORK) pthread_join(id, NULL);
        bad += forker.bad;
        bitnet_reading r;
        bitnet_read_pool(pools[i], &r);
        printf("%ld blocks taken, %ld forks, %ld bad, peak %lld bytes\n", taken, forker.taken, bad, (long long)r.peak);
        bad += r.bytes != 0 || r.small_allocated != r.small_freed || r.large_allocated != r.large_freed;
        bad += r.small_allocated + r.large_allocated != taken;
        for (int tag = 0; tag < BITNET_TAGS; tag++)
            bad += atomic_load(&pools[i]->tags[tag].bytes) != 0 || atomic_load(&pools[i]->tags[tag].blocks) != 0;
        bitnet_trim_pool(pools[i]);
        bitnet_read_pool(pools[i], &r);
        bad += r.reserved != 0;
        bad += bitnet_reset_pool(pools[i]) != 0;
        bitnet_release_pool(pools[i]);
    }
    bitnet_node node, head = {&head, &head};
    (void)node, (void)head, (void)bitnet_track, (void)bitnet_untrack, (void)bitnet_coarse_ns;
    return bad != 0;
}
