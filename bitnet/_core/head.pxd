from libc.stdint cimport int8_t, int32_t, uint32_t

from bitnet._core.memory cimport Block

cdef extern from "kernels/head_kernel.h":
    enum:
        HEAD_ROWS
        HEAD_COLS
        HEAD_TILE_BYTES
        HEAD_MAX_INPUTS
        HEAD_MAX_COLS
    ctypedef void (*bitnet_head_panel)(const int8_t *w, const int8_t *x, Py_ssize_t x_stride, int32_t *sums,
                                       Py_ssize_t tiles, Py_ssize_t inputs) noexcept nogil
    ctypedef struct bitnet_head_kernel:
        const char *isa
        uint32_t needs
        int32_t bias
        bitnet_head_panel panel

# A table of int8 rows, each with a scale.
cdef class Int8Rows:
    cdef readonly Py_ssize_t rows, cols
    cdef readonly object scales    # float32, (rows,)
    cdef Py_ssize_t panels, tiles
    cdef const int8_t *data
    cdef Block block               # whose data that is, or None
    cdef object mapping            # else who has it

# A product in the making: `load_rows`, then x, x_stride, tokens, picked and y, then `multiply_rows`.
ctypedef struct HeadJob:
    const bitnet_head_kernel *kernel
    const int8_t *w
    const float *scales
    Py_ssize_t rows, cols, panels, tiles
    # The inputs: rows `picked` of x, (any, cols).
    const float *x
    Py_ssize_t x_stride
    const int32_t *picked
    Py_ssize_t tokens
    # As the kernels want them: two rows of bytes a token; twice their sums; and what the products are multiplied by.
    int8_t *q
    Py_ssize_t q_stride
    int32_t *q_sums
    float *factors
    int failed
    float *y                       # (tokens, rows)
    Py_ssize_t panels_per_unit

cdef int load_rows(HeadJob *job, Int8Rows table) except -1

# What `multiply_rows` needs for so many tokens, in bytes.
cdef Py_ssize_t head_scratch_bytes(const HeadJob *job, Py_ssize_t tokens) noexcept nogil

# Do it; returns 0, or 1 where an input is not finite.
cdef int multiply_rows(HeadJob *job, void *scratch, int threads) noexcept nogil
