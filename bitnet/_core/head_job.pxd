# What a product with an int8 head is made of: what head.pyx and screening.pyx share.

from libc.stdint cimport int8_t, int16_t, int32_t, uint32_t

cdef extern from "kernels/head_kernel.h":
    enum:
        HEAD_ROWS
        HEAD_COLS
        HEAD_TILE_BYTES
        HEAD_MAX_INPUTS
        HEAD_MAX_COLS
        HEAD_MAX_TOKENS
        HEAD_LARGEST_INPUT
    ctypedef void (*bitnet_head_panel)(const int8_t *w, const int8_t *x, Py_ssize_t x_stride, int32_t *sums,
                                       Py_ssize_t tiles, Py_ssize_t inputs) noexcept nogil
    ctypedef void (*bitnet_head_wide)(const int8_t *w, const int16_t *x, Py_ssize_t x_stride, double *sums,
                                      Py_ssize_t tiles, Py_ssize_t tokens) noexcept nogil
    ctypedef struct bitnet_head_kernel:
        const char *isa
        uint32_t needs
        int32_t bias
        bitnet_head_panel panel
        bitnet_head_wide wide

# A product in the making: `load_rows`, then x, x_stride, tokens, picked, y and leaders, then `multiply_rows`.
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
    # As the kernels want them: two rows of bytes a token, or one of int16 numbers in the same memory; the sums of the rows of
    # bytes; and what the products are multiplied by.
    int8_t *q
    Py_ssize_t q_stride
    int32_t *q_sums
    float *factors
    int failed
    float *y                       # (tokens, rows)
    Py_ssize_t panels_per_unit
    # Of how many numbers of each token, the largest ones, all bits are wanted, 1 to MAX_LEADERS; NULL: of all.
    const int32_t *leaders
    # Of screening.pyx: of the panels how far they reach, of tokens the norm of what is left out, what is to be reached and
    # how many panels do; and (tokens, panels) the largest approximation.
    const float *reach
    int *pause
    double *low
    double *least
    Py_ssize_t *survivors
    float *most


# Turn a panel's sums of a token's two rows of bytes into numbers.
cdef inline void finish_rows(const HeadJob *job, const int32_t *sums, Py_ssize_t panel, Py_ssize_t token) noexcept nogil:
    cdef Py_ssize_t at = panel * HEAD_ROWS, r
    cdef int32_t high = job.kernel.bias * job.q_sums[2 * token], low = job.kernel.bias * job.q_sums[2 * token + 1]
    cdef const float *scales = job.scales + at
    cdef float factor = job.factors[token]
    cdef float *y = job.y + token * job.rows + at
    for r in range(min(<Py_ssize_t>HEAD_ROWS, job.rows - at)):
        y[r] = <float>(256.0 * (sums[r] - high) + (sums[HEAD_ROWS + r] - low)) * (scales[r] * factor)


# Turn a panel's sums of a token into numbers.
cdef inline void finish_totals(const HeadJob *job, const double *totals, Py_ssize_t panel, Py_ssize_t token) noexcept nogil:
    cdef Py_ssize_t at = panel * HEAD_ROWS, r
    cdef const float *scales = job.scales + at
    cdef float factor = job.factors[token]
    cdef float *y = job.y + token * job.rows + at
    for r in range(min(<Py_ssize_t>HEAD_ROWS, job.rows - at)):
        y[r] = <float>totals[r] * (scales[r] * factor)
