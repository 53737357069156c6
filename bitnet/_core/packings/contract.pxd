# What a packing is: one fixed layout of ternary weights in memory, the same on every CPU.
#
# kernels/kernel.h says what panels, tiles and groups are. A packing lays out tiles of 64 bytes; a panel's tiles
# follow one another along the columns, and panels follow one another, so that a product reads one stream.

from libc.stdint cimport int8_t, int32_t, uint8_t, uint32_t
from libc.string cimport memcpy

cdef extern from "kernels/kernel.h":
    enum:
        BITNET_PANEL_ROWS
        BITNET_GROUP_COLS
        BITNET_TILE_BYTES
        BITNET_MAX_COLS
        BITNET_TOKENS
    ctypedef void (*bitnet_panel)(const uint8_t *w, const int8_t *x, Py_ssize_t x_stride, int32_t *sums,
                                  Py_ssize_t tiles, Py_ssize_t tokens) noexcept nogil
    ctypedef void (*bitnet_index)(const uint8_t *w, Py_ssize_t panel_bytes, Py_ssize_t panels, Py_ssize_t tiles,
                                  Py_ssize_t first_pass, Py_ssize_t passes, int shift,
                                  uint8_t *indices) noexcept nogil
    # `least_tokens` is `from` in C.
    ctypedef struct bitnet_look_up:
        bitnet_index index
        uint32_t needs
        Py_ssize_t part_tiles, part_passes, pass_tiles, pass_bytes
        Py_ssize_t least_tokens "from"
        Py_ssize_t wide_from
    ctypedef struct bitnet_kernel:
        const char *isa
        uint32_t needs
        bitnet_panel panel
        bitnet_look_up look_up

ctypedef struct Packing:
    const char *name
    # Columns of a tile: 64 bytes hold 16 * tile_cols weights.
    int tile_cols
    # 16 rows of tiles * tile_cols codes (weight + 1: 0, 1, 2), `stride` apart, to and from one panel.
    void (*pack)(const uint8_t *codes, Py_ssize_t stride, uint8_t *w, Py_ssize_t tiles) noexcept nogil
    void (*unpack)(const uint8_t *w, Py_ssize_t tiles, uint8_t *codes, Py_ssize_t stride) noexcept nogil
    # The specification of the kernels, which runs everywhere.
    bitnet_panel portable
    # The kernels, the preferred first; a row without a name ends the table.
    const bitnet_kernel *kernels


cdef inline uint32_t four_bytes(const uint8_t *at) noexcept nogil:
    """Four neighbouring bytes as one number, to compute with all at once."""
    cdef uint32_t four
    memcpy(&four, at, 4)
    return four
