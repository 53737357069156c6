"""Where the codes to pack come from: int8 weights, float numbers, or bytes of a Hugging Face checkpoint."""

from libc.stdint cimport int8_t, uint8_t, uint64_t
from libc.string cimport memcpy

from bitnet._core.quant cimport ternary_row

# For eight bytes at a time; no byte carries into the next.
cdef uint64_t ONES = 0x0101010101010101
cdef uint64_t THREES = 0x0303030303030303


cdef int read_weights(const Source *source, Py_ssize_t row, Py_ssize_t col, Py_ssize_t n,
                       uint8_t *codes) noexcept nogil:
    cdef const int8_t *weights = source.weights + row * source.cols + col
    cdef Py_ssize_t i
    cdef uint8_t code, beyond = 0
    for i in range(n):
        # -1, 0, 1 to 0, 1, 2; anything else to 3 or to more, which has one of the upper six bits.
        code = <uint8_t>(<uint8_t>weights[i] + 1)
        beyond |= (code & 0xfc) | (code & (code >> 1) & 1)
        codes[i] = code
    return beyond


cdef int read_packed(const Source *source, Py_ssize_t row, Py_ssize_t col, Py_ssize_t n,
                      uint8_t *codes) noexcept nogil:
    cdef Py_ssize_t quarter = source.rows // 4
    cdef const uint8_t *packed = source.packed + row % quarter * source.cols + col
    cdef int shift = <int>(2 * (row // quarter))
    cdef Py_ssize_t i, whole = n & ~<Py_ssize_t>7
    cdef uint64_t eight, both = 0
    cdef uint8_t code
    for i in range(0, whole, 8):
        memcpy(&eight, packed + i, 8)
        eight = eight >> shift & THREES
        both |= eight & eight >> 1
        memcpy(codes + i, &eight, 8)
    for i in range(whole, n):
        code = packed[i] >> shift & 3
        both |= code & code >> 1
        codes[i] = code
    return (both & ONES) != 0


cdef int read_numbers(const Source *source, Py_ssize_t row, Py_ssize_t col, Py_ssize_t n,
                       uint8_t *codes) noexcept nogil:
    cdef const float *numbers = source.numbers + row * source.cols + col
    cdef const float *s = source.s + row * source.s_step
    cdef Py_ssize_t done = 0, some, i
    while done < n:
        # `col` begins a strip: chunks are multiples of all group sizes, and without groups the strip is the row.
        some = min(n - done, source.strip)
        ternary_row(source.kernel, numbers + done, some, s[(col + done) // source.strip], <int8_t *>codes + done, False)
        done += some
    for i in range(n):
        codes[i] += 1
    return 0
