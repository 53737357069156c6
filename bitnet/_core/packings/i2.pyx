"""i2: two bits a weight.

A tile is 16 rows x 16 columns, its 64 bytes are numbered 4 * row + (column % 4), and byte 4 * row + c holds the codes
(weight + 1) of the row's columns c, 4 + c, 8 + c and 12 + c, the first in the lowest two bits. The code 3 is not
used. Padding, of rows and of columns, is code 1: the weight 0.
"""

from libc.stdint cimport int8_t, int32_t, uint8_t, uint32_t
from libc.string cimport memcpy

from bitnet._core.packings.contract cimport BITNET_TILE_BYTES, Packing, bitnet_kernel, four_bytes

cdef extern from "kernels/i2.h":
    const bitnet_kernel I2_KERNELS[]

cdef enum:
    TILE_COLS = 16


cdef void _pack(const uint8_t *codes, Py_ssize_t stride, uint8_t *w, Py_ssize_t tiles) noexcept nogil:
    cdef const uint8_t *at
    cdef Py_ssize_t tile, row
    cdef uint32_t fields
    for row in range(16):
        for tile in range(tiles):
            at = codes + row * stride + tile * TILE_COLS
            fields = four_bytes(at) | four_bytes(at + 4) << 2 | four_bytes(at + 8) << 4 | four_bytes(at + 12) << 6
            memcpy(w + tile * BITNET_TILE_BYTES + 4 * row, &fields, 4)


cdef void _unpack(const uint8_t *w, Py_ssize_t tiles, uint8_t *codes, Py_ssize_t stride) noexcept nogil:
    cdef uint8_t *to
    cdef Py_ssize_t tile, row, group
    cdef uint32_t fields, four
    for row in range(16):
        for tile in range(tiles):
            to = codes + row * stride + tile * TILE_COLS
            fields = four_bytes(w + tile * BITNET_TILE_BYTES + 4 * row)
            for group in range(4):
                four = fields >> (2 * group) & <uint32_t>0x03030303
                memcpy(to + 4 * group, &four, 4)


cdef void _panel(const uint8_t *w, const int8_t *x, Py_ssize_t x_stride, int32_t *sums, Py_ssize_t tiles,
                 Py_ssize_t tokens) noexcept nogil:
    cdef Py_ssize_t t, tile, row, group, c
    cdef const uint8_t *at
    cdef const int8_t *inputs
    cdef int32_t total
    for t in range(tokens):
        for row in range(16):
            total = 0
            for tile in range(tiles):
                at = w + tile * BITNET_TILE_BYTES + 4 * row
                inputs = x + t * x_stride + tile * TILE_COLS
                for group in range(4):
                    for c in range(4):
                        total += <int32_t>(at[c] >> (2 * group) & 3) * inputs[4 * group + c]
            sums[16 * t + row] = total


I2.name = "i2"
I2.tile_cols = TILE_COLS
I2.pack = _pack
I2.unpack = _unpack
I2.portable = _panel
I2.kernels = I2_KERNELS
