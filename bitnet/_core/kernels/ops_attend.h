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
 * Of OPS_INT8 each is followed by OPS_BLOCK floats, the scales of the positions. Every score is summed over the width,
 * and every output over the positions, one after the other: how many queries or vectors go side by side changes no bit. */

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
            f32x16 score = (*(f32x16 *)(acc[0][q] + 16 * v) + *(f32x16 *)(acc[1][q] + 16 * v)) * scale;
            if (dtype == OPS_INT8)
                score *= *(const f32x16 *)((const float *)(keys + width * OPS_BLOCK) + at + 16 * v);
            *(f32x16 *)(weights[q] + at + 16 * v) = score;
        }
}

/* The larger of each lane; a NaN in `other` does not count. */
BITNET_INLINE void OPS(raise)(f32x16 *most, f32x16 other) {
    const i32x16 is_more = other > *most;
    *most = (f32x16)(((i32x16)other & is_more) | ((i32x16)*most & ~is_more));
}

BITNET_INLINE float OPS(largest)(const f32x16 *lanes) {
    f32x16 m = *lanes;
    OPS(raise)(&m, OPS_SHUFFLE(m, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    OPS(raise)(&m, OPS_SHUFFLE(m, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3));
    OPS(raise)(&m, OPS_SHUFFLE(m, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1));
    return m[0] > m[1] ? m[0] : m[1];
}

/* Goes on with one query's softmax; its scores become weights, 0 before `from` and from `positions` on. Returns what the
 * sums so far are to be multiplied by. */
BITNET_INLINE float OPS(soften)(float *weights, ptrdiff_t from, ptrdiff_t positions, float *state) {
    const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const f32x16 none = (f32x16){0} - BITNET_INFINITY;
    f32x16 most = none, total = {0};
    if (from >= positions) { /* a later query than those it is with: its window begins in a later block */
        for (ptrdiff_t j = 0; j < positions; j += 16) *(f32x16 *)(weights + j) = (f32x16){0};
        return 1;
    }
    for (ptrdiff_t j = 0; j < positions; j += 16) {
        const f32x16 score = *(f32x16 *)(weights + j);
        const i32x16 is_before = lane < (i32x16){0} + (int32_t)(positions - j);
        const i32x16 is_in = is_before & (lane >= (i32x16){0} + (int32_t)(from - j));
        const f32x16 kept = (f32x16)(((i32x16)score & is_in) | ((i32x16)none & ~is_in));
        OPS(raise)(&most, kept);
        *(f32x16 *)(weights + j) = kept;
    }
    const float found = OPS(largest)(&most), largest = found > state[0] ? found : state[0];
    for (ptrdiff_t j = 0; j < positions; j += 16) {
        f32x16 power = *(f32x16 *)(weights + j) - largest;
        OPS(exp)(&power);
        *(f32x16 *)(weights + j) = power;
        total += power;
    }
    const float shrink = OPS(exp_one)(state[0] - largest);
    state[0] = largest;
    state[1] = state[1] * shrink + OPS(total)(&total);
    return shrink;
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

BITNET_INLINE void OPS(attend_of)(const int dtype, const int bytes, const int queries, const float *const *query,
                                  const char *keys, const char *values, const char *next_keys,
                                  const char *next_values, const ptrdiff_t *from, const ptrdiff_t *positions, ptrdiff_t width, float scale, float (*state)[2],
                                  float *const *sum) {
    float scores[OPS_QUERIES][OPS_BLOCK], shrink[OPS_QUERIES];
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
    for (int q = 0; q < queries; q++) {
        shrink[q] = OPS(soften)(scores[q], from[q], positions[q], state[q]);
        if (dtype == OPS_INT8)
            for (ptrdiff_t j = 0; j < positions[q]; j += 16)
                *(f32x16 *)(scores[q] + j) *= *(const f32x16 *)((const float *)(values + width * OPS_BLOCK) + j);
        weights[q] = scores[q];
    }
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

#define OPS_ATTEND(dtype, bytes, queries) \
    OPS(attend_of)(dtype, bytes, queries, query, keys, values, next_keys, next_values, from, positions, width, scale, \
                   state, sum)

#define OPS_ATTEND_QUERIES(dtype, bytes)                     \
    switch (queries) {                                       \
    case 1: OPS_ATTEND(dtype, bytes, 1); break;              \
    case 2: OPS_ATTEND(dtype, bytes, 2); break;              \
    case 3: OPS_ATTEND(dtype, bytes, 3); break;              \
    default: OPS_ATTEND(dtype, bytes, OPS_QUERIES); break;   \
    }

BITNET_KERNEL void OPS(attend)(int dtype, int queries, const float *const *query, const void *keys, const void *values,
                               const void *next_keys, const void *next_values, const ptrdiff_t *from, const ptrdiff_t *positions, ptrdiff_t width, float scale,
                               float (*state)[2], float *const *sum) {
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
#undef OPS_ATTEND_QUERIES

/* Bytes of floats as int8: a = 127 / max |x|, round(x a) and the scale 1 / a; of zeros, zeros with the scale 0. */
BITNET_INLINE float OPS(to_bytes)(const float *x, ptrdiff_t n, int8_t *bytes, ptrdiff_t stride) {
    float largest = 0;
    for (ptrdiff_t i = 0; i < n; i++) largest = BITNET_ABS(x[i]) > largest ? BITNET_ABS(x[i]) : largest;
    const float a = largest > 0 ? 127.0f / largest : 0.0f;
    /* Adding and taking away 1.5 * 2^23 rounds to an integer, halves to even. */
    for (ptrdiff_t i = 0; i < n; i++) bytes[i * stride] = (int8_t)((x[i] * a + 12582912.0f) - 12582912.0f);
    return largest / 127.0f;
}

BITNET_KERNEL void OPS(store_keys)(int dtype, const float *x, ptrdiff_t x_stride, ptrdiff_t positions, ptrdiff_t n,
                                   void *block, ptrdiff_t position) {
    if (dtype == OPS_INT8) {
        for (ptrdiff_t p = 0; p < positions; p++) {
            int8_t *to = (int8_t *)block;
            const float scale = OPS(to_bytes)(x + p * x_stride, n, to + position + p, OPS_BLOCK);
            ((float *)(to + n * OPS_BLOCK))[position + p] = scale;
        }
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
        const float scale = OPS(to_bytes)(x, n, (int8_t *)block + position * n, 1);
        ((float *)((int8_t *)block + n * OPS_BLOCK))[position] = scale;
    } else {
        OPS(store_of)(dtype, x, n, (char *)block + position * n * (dtype == OPS_FLOAT32 ? 4 : 2));
    }
    OPS_END();
}
