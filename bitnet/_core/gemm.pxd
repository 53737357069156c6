from libc.stdint cimport int8_t, int32_t, uint8_t, uint32_t

from bitnet._core.packings.contract cimport bitnet_expand

cdef extern from "kernels/gemm_kernel.h":
    enum:
        GEMM_PANELS
        GEMM_ROWS
        GEMM_TOKENS
        GEMM_COLS
        GEMM_STEPS
        GEMM_CHUNK_WEIGHT_BYTES
        GEMM_CHUNK_INPUT_BYTES
    ctypedef struct bitnet_gemm_kernel:
        const char *isa
        uint32_t needs
        void (*prepare)(const int8_t *x, Py_ssize_t x_stride, Py_ssize_t steps, uint8_t *inputs,
                        int32_t *sums) noexcept nogil
        void (*multiply)(const uint8_t *weights, const uint8_t *inputs, Py_ssize_t steps, int32_t *const *before,
                         int32_t *const *y, const uint8_t *next, Py_ssize_t next_stride) noexcept nogil
        void (*finish)(void *y, Py_ssize_t rows, int32_t sum, const float *scales, Py_ssize_t step,
                       float factor) noexcept nogil

# A product of many tokens with whole blocks of a weight's panels.
ctypedef struct GemmJob:
    const bitnet_gemm_kernel *kernel
    # The weight.
    bitnet_expand expand
    const uint8_t *w
    Py_ssize_t panel_bytes, tiles, tile_cols, blocks
    Py_ssize_t least_tokens        # from here on expanding the weights pays
    const float *scales            # NULL for integers
    Py_ssize_t scale_step
    # The inputs: rows of q_stride bytes, zeros up to there, for a multiple of GEMM_TOKENS tokens.
    const int8_t *q
    Py_ssize_t q_stride, tokens
    const float *factors
    # The outputs, floats or integers, at a distance of y_stride.
    void *y
    Py_ssize_t y_stride
    # Memory of each member, and the units.
    uint8_t *scratch
    Py_ssize_t row_units, unit_blocks, unit_tokens

# The kernel for the instruction set in use, or NULL.
cdef const bitnet_gemm_kernel *gemm_kernel() except? NULL

# What `multiply_many` needs for so many threads, in bytes.
cdef Py_ssize_t gemm_scratch_bytes(int threads) noexcept nogil

# Do it.
cdef void multiply_many(GemmJob *job, int threads) noexcept nogil
