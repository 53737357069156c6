/* Tiles of packing i2 against floats: part of ops_body.h, for the instruction set that it is included for. Not guarded. */

/* A lane is the 4 bytes of a row: column 4 f + k of a tile is in bits 2 f of byte k. */
BITNET_INLINE void OPS(floats_of)(const int tokens, const uint8_t *w, const float *x, ptrdiff_t x_stride, float *sums,
                                  ptrdiff_t tiles) {
    f32x16 total[8] = {{0}};
    for (ptrdiff_t tile = 0; tile < tiles; tile++) {
        i32x16 rows;
        memcpy(&rows, w + 64 * tile, 64);
        BITNET_PREFETCH((const char *)w + 64 * tile + 4096);
        for (int f = 0; f < 4; f++)
            for (int k = 0; k < 4; k++) {
                const i32x16 weights = (rows >> (8 * k + 2 * f) & 3) - 1;
                const f32x16 weight = OPS_CONVERT(weights, f32x16);
                for (int t = 0; t < tokens; t++) total[t] += weight * x[t * x_stride + 16 * tile + 4 * f + k];
            }
    }
    memcpy(sums, total, (size_t)tokens * 64);
}

BITNET_KERNEL void OPS(floats)(const uint8_t *w, const float *x, ptrdiff_t x_stride, float *sums, ptrdiff_t tiles,
                               ptrdiff_t tokens) {
    ptrdiff_t t = 0;
    for (; t + 4 <= tokens; t += 4) OPS(floats_of)(4, w, x + t * x_stride, x_stride, sums + 16 * t, tiles);
    for (; t < tokens; t++) OPS(floats_of)(1, w, x + t * x_stride, x_stride, sums + 16 * t, tiles);
    OPS_END();
}
