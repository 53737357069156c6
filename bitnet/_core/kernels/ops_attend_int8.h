/* Attention to one block of an int8 cache, in integers: part of ops_body.h, as ops_attend.h is, whose softmax it shares.
 *
 *     keys     (width / 4, OPS_BLOCK, 4), plus 128
 *     values   (OPS_BLOCK / 4, width, 4)
 *
 * Each is followed by OPS_BLOCK floats, the scales of the positions. A query is 14 bits a number, and so is a weight times
 * the scale of its value, relative to the largest in the block; both as two planes of bytes,
 *
 *     x = 128 h + l      query: h in -127..127, l in -64..63      weight: h and l in 0..127
 *
 * so rounding them does a 128th of what rounding keys and values has done. Sums of products are exact.
 *
 * OPS(dots), which the instruction set's header has, adds to acc[r][i] the products of a[r][4 g + k] with b[g][i][k], which
 * instructions sum by fours: of values, as they are, and with a from 0 on; of keys, with what they are plus OPS_BIAS. b's
 * groups are `row` bytes apart. It fetches what lies `ahead` bytes further. */

#define OPS_PLANES (2 * OPS_QUERIES)

/* What follows a query's two planes. */
typedef struct {
    float scale;
    int32_t sums[2]; /* of the planes */
} OPS(query_end);

BITNET_KERNEL void OPS(prepare_query)(const float *x, ptrdiff_t width, void *to) {
    int8_t *high = to, *low = high + OPS_PADDED(width);
    OPS(query_end) end = {0, {0, 0}};
    float largest = 1e-30f; /* of zeros any will do; smaller numbers have no reciprocal */
    int is_finite = 1;
    for (ptrdiff_t i = 0; i < width; i++) {
        largest = BITNET_ABS(x[i]) > largest ? BITNET_ABS(x[i]) : largest;
        is_finite &= BITNET_ABS(x[i]) < BITNET_INFINITY;
    }
    memset(to, 0, 2 * (size_t)OPS_PADDED(width));
    if (is_finite) {
        const float a = 16319.0f / largest;
        for (ptrdiff_t i = 0; i < width; i++) {
            /* Adding and taking away 1.5 * 2^23 rounds to an integer, halves to even. */
            const int32_t n = (int32_t)((x[i] * a + 12582912.0f) - 12582912.0f), h = (n + 64) >> 7;
            high[i] = (int8_t)h, low[i] = (int8_t)(n - 128 * h);
            end.sums[0] += h, end.sums[1] += n - 128 * h;
        }
    }
    end.scale = is_finite ? largest / 16319.0f : BITNET_INFINITY - BITNET_INFINITY; /* NaN: the run is to fail */
    memcpy(low + OPS_PADDED(width), &end, sizeof end);
    OPS_END();
}

/* 128 * high + low of 16 sums, as floats. */
BITNET_INLINE void OPS(join)(const int32_t *high, const int32_t *low, f32x16 *to) {
    const f32x16 h = OPS_CONVERT(*(const i32x16 *)high, f32x16), l = OPS_CONVERT(*(const i32x16 *)low, f32x16);
    OPS_FUSE(h, (f32x16){0} + 128.0f, l, to);
}

/* Scores of 16 * vectors positions from the block's position `at` on. */
BITNET_INLINE void OPS(int8_scores)(const int queries, const int vectors, const int8_t *const *planes,
                                    const OPS(query_end) *ends, const char *keys, ptrdiff_t ahead, ptrdiff_t width,
                                    ptrdiff_t at, float scale, float weights[OPS_QUERIES][OPS_BLOCK]) {
    int32_t acc[OPS_PLANES][16 * OPS_DOTS];
    for (int r = 0; r < 2 * queries; r++)
        for (int v = 0; v < vectors; v++)
            *(i32x16 *)(acc[r] + 16 * v) = (i32x16){0} - OPS_BIAS * ends[r / 2].sums[r % 2];
    OPS(dots)(1, 2 * queries, vectors, planes, OPS_PADDED(width) / 4, keys + 4 * at, 4 * OPS_BLOCK, ahead, acc);
    for (int q = 0; q < queries; q++)
        for (int v = 0; v < vectors; v++) {
            f32x16 score;
            OPS(join)(acc[2 * q] + 16 * v, acc[2 * q + 1] + 16 * v, &score);
            score *= ends[q].scale * scale;
            score *= *(const f32x16 *)((const float *)(keys + OPS_PADDED(width) * OPS_BLOCK) + at + 16 * v);
            *(f32x16 *)(weights[q] + at + 16 * v) = score;
        }
}

/* Makes planes of one query's weights, times the values' scales, up to `most`: zeros from `positions` on. Returns what the
 * sums are to be multiplied by. */
BITNET_INLINE float OPS(int8_weights)(float *weights, const float *scales, ptrdiff_t positions, ptrdiff_t most,
                                      int8_t *high, int8_t *low) {
    f32x16 largest = {0};
    for (ptrdiff_t j = 0; j < positions; j += 16) {
        const f32x16 weight = *(const f32x16 *)(weights + j);
        f32x16 product = weight * *(const f32x16 *)(scales + j);
        /* Behind the last position there may be no scale. */
        if (j + 16 > positions) {
            i32x16 has_weight;
            OPS_LESS((f32x16){0}, weight, &has_weight);
            product = (f32x16)((i32x16)product & has_weight);
        }
        OPS_RAISE(&largest, product);
        *(f32x16 *)(weights + j) = product;
    }
    const float top = OPS(largest)(&largest), a = top > 1e-30f ? 16383.0f / top : 0.0f;
    for (ptrdiff_t j = 0; j < most; j += 16) {
        i32x16 n = {0};
        if (j < positions) {
            /* 1.5 * 2^23 + n has n in the low bits. */
            f32x16 rounded;
            OPS_FUSE(*(const f32x16 *)(weights + j), (f32x16){0} + a, (f32x16){0} + 12582912.0f, &rounded);
            n = (i32x16)rounded & 0x3fff;
        }
        const i8x16 h_bytes = OPS_CONVERT(n >> 7, i8x16), l_bytes = OPS_CONVERT(n & 127, i8x16);
        memcpy(high + j, &h_bytes, 16);
        memcpy(low + j, &l_bytes, 16);
    }
    return top / 16383.0f;
}

/* Adds the weighted values of 16 * vectors numbers from number `at` on. */
BITNET_INLINE void OPS(int8_mix)(const int queries, const int vectors, const int8_t *const *planes, const float *factor,
                                 const char *values, ptrdiff_t ahead, ptrdiff_t width, ptrdiff_t at, ptrdiff_t groups,
                                 const float *shrink, float *const *sum) {
    int32_t acc[OPS_PLANES][16 * OPS_DOTS] = {{0}};
    OPS(dots)(0, 2 * queries, vectors, planes, groups, values + 4 * at, 4 * width, ahead, acc);
    for (int q = 0; q < queries; q++)
        for (int v = 0; v < vectors; v++) {
            f32x16 *to = (f32x16 *)(sum[q] + at + 16 * v), value;
            OPS(join)(acc[2 * q] + 16 * v, acc[2 * q + 1] + 16 * v, &value);
            value *= factor[q];
            OPS_FUSE(*to, (f32x16){0} + shrink[q], value, to);
        }
}

BITNET_INLINE void OPS(attend_int8)(const int queries, const void *const *query, const char *keys, const char *values,
                                    const char *next_keys, const char *next_values, const ptrdiff_t *from,
                                    const ptrdiff_t *positions, ptrdiff_t width, float scale, float (*state)[2],
                                    float *const *sum) {
    float scores[OPS_QUERIES][OPS_BLOCK], shrink[OPS_QUERIES], factor[OPS_QUERIES];
    int8_t bytes[OPS_PLANES][OPS_BLOCK];
    const int8_t *planes[OPS_PLANES];
    OPS(query_end) ends[OPS_QUERIES];
    const ptrdiff_t keys_ahead = (ptrdiff_t)((uintptr_t)next_keys - (uintptr_t)keys);
    const ptrdiff_t values_ahead = (ptrdiff_t)((uintptr_t)next_values - (uintptr_t)values);
    ptrdiff_t most = 0, at = 0, i = 0;
    for (int q = 0; q < queries; q++) {
        most = positions[q] > most ? positions[q] : most;
        planes[2 * q] = query[q], planes[2 * q + 1] = planes[2 * q] + OPS_PADDED(width);
        memcpy(&ends[q], planes[2 * q + 1] + OPS_PADDED(width), sizeof ends[q]);
    }
    most = (most + 15) & ~(ptrdiff_t)15;
    for (; at + 16 * OPS_DOTS <= most; at += 16 * OPS_DOTS)
        OPS(int8_scores)(queries, OPS_DOTS, planes, ends, keys, keys_ahead, width, at, scale, scores);
    for (; at < most; at += 16) OPS(int8_scores)(queries, 1, planes, ends, keys, keys_ahead, width, at, scale, scores);
    OPS(soften)(queries, scores, from, positions, state, shrink);
    for (int q = 0; q < queries; q++) {
        planes[2 * q] = bytes[2 * q], planes[2 * q + 1] = bytes[2 * q + 1];
        factor[q] = OPS(int8_weights)(scores[q], (const float *)(values + OPS_PADDED(width) * OPS_BLOCK), positions[q], most,
                                      bytes[2 * q], bytes[2 * q + 1]);
    }
    for (; i + 16 * OPS_DOTS <= width; i += 16 * OPS_DOTS)
        OPS(int8_mix)(queries, OPS_DOTS, planes, factor, values, values_ahead, width, i, most / 4, shrink, sum);
    for (; i + 16 <= width; i += 16)
        OPS(int8_mix)(queries, 1, planes, factor, values, values_ahead, width, i, most / 4, shrink, sum);
    for (; i < width; i++)
        for (int q = 0; q < queries; q++) {
            int32_t high = 0, low = 0;
            for (ptrdiff_t j = 0; j < most; j++) {
                const int32_t value = ((const int8_t *)values)[(j / 4 * width + i) * 4 + j % 4];
                high += value * bytes[2 * q][j], low += value * bytes[2 * q + 1][j];
            }
            sum[q][i] = BITNET_FMA(sum[q][i], shrink[q], BITNET_FMA((float)high, 128.0f, (float)low) * factor[q]);
        }
}

/* What floats are multiplied by to be bytes, which are then rounded, halves to even; 0 where they are all but zeros, and have no
 * reciprocal. `scale` becomes what a byte of 1 stands for: NaN where a number is not finite, for the run is to fail. */
BITNET_INLINE float OPS(to_bytes)(const float *x, ptrdiff_t n, float *scale) {
    float largest = 0;
    int is_finite = 1;
    for (ptrdiff_t i = 0; i < n; i++) {
        largest = BITNET_ABS(x[i]) > largest ? BITNET_ABS(x[i]) : largest;
        is_finite &= BITNET_ABS(x[i]) < BITNET_INFINITY;
    }
    *scale = is_finite ? largest / 127.0f : BITNET_INFINITY - BITNET_INFINITY;
    return is_finite && largest > 1e-30f ? 127.0f / largest : 0.0f;
}

/* Adding and taking away 1.5 * 2^23 rounds to an integer. */
#define OPS_BYTE(x, a) ((a) > 0 ? (int32_t)(((x) * (a) + 12582912.0f) - 12582912.0f) : 0)

BITNET_INLINE void OPS(store_int8_key)(const float *x, ptrdiff_t n, uint8_t *block, ptrdiff_t position) {
    const float a = OPS(to_bytes)(x, n, (float *)(block + OPS_PADDED(n) * OPS_BLOCK) + position);
    uint8_t *to = block + 4 * position;
    for (ptrdiff_t i = 0; i < OPS_PADDED(n); i += 4, to += 4 * OPS_BLOCK)
        for (int k = 0; k < 4; k++) to[k] = (uint8_t)(128 + (i + k < n ? OPS_BYTE(x[i + k], a) : 0));
}

BITNET_INLINE void OPS(store_int8_value)(const float *x, ptrdiff_t n, uint8_t *block, ptrdiff_t position) {
    const float a = OPS(to_bytes)(x, n, (float *)(block + OPS_PADDED(n) * OPS_BLOCK) + position);
    uint8_t *to = block + position / 4 * 4 * n + position % 4;
    for (ptrdiff_t i = 0; i < n; i++) to[4 * i] = (uint8_t)OPS_BYTE(x[i], a);
}

#undef OPS_BYTE
