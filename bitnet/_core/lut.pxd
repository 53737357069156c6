from libc.stdint cimport int8_t, int32_t, uint8_t, uint32_t

from bitnet._core.packings.contract cimport bitnet_look_up

cdef extern from "kernels/lut_kernel.h":
    enum:
        LUT_SQUARE
        LUT_ROWS
        LUT_GROUP_PANELS
        LUT_MOST_SQUARES
        LUT_MOST_PART_BYTES
        LUT_MOST_TABLES_BYTES
    ctypedef struct lut_square:
        int32_t *at
        Py_ssize_t group_step, panel_step, row_step
    ctypedef struct lut_run:
        const uint8_t *indices
        const uint8_t *tables
        Py_ssize_t tile_cols, tiles, panels, squares
        short *short_sums
        int is_first
        lut_square sums[LUT_MOST_SQUARES]
        int is_last, is_new
        Py_ssize_t fetch_from, fetch_to
        const uint8_t *next
        Py_ssize_t next_lines, next_step
    ctypedef struct bitnet_lut_kernel:
        const char *isa
        uint32_t needs
        Py_ssize_t squares
        Py_ssize_t (*largest)(const int8_t *x, Py_ssize_t x_stride, Py_ssize_t tokens, Py_ssize_t cols) noexcept nogil
        void (*tables)(const int8_t *x, Py_ssize_t x_stride, Py_ssize_t tokens, Py_ssize_t tiles, Py_ssize_t one_pass,
                       Py_ssize_t tile_cols, uint8_t *tables) noexcept nogil
        void (*look_up)(const lut_run *run) noexcept nogil
        void (*finish)(const int32_t *sums, Py_ssize_t row_step, void *y, Py_ssize_t y_stride, Py_ssize_t rows,
                       Py_ssize_t tokens, const float *scales, Py_ssize_t scale_step,
                       const float *factors) noexcept nogil

# A product of many tokens with a whole weight.
ctypedef struct LutJob:
    const bitnet_lut_kernel *kernel
    # The weight.
    bitnet_look_up how
    const uint8_t *w
    Py_ssize_t panel_bytes, tiles, tile_cols, rows, panels
    const float *scales            # NULL for integers
    Py_ssize_t scale_step
    # The inputs: rows of q_stride bytes, zeros up to there.
    const int8_t *q
    Py_ssize_t q_stride, tokens
    const float *factors
    # The outputs, floats or integers, at a distance of y_stride.
    void *y
    Py_ssize_t y_stride
    # Memory of each member, and the units.
    uint8_t *scratch
    Py_ssize_t row_units, unit_panels, unit_tokens
    # What is done at the time: some of the tokens, with as many squares a look-up.
    Py_ssize_t first_token, end_token, squares

# The kernel that needs just these features, or NULL.
cdef const bitnet_lut_kernel *lut_kernel(uint32_t needs) noexcept nogil

# What `look_up_many` needs for so many threads, in bytes.
cdef Py_ssize_t lut_scratch_bytes(int threads) noexcept nogil

# Do it, and return how many tokens are done: the last ones are left where a table for them does not pay.
cdef Py_ssize_t look_up_many(LutJob *job, int threads) noexcept nogil
