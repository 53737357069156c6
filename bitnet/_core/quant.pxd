from libc.stdint cimport int8_t, int32_t, uint8_t, uint32_t

cdef extern from "kernels/quant.h":
    ctypedef struct bitnet_quant_kernel:
        const char *isa
        uint32_t needs
        uint32_t (*sum_abs)(const float *x, Py_ssize_t n, double *lanes) noexcept nogil
        uint32_t (*max_abs)(const float *x, Py_ssize_t n) noexcept nogil
        void (*ternary)(const float *x, Py_ssize_t n, float s, int8_t *t, int streams) noexcept nogil
        int32_t (*int8)(const float *x, Py_ssize_t n, float a, int8_t *q) noexcept nogil

# The kernel to use now; NULL for the portable functions.
cdef const bitnet_quant_kernel *quant_kernel() except? NULL

# t[i] = round_half_even(clamp(x[i] * s, -1, 1)); `streams` advises to write t around the caches.
cdef void ternary_row(const bitnet_quant_kernel *kernel, const float *x, Py_ssize_t n, float s, int8_t *t,
                      bint streams) noexcept nogil

# One token to int8. Writes a = 127 / max(max|x|, 1e-5) and the sum of q; returns 0, or 1 where x is not finite.
cdef int int8_row(const bitnet_quant_kernel *kernel, const float *x, Py_ssize_t n, int8_t *q, float *a,
                  int32_t *sum_q) noexcept nogil
