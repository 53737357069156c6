from libc.stdint cimport int8_t, int32_t, uint8_t

from bitnet._core.lut cimport LutJob
from bitnet._core.packing cimport PackedWeight
from bitnet._core.packings.contract cimport bitnet_panel
from bitnet._core.ops cimport bitnet_ops
from bitnet._core.quant cimport bitnet_quant_kernel

cdef enum:
    # Units of panels, for one unit of tokens; at least two for each of 1024 threads.
    MAX_PANEL_UNITS = 2048

# A product in the making: `load_weight`, then x or x_int, tokens, y or y_int, y_stride, starts, lut_scratch and
# lut_threads, then `multiply`.
ctypedef struct Job:
    # The weight.
    bitnet_panel panel
    const uint8_t *w
    Py_ssize_t rows, cols, panels, tiles, panel_bytes
    const float *scales
    Py_ssize_t scale_step
    # Runs of columns whose sums are taken apart: one, or one a group of scales.
    bint has_groups
    Py_ssize_t groups, group_tiles, group_cols
    # Whether floats are multiplied as they are, and not quantised; then the weight's packing is i2.
    bint takes_floats
    const bitnet_ops *ops
    const float *padded            # the inputs, with zeros up to a whole tile
    Py_ssize_t padded_stride
    # The inputs, (tokens, cols): floats, or integers where `x` is NULL.
    const float *x
    const int8_t *x_int
    Py_ssize_t tokens
    const bitnet_quant_kernel *quant
    # The inputs as the kernels want them: integers, with zeros up to a whole tile; their sums, (tokens, groups); and
    # 1 / a of each token.
    int8_t *q
    Py_ssize_t q_stride
    int32_t *q_sums
    float *factors
    int failed
    # The outputs, (tokens, rows) at a distance of `y_stride`: floats, or integers where `y` is NULL.
    float *y
    int32_t *y_int
    Py_ssize_t y_stride
    # The units, of the tokens from `first_token` on.
    Py_ssize_t prepare_tokens, first_token, unit_tokens, panel_units
    Py_ssize_t *starts             # MAX_PANEL_UNITS + 1 numbers
    # For many tokens, where there is a kernel for them (else `lut.kernel` is NULL), and its memory,
    # `many_scratch_bytes(lut_threads)`.
    LutJob lut
    uint8_t *lut_scratch
    int lut_threads

# Fill in all that follows from the weight and from the instruction set in use; `takes_floats` as of Job.
cdef int load_weight(Job *job, PackedWeight weight, bint takes_floats=*) except -1

# What `multiply` needs for so many tokens, in bytes.
cdef Py_ssize_t scratch_bytes(const Job *job, Py_ssize_t tokens) noexcept nogil

# What kernels for many tokens need for so many threads, in bytes.
cdef Py_ssize_t many_scratch_bytes(int threads) noexcept nogil

# Do it; returns 0, or 1 where an input is not finite, and nothing is written.
cdef int multiply(Job *job, uint8_t *scratch, int threads) noexcept nogil
