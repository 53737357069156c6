from libc.stdint cimport uint8_t

from bitnet._core.memory cimport Block
from bitnet._core.packings.contract cimport Packing, bitnet_kernel, bitnet_panel


cdef class PackedWeight:
    cdef const Packing *layout
    cdef Block block
    cdef const uint8_t *data
    cdef readonly Py_ssize_t rows, cols
    cdef readonly object group_size      # columns that share a scale, or None
    cdef readonly object scale           # float32, shape (), (rows,) or (rows, groups); read-only
    cdef const float[::1] scales         # the same, flat
    cdef Py_ssize_t panels, tiles, panel_bytes
    cdef Py_ssize_t groups               # scales along a row
    cdef Py_ssize_t scale_step           # scales between rows: 0 where all share one


# The kernel of a packing to use now; NULL for the portable function.
cdef const bitnet_kernel *packing_kernel(const Packing *layout) except? NULL
