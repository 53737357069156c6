from libc.stdint cimport uint8_t, uint32_t

cdef extern from "kernels/ops_kernel.h":
    enum:
        OPS_FLOAT32
        OPS_FLOAT16
        OPS_BFLOAT16
        OPS_INT8
        OPS_BLOCK
        OPS_QUERIES
        OPS_RELU2
        OPS_SILU
        OPS_GELU
        OPS_GELU_TANH
    Py_ssize_t OPS_QUERY_BYTES(Py_ssize_t width) noexcept nogil
    Py_ssize_t OPS_BLOCK_BYTES(int dtype, Py_ssize_t width) noexcept nogil
    ctypedef struct bitnet_ops:
        const char *isa
        uint32_t needs
        void (*rms_norm)(const float *x, const float *gain, float eps, Py_ssize_t n, float *y) noexcept nogil
        void (*rope)(float *x, const float *cosine, const float *sine, Py_ssize_t half) noexcept nogil
        void (*gate)(int function, const float *gate, const float *up, Py_ssize_t n, float *y) noexcept nogil
        void (*add)(const float *x, Py_ssize_t n, float *y) noexcept nogil
        float (*dot)(int dtype, const void *row, const float *x, Py_ssize_t n) noexcept nogil
        void (*load)(int dtype, const void *row, Py_ssize_t n, float *y) noexcept nogil
        void (*store)(int dtype, const float *x, Py_ssize_t n, void *row) noexcept nogil
        void (*prepare_query)(const float *x, Py_ssize_t width, void *to) noexcept nogil
        void (*attend)(int dtype, int queries, const void *const *query, const void *keys, const void *values,
                       const void *next_keys, const void *next_values, const Py_ssize_t *from_,
                       const Py_ssize_t *positions, Py_ssize_t width, float scale, float (*state)[2],
                       float *const *sum) noexcept nogil
        void (*merge)(const float *part_state, const float *part, Py_ssize_t width, float *state,
                      float *sum) noexcept nogil
        void (*store_keys)(int dtype, const float *x, Py_ssize_t x_stride, Py_ssize_t positions, Py_ssize_t n,
                           void *block, Py_ssize_t position) noexcept nogil
        void (*store_value)(int dtype, const float *x, Py_ssize_t n, void *block, Py_ssize_t position) noexcept nogil
        void (*floats)(const uint8_t *w, const float *x, Py_ssize_t x_stride, float *sums, Py_ssize_t tiles,
                       Py_ssize_t tokens) noexcept nogil

# The operations for the instruction set in use.
cdef const bitnet_ops *vector_ops() except NULL
