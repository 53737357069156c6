/* Attention to one block of the cache, for ops_body.h, which includes this file: up to 4 queries that share keys and
 * values side by side, so that each number of the cache is taken from memory, and made a float, once for all of them.
 *
 *     keys     (width, OPS_BLOCK): the numbers of 16 positions lie side by side, so scores need no sum over lanes
 *     values   (OPS_BLOCK, width)
 *
 * OPS(tile), which the instruction set's header has, adds to acc[q][i] the products a[q][k] * b[k][i], for k from `from`
 * on and below `to`, one after the other, each rounded once together with its sum (fused); b's rows are `row` bytes apart.
 * It fetches what lies `ahead` bytes further: the same place in the next block.
 *
 * Every score is summed over the width, and every output over the positions, one after the other: how many queries or
 * vectors go side by side changes no bit. (An int8 cache: ops_attend_int8.h.) */

/* Scores of 16 * vectors positions from the block's position `at` on. */
BITNET_INLINE void OPS(scores)(const int dtype, const int bytes, const int queries, const int vectors,
                               const float *const *query, const char *keys, ptrdiff_t ahead, ptrdiff_t width,
                               ptrdiff_t at, float scale, float weights[OPS_QUERIES][OPS_BLOCK]) {
    /* In two halves: shorter sums are rounded less. */
    float acc[2][OPS_QUERIES][16 * OPS_TILE] = {{{0}}};
    for (int half = 0; half < 2; half++)
        OPS(tile)(dtype, queries, vectors, query, half ? width / 2 : 0, half ? width : width / 2, keys + at * bytes,
                  OPS_BLOCK * bytes, ahead, acc[half]);
    for (int q = 0; q < queries; q++)
        for (int v = 0; v < vectors; v++) {
            const f32x16 score = (*(f32x16 *)(acc[0][q] + 16 * v) + *(f32x16 *)(acc[1][q] + 16 * v)) * scale;
            *(f32x16 *)(weights[q] + at + 16 * v) = score;
        }
}

BITNET_INLINE float OPS(largest)(const f32x16 *lanes) {
    f32x16 m = *lanes;
    OPS_RAISE(&m, OPS_SHUFFLE(m, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    OPS_RAISE(&m, OPS_SHUFFLE(m, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3));
    OPS_RAISE(&m, OPS_SHUFFLE(m, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1));
    return m[0] > m[1] ? m[0] : m[1];
}

/* 16 scores from a block's position `at` on, minus infinity before `from` and from `positions` on. */
BITNET_INLINE void OPS(window)(const float *scores, ptrdiff_t at, ptrdiff_t from, ptrdiff_t positions, f32x16 *to) {
    const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const f32x16 score = *(const f32x16 *)(scores + at), none = (f32x16){0} - BITNET_INFINITY;
    *to = score;
    if (from <= at && at + 16 <= positions) return;
    const i32x16 is_before = lane < (i32x16){0} + (int32_t)(positions - at);
    const i32x16 is_in = is_before & (lane >= (i32x16){0} + (int32_t)(from - at));
    *to = (f32x16)(((i32x16)score & is_in) | ((i32x16)none & ~is_in));
}

/* Goes on with the softmax of some queries; their scores become weights, 0 before `from` and from `positions` on. `shrink`
 * becomes what the sums so far are to be multiplied by. */
BITNET_INLINE void OPS(soften)(const int queries, float weights[OPS_QUERIES][OPS_BLOCK], const ptrdiff_t *from,
                               const ptrdiff_t *positions, float (*state)[2], float *shrink) {
    f32x16 steps = {0}; /* a lane for each query */
    float largest[OPS_QUERIES];
    for (int q = 0; q < queries; q++) {
        f32x16 most = (f32x16){0} - BITNET_INFINITY;
        for (ptrdiff_t j = 0; j < positions[q]; j += 16) {
            f32x16 score;
            OPS(window)(weights[q], j, from[q], positions[q], &score);
            OPS_RAISE(&most, score);
            *(f32x16 *)(weights[q] + j) = score;
        }
        const float found = OPS(largest)(&most);
        largest[q] = found > state[q][0] ? found : state[q][0];
        /* No position yet: a later query than those it is with, whose window begins in a later block. */
        steps[q] = from[q] < positions[q] ? state[q][0] - largest[q] : 0.0f;
    }
    OPS(exp)(&steps);
    for (int q = 0; q < queries; q++) {
        f32x16 total = {0};
        for (ptrdiff_t j = 0; j < positions[q]; j += 16) {
            f32x16 power = {0};
            if (from[q] < positions[q]) {
                power = *(const f32x16 *)(weights[q] + j) - largest[q];
                OPS(exp)(&power);
            }
            *(f32x16 *)(weights[q] + j) = power;
            total += power;
        }
        shrink[q] = steps[q];
        state[q][0] = largest[q];
        state[q][1] = state[q][1] * shrink[q] + OPS(total)(&total);
    }
}

/* Adds the weighted values of 16 * vectors numbers from number `at` on. */
BITNET_INLINE void OPS(mix)(const int dtype, const int bytes, const int queries, const int vectors,
                            const float *const *weights, const char *values, ptrdiff_t ahead, ptrdiff_t width,
                            ptrdiff_t at, const ptrdiff_t *positions, ptrdiff_t common, const float *shrink, float *const *sum) {
    float acc[OPS_QUERIES][16 * OPS_TILE];
    for (int q = 0; q < queries; q++)
        for (int v = 0; v < vectors; v++)
            *(f32x16 *)(acc[q] + 16 * v) = *(f32x16 *)(sum[q] + at + 16 * v) * shrink[q];
    OPS(tile)(dtype, queries, vectors, weights, 0, common, values + at * bytes, width * bytes, ahead, acc);
    for (int q = 0; q < queries; q++) {
        /* Later tokens of a prompt see some positions more. */
        if (positions[q] > common)
            OPS(tile)(dtype, 1, vectors, weights + q, common, positions[q], values + at * bytes, width * bytes, 0,
                      acc + q);
        for (int v = 0; v < vectors; v++) *(f32x16 *)(sum[q] + at + 16 * v) = *(f32x16 *)(acc[q] + 16 * v);
    }
}

BITNET_INLINE void OPS(attend_of)(const int dtype, const int bytes, const int queries, const void *const *queries_of,
                                  const char *keys, const char *values, const char *next_keys,
                                  const char *next_values, const ptrdiff_t *from, const ptrdiff_t *positions,
                                  ptrdiff_t width, float scale, float (*state)[2], float *const *sum) {
    float scores[OPS_QUERIES][OPS_BLOCK], shrink[OPS_QUERIES];
    const float *query[OPS_QUERIES];
    for (int q = 0; q < queries; q++) query[q] = queries_of[q];
    const float *weights[OPS_QUERIES];
    const ptrdiff_t keys_ahead = (ptrdiff_t)((uintptr_t)next_keys - (uintptr_t)keys);
    const ptrdiff_t values_ahead = (ptrdiff_t)((uintptr_t)next_values - (uintptr_t)values);
    ptrdiff_t most = positions[0], common = positions[0], at = 0;
    for (int q = 1; q < queries; q++) {
        most = positions[q] > most ? positions[q] : most;
        common = positions[q] < common ? positions[q] : common;
    }
    for (; at + 16 * OPS_TILE <= ((most + 15) & ~(ptrdiff_t)15); at += 16 * OPS_TILE)
        OPS(scores)(dtype, bytes, queries, OPS_TILE, query, keys, keys_ahead, width, at, scale, scores);
    for (; at < most; at += 16) OPS(scores)(dtype, bytes, queries, 1, query, keys, keys_ahead, width, at, scale, scores);
    OPS(soften)(queries, scores, from, positions, state, shrink);
    for (int q = 0; q < queries; q++) weights[q] = scores[q];
    ptrdiff_t i = 0;
    for (; i + 16 * OPS_TILE <= width; i += 16 * OPS_TILE)
        OPS(mix)(dtype, bytes, queries, OPS_TILE, weights, values, values_ahead, width, i, positions, common, shrink, sum);
    for (; i + 16 <= width; i += 16)
        OPS(mix)(dtype, bytes, queries, 1, weights, values, values_ahead, width, i, positions, common, shrink, sum);
    for (; i < width; i++)
        for (int q = 0; q < queries; q++) {
            float total = sum[q][i] * shrink[q];
            for (ptrdiff_t j = 0; j < positions[q]; j++)
                total = BITNET_FMA(OPS(take_one)(dtype, values + j * width * bytes, i), weights[q][j], total);
            sum[q][i] = total;
        }
}

#include "ops_attend_int8.h"

#define OPS_ATTEND_REST \
    query, keys, values, next_keys, next_values, from, positions, width, scale, state, sum
#define OPS_ATTEND(dtype, bytes, queries)                    \
    if (dtype == OPS_INT8) {                                 \
        OPS(attend_int8)(queries, OPS_ATTEND_REST);          \
    } else {                                                 \
        OPS(attend_of)(dtype, bytes, queries, OPS_ATTEND_REST); \
    }
#define OPS_ATTEND_QUERIES(dtype, bytes)                     \
    switch (queries) {                                       \
    case 1: OPS_ATTEND(dtype, bytes, 1) break;               \
    case 2: OPS_ATTEND(dtype, bytes, 2) break;               \
    case 3: OPS_ATTEND(dtype, bytes, 3) break;               \
    default: OPS_ATTEND(dtype, bytes, OPS_QUERIES) break;    \
    }

BITNET_KERNEL void OPS(attend)(int dtype, int queries, const void *const *query, const void *keys, const void *values,
                               const void *next_keys, const void *next_values, const ptrdiff_t *from,
                               const ptrdiff_t *positions, ptrdiff_t width, float scale, float (*state)[2],
                               float *const *sum) {
    BITNET_ASSERT(queries >= 1 && queries <= OPS_QUERIES);
    switch (dtype) {
    case OPS_FLOAT32: OPS_ATTEND_QUERIES(OPS_FLOAT32, 4) break;
    case OPS_FLOAT16: OPS_ATTEND_QUERIES(OPS_FLOAT16, 2) break;
    default: OPS_ATTEND_QUERIES(OPS_INT8, 1) break;
    }
    OPS_END();
}

BITNET_KERNEL void OPS(merge)(const float *part_state, const float *part, ptrdiff_t width, float *state, float *sum) {
    if (part_state[1] == 0) return; /* it saw no position */
    const float largest = part_state[0] > state[0] ? part_state[0] : state[0];
    const float shrink = OPS(exp_one)(state[0] - largest), part_shrink = OPS(exp_one)(part_state[0] - largest);
    ptrdiff_t i = 0;
    for (; i + 16 <= width; i += 16)
        *(f32x16 *)(sum + i) = *(f32x16 *)(sum + i) * shrink + *(const f32x16 *)(part + i) * part_shrink;
    for (; i < width; i++) sum[i] = sum[i] * shrink + part[i] * part_shrink;
    state[0] = largest;
    state[1] = state[1] * shrink + part_state[1] * part_shrink;
    OPS_END();
}

#undef OPS_ATTEND
#undef OPS_ATTEND_REST
#undef OPS_PLANES
#undef OPS_ATTEND_QUERIES

BITNET_KERNEL void OPS(store_keys)(int dtype, const float *x, ptrdiff_t x_stride, ptrdiff_t positions, ptrdiff_t n,
                                   void *block, ptrdiff_t position) {
    if (dtype == OPS_INT8) {
        for (ptrdiff_t p = 0; p < positions; p++) OPS(store_int8_key)(x + p * x_stride, n, block, position + p);
    } else if (positions == 16 && dtype == OPS_FLOAT16) {
        /* A cache line holds 32 positions of a number: 16 at once spare 15 ways to it. */
        for (ptrdiff_t i = 0; i < n; i++) {
            float numbers[16];
            for (int p = 0; p < 16; p++) numbers[p] = x[p * x_stride + i];
            OPS_TO_HALVES(numbers, (uint16_t *)block + i * OPS_BLOCK + position);
        }
    } else if (dtype == OPS_FLOAT16) {
        /* A number lies on a cache line of its own, which comes from memory: ask for all of them first. */
        uint16_t *to = (uint16_t *)block + position, halves[16];
        for (ptrdiff_t i = 0; i < n; i++) BITNET_PREFETCH_WRITE(to + i * OPS_BLOCK);
        for (ptrdiff_t p = 0; p < positions; p++) {
            const float *from = x + p * x_stride;
            ptrdiff_t i = 0;
            for (; i + 16 <= n; i += 16) {
                OPS_TO_HALVES(from + i, halves);
                for (int k = 0; k < 16; k++) to[(i + k) * OPS_BLOCK + p] = halves[k];
            }
            for (; i < n; i++) to[i * OPS_BLOCK + p] = ops_float_to_half(from[i]);
        }
    } else {
        for (ptrdiff_t i = 0; i < n; i++)
            for (ptrdiff_t p = 0; p < positions; p++)
                ((float *)block)[i * OPS_BLOCK + position + p] = x[p * x_stride + i];
    }
    OPS_END();
}

BITNET_KERNEL void OPS(store_value)(int dtype, const float *x, ptrdiff_t n, void *block, ptrdiff_t position) {
    if (dtype == OPS_INT8) {
        OPS(store_int8_value)(x, n, block, position);
    } else {
        OPS(store_of)(dtype, x, n, (char *)block + position * n * (dtype == OPS_FLOAT32 ? 4 : 2));
    }
    OPS_END();
}
