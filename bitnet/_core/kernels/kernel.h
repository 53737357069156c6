/* What a kernel is, whatever its packing and its instruction set.
 *
 * Rows come in panels of 16, columns in tiles of 64 stored bytes, columns of a tile in groups of 4
 * (packings/i2.pyx and packings/t5.pyx say where each code lies). A code is a weight plus one: 0, 1 or 2.
 * Kernels see codes; whoever calls them subtracts the sum of the inputs:
 *
 *     sum_c weight[r, c] * x[c]  =  sum_c code[r, c] * x[c]  -  sum_c x[c]
 *
 * Sums are exact int32 on every path: a product is at most 2 * 128 in magnitude, so 2^31 / 256 = 8.3 million
 * columns fit, and the callers admit at most BITNET_MAX_COLS. Exact integers do not depend on the order of
 * summation, so all kernels give the same bits.
 *
 * One kernel serves decoding (one token) and prefill (many): it decodes a tile's codes once, into registers, and
 * multiplies them with up to 8 tokens. With 128 tokens i2 runs so at 0.90 to 0.95 of the multiply peak of AVX512-VNNI
 * (bench/README.md). Only lut_kernel.h goes beyond that peak. */
#ifndef BITNET_KERNEL_H
#define BITNET_KERNEL_H

#include "target.h"

enum {
    BITNET_PANEL_ROWS = 16,
    BITNET_GROUP_COLS = 4,
    BITNET_TILE_BYTES = 64,
    BITNET_MAX_COLS = 1 << 22,
    /* Tokens that a kernel takes at once. */
    BITNET_TOKENS = 8,
    /* Sums of int16 lanes are widened after at most this many groups: each adds at most 2 * 2 * 128 = 512 in
     * magnitude, and 64 * -512 = -32768 is the last that fits. */
    BITNET_INT16_GROUPS = 64,
    /* Tiles after which sums that lie six bits up are brought down: 64 times the largest product of a lane's 4 columns,
     * 4 * 2 * 128, fits int32 2^15 times. */
    BITNET_FEW_TILES = 1 << 15,
    /* How far ahead of its reads a kernel asks for memory: about what one core has in flight. */
    BITNET_PREFETCH_BYTES = 4096
};

/* sums[16 * t + r] = sum over the tiles of code[r, c] * x[t * x_stride + c], for one panel, rows r = 0 to 15 and
 * 1 to BITNET_TOKENS tokens t.
 *
 *   w     tiles * BITNET_TILE_BYTES bytes, 64-byte aligned
 *   x     per token tiles * (columns of a tile) values; zero where the weight has no column */
typedef void (*bitnet_panel)(const uint8_t *w, const int8_t *x, ptrdiff_t x_stride, int32_t *sums, ptrdiff_t tiles,
                             ptrdiff_t tokens);

/* What the above asks for; the first line of every kernel. */
#define BITNET_ASSERT_PANEL(w, tiles, tokens)                                                                          \
    do {                                                                                                               \
        BITNET_ASSERT((uintptr_t)(w) % BITNET_TILE_BYTES == 0);                                                        \
        BITNET_ASSERT((tiles) > 0);                                                                                    \
        BITNET_ASSERT((tokens) >= 1 && (tokens) <= BITNET_TOKENS);                                                     \
    } while (0)

/* Makes what look-ups read (lut_kernel.h) in `passes` passes from `pass` on of a part of `tiles` tiles, of each of `panels`
 * panels, the first at w: pass by pass, and within a pass panel by panel. Tables have 1 << shift bytes a sum. */
typedef void (*bitnet_index)(const uint8_t *w, ptrdiff_t panel_bytes, ptrdiff_t panels, ptrdiff_t tiles, ptrdiff_t pass,
                             ptrdiff_t passes, int shift, uint8_t *indices);

/* Its first line. */
#define BITNET_ASSERT_INDEX(w, panel_bytes, indices)                                                                   \
    BITNET_ASSERT((uintptr_t)(w) % BITNET_TILE_BYTES == 0 && (panel_bytes) % BITNET_TILE_BYTES == 0 &&                 \
                  (uintptr_t)(indices) % 64 == 0)

/* How products of many tokens look sums up. */
typedef struct {
    bitnet_index index;     /* NULL: they do not */
    uint32_t needs;         /* of the kernel that looks up (lut.h), which reads what `index` makes */
    ptrdiff_t part_tiles;   /* of a part, at most */
    ptrdiff_t part_passes;  /* likewise; fewer tiles need one pass for pass_tiles, and no more */
    ptrdiff_t pass_tiles;
    ptrdiff_t pass_bytes;   /* of a pass and a panel, as made */
    /* So many tokens, of the 16 of a square and of the 32 of two the last ones (measured: bench/README.md); the latter 0 where
     * there are not two. */
    ptrdiff_t from, wide_from;
} bitnet_look_up;

/* None. */
#define BITNET_NO_LOOK_UP {NULL, 0, 0, 0, 0, 0, 0, 0}

typedef struct {
    const char *isa; /* its name in feature.h, in BITNET_ISA and in `bitnet doctor` */
    uint32_t needs;  /* the features it cannot do without */
    bitnet_panel panel;
    bitnet_look_up look_up;
} bitnet_kernel;

#endif
