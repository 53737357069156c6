"""t5: five weights a byte, 1.6 bits each.

A tile is 16 rows x 20 columns, its 64 bytes are numbered 4 * row + (column % 4), and byte 4 * row + c holds the
weights w0 to w4 of the row's columns c, 4 + c, 8 + c, 12 + c and 16 + c. As digits of balanced ternary they are the
number ``v = 81 w0 + 27 w1 + 9 w2 + 3 w3 + w4``, -121 to 121; stored is, as int8, the integer next to
``v * 256 / 243``: the number as a fraction of 256.

Times three, a fraction shows its next digit before the point and keeps the rest behind it::

    w0 = (3 s + 128) >> 8,    s = int8(3 s),    w1 = (3 s + 128) >> 8, ...

so a digit is two comparisons (``s > 42``, ``s < -42``) and the step to the next two additions in 8-bit lanes, which
wrap by themselves. Negating the byte negates its five weights, so a table for look-ups needs 128 entries only.
Rounding moves a fraction by at most 1/512, and 81/512 after four steps: less than the 1/6 between the middle of a
third and its end, so every digit comes out right. (The fraction is what TQ1_0 of ggml stores without a sign.)

The values that no five weights give decode to some weights all the same; padding is the weight 0.
"""

from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t, uint32_t
from libc.string cimport memcpy

from bitnet._core.packings.contract cimport BITNET_TILE_BYTES, Packing, bitnet_kernel, four_bytes

cdef extern from "kernels/t5.h":
    const bitnet_kernel T5_KERNELS[]

cdef enum:
    TILE_COLS = 20

# The stored byte of v + 121. The rest is never stored: it keeps codes that are none, and are refused after packing,
# within the table.
cdef uint8_t _stored[256]
for _v in range(-121, 122):
    # The nearest integer: 256 v / 243 is never halfway between two.
    _stored[_v + 121] = ((2 * 256 * _v + 243) // (2 * 243)) & 0xff


cdef void _pack(const uint8_t *codes, Py_ssize_t stride, uint8_t *w, Py_ssize_t tiles) noexcept nogil:
    cdef const uint8_t *at
    cdef Py_ssize_t tile, row
    cdef uint32_t number
    for row in range(16):
        for tile in range(tiles):
            at = codes + row * stride + tile * TILE_COLS
            # Four numbers v + 121 at once: each is at most 242, so no byte carries.
            number = (81 * four_bytes(at) + 27 * four_bytes(at + 4) + 9 * four_bytes(at + 8)
                      + 3 * four_bytes(at + 12) + four_bytes(at + 16))
            number = (_stored[number & 0xff] | _stored[number >> 8 & 0xff] << 8 | _stored[number >> 16 & 0xff] << 16
                      | <uint32_t>_stored[number >> 24] << 24)
            memcpy(w + tile * BITNET_TILE_BYTES + 4 * row, &number, 4)


cdef inline int _next_digit(int8_t *fraction) noexcept nogil:
    cdef int tripled = 3 * fraction[0]
    fraction[0] = <int8_t>(tripled & 0xff)
    return (tripled + 128) >> 8


cdef void _unpack(const uint8_t *w, Py_ssize_t tiles, uint8_t *codes, Py_ssize_t stride) noexcept nogil:
    cdef Py_ssize_t tile, row, group, c
    cdef int8_t fraction
    for tile in range(tiles):
        for row in range(16):
            for c in range(4):
                fraction = <int8_t>w[tile * BITNET_TILE_BYTES + 4 * row + c]
                for group in range(5):
                    codes[row * stride + tile * TILE_COLS + 4 * group + c] = <uint8_t>(_next_digit(&fraction) + 1)


cdef void _panel(const uint8_t *w, const int8_t *x, Py_ssize_t x_stride, int32_t *sums, Py_ssize_t tiles,
                 Py_ssize_t tokens) noexcept nogil:
    cdef Py_ssize_t t, tile, row, group, c
    cdef const int8_t *inputs
    cdef int8_t fraction
    cdef int32_t total
    for t in range(tokens):
        for row in range(16):
            total = 0
            for tile in range(tiles):
                inputs = x + t * x_stride + tile * TILE_COLS
                for c in range(4):
                    fraction = <int8_t>w[tile * BITNET_TILE_BYTES + 4 * row + c]
                    for group in range(5):
                        total += (_next_digit(&fraction) + 1) * inputs[4 * group + c]
            sums[16 * t + row] = total


T5.name = "t5"
T5.tile_cols = TILE_COLS
T5.pack = _pack
T5.unpack = _unpack
T5.portable = _panel
T5.kernels = T5_KERNELS
