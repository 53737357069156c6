from libc.stdint cimport int8_t, uint8_t

from bitnet._core.quant cimport bitnet_quant_kernel

# Where the codes to pack come from. `read` writes n codes (weight + 1) of a row from a column on; what it returns is
# not zero if one of them is no code.
ctypedef struct Source:
    int (*read)(const Source *source, Py_ssize_t row, Py_ssize_t col, Py_ssize_t n, uint8_t *codes) noexcept nogil
    Py_ssize_t rows, cols
    # Panels at equal distances that read the same bytes, and so are packed one after the other.
    int together
    # read_weights: (rows, cols) of -1, 0, 1.
    const int8_t *weights
    # read_packed: (rows / 4, cols) bytes, four codes each.
    const uint8_t *packed
    # read_numbers: (rows, cols) floats; `s_step` reciprocal scales a row, each for `strip` columns.
    const float *numbers
    const float *s
    Py_ssize_t s_step, strip
    const bitnet_quant_kernel *kernel

cdef int read_weights(const Source *source, Py_ssize_t row, Py_ssize_t col, Py_ssize_t n, uint8_t *codes) noexcept nogil
cdef int read_packed(const Source *source, Py_ssize_t row, Py_ssize_t col, Py_ssize_t n, uint8_t *codes) noexcept nogil
cdef int read_numbers(const Source *source, Py_ssize_t row, Py_ssize_t col, Py_ssize_t n, uint8_t *codes) noexcept nogil
