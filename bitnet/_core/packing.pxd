from libc.stdint cimport uint8_t

from bitnet._core.memory cimport Block
from bitnet._core.packings.contract cimport Packing, bitnet_kernel, bitnet_panel


cdef class PackedWeight:
    cdef const Packing *layout
    cdef Block block                     # owns the bytes; None where `mapping` does
    cdef object mapping                  # an array of somebody else's memory, or None
    cdef const uint8_t *data
    cdef readonly Py_ssize_t rows, cols
    cdef readonly object group_size      # columns that share a scale, or None
    cdef readonly object scale           # float32, shape (), (rows,) or (rows, groups); read-only
    cdef const float[::1] scales         # the same, flat
    cdef Py_ssize_t panels, tiles, panel_bytes
    cdef Py_ssize_t groups               # scales along a row
    cdef Py_ssize_t scale_step           # scales between rows: 0 where all share one


# A weight whose bytes are yet to be written; and one that has none, until `data` and their owner are set.
cdef PackedWeight new_weight(Py_ssize_t rows, Py_ssize_t cols, scale, group_size, packing)
cdef PackedWeight described_weight(Py_ssize_t rows, Py_ssize_t cols, scale, group_size, packing)

# The kernel of a packing to use now; NULL for the portable function.
cdef const bitnet_kernel *packing_kernel(const Packing *layout) except? NULL
