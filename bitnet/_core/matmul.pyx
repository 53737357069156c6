"""Products with packed weights: checks, threads, panels, scales.

Work is cut into units of some panels and some tokens; a unit calls the packing's kernel for each panel and each 8 of
its tokens, and writes the finished numbers. Every number is computed within one unit in a fixed way, so results are
the same bits for any number of threads and any split of the tokens.

    integers   y[t, r] = sum_c weight[r, c] * x[t, c]                      exact, int32
    floats     q, a = x quantised per token;   y[t, r] = float32(sum) * (scale[r] * (1 / a[t]))

Where groups of columns have scales, ``float32(sum of the group) * scale`` is added up group by group in float32, and
the factor ``1 / a`` comes last.
"""

import numpy as np

from libc.stdint cimport int8_t, int32_t, uint8_t
from libc.string cimport memcpy, memset

from bitnet._core.memory cimport Block, allocate, checked_product
from bitnet._core.packing cimport PackedWeight, packing_kernel
from bitnet._core.packings.contract cimport (
    BITNET_PANEL_ROWS,
    BITNET_TILE_BYTES,
    BITNET_TOKENS,
    bitnet_kernel,
    bitnet_panel,
)
from bitnet._core.quant cimport bitnet_quant_kernel, int8_row, quant_kernel
from bitnet._core.threads cimport run, thread_count

from bitnet._core.arrays import checked, checked_output
from bitnet.errors import QuantizationError, ShapeError

cdef enum:
    # The inputs of a unit's tokens stay in a core's second-level cache while the panels pass by.
    UNIT_INPUT_BYTES = 256 << 10
    # Enough units for each thread to even out one that was held up, and few enough that the weights of a unit are
    # one long stream.
    UNITS_PER_THREAD = 4
    # Preparing fewer inputs than this takes less time than handing them out.
    PREPARE_INPUTS = 16 << 10


cdef struct Job:
    # The weight.
    bitnet_panel panel
    const uint8_t *w
    Py_ssize_t rows, cols, panels, tiles, panel_bytes
    const float *scales
    Py_ssize_t scale_step
    # Runs of columns whose sums are taken apart: one, or one a group of scales.
    bint has_groups
    Py_ssize_t groups, group_tiles, group_cols
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
    # The outputs, (tokens, rows): floats, or integers where `y` is NULL.
    float *y
    int32_t *y_int
    # The units.
    Py_ssize_t prepare_tokens, unit_tokens, unit_panels, panel_units


cdef void _prepare(void *data, Py_ssize_t unit, int member) noexcept nogil:
    """Quantise some tokens, pad them with zeros, and sum them up."""
    cdef Job *job = <Job *>data
    cdef Py_ssize_t t, group, c, first = unit * job.prepare_tokens
    cdef int8_t *q
    cdef int32_t total = 0
    cdef float a
    for t in range(first, min(first + job.prepare_tokens, job.tokens)):
        q = job.q + t * job.q_stride
        memset(q + job.cols, 0, job.q_stride - job.cols)
        if job.x != NULL:
            if int8_row(job.quant, job.x + t * job.cols, job.cols, q, &a, &total):
                job.failed = 1
                return
            job.factors[t] = <float>1 / a
            if job.groups == 1:
                job.q_sums[t] = total
                continue
        else:
            memcpy(q, job.x_int + t * job.cols, job.cols)
        for group in range(job.groups):
            total = 0
            for c in range(group * job.group_cols, min((group + 1) * job.group_cols, job.cols)):
                total += q[c]
            job.q_sums[t * job.groups + group] = total


cdef void _multiply(void *data, Py_ssize_t unit, int member) noexcept nogil:
    """Some panels times some tokens."""
    cdef Job *job = <Job *>data
    cdef Py_ssize_t first_panel = unit % job.panel_units * job.unit_panels
    cdef Py_ssize_t first_token = unit // job.panel_units * job.unit_tokens
    cdef Py_ssize_t last_token = min(first_token + job.unit_tokens, job.tokens)
    cdef Py_ssize_t panel, t
    for panel in range(first_panel, min(first_panel + job.unit_panels, job.panels)):
        t = first_token
        while t < last_token:
            if not job.has_groups:
                _multiply_panel(job, panel, t, min(<Py_ssize_t>BITNET_TOKENS, last_token - t))
            else:
                _multiply_groups(job, panel, t, min(<Py_ssize_t>BITNET_TOKENS, last_token - t))
            t += BITNET_TOKENS


cdef void _multiply_panel(Job *job, Py_ssize_t panel, Py_ssize_t first, Py_ssize_t tokens) noexcept nogil:
    cdef int32_t sums[BITNET_TOKENS * BITNET_PANEL_ROWS]
    cdef Py_ssize_t row = panel * BITNET_PANEL_ROWS
    cdef Py_ssize_t rows = min(<Py_ssize_t>BITNET_PANEL_ROWS, job.rows - row)
    cdef Py_ssize_t t, r
    cdef int32_t q_sum
    cdef float factor, scale
    cdef const float *scales
    cdef float *y
    job.panel(job.w + panel * job.panel_bytes, job.q + first * job.q_stride, job.q_stride, sums, job.tiles, tokens)
    for t in range(tokens):
        q_sum = job.q_sums[first + t]
        if job.y == NULL:
            for r in range(rows):
                job.y_int[(first + t) * job.rows + row + r] = sums[BITNET_PANEL_ROWS * t + r] - q_sum
            continue
        factor = job.factors[first + t]
        y = job.y + (first + t) * job.rows + row
        if job.scale_step == 0:
            scale = job.scales[0] * factor
            for r in range(rows):
                y[r] = <float>(sums[BITNET_PANEL_ROWS * t + r] - q_sum) * scale
        else:
            scales = job.scales + row
            for r in range(rows):
                y[r] = <float>(sums[BITNET_PANEL_ROWS * t + r] - q_sum) * (scales[r] * factor)


cdef void _multiply_groups(Job *job, Py_ssize_t panel, Py_ssize_t first, Py_ssize_t tokens) noexcept nogil:
    cdef int32_t sums[BITNET_TOKENS * BITNET_PANEL_ROWS]
    cdef int32_t totals[BITNET_TOKENS * BITNET_PANEL_ROWS]
    cdef float scaled[BITNET_TOKENS * BITNET_PANEL_ROWS]
    cdef Py_ssize_t row = panel * BITNET_PANEL_ROWS
    cdef Py_ssize_t rows = min(<Py_ssize_t>BITNET_PANEL_ROWS, job.rows - row)
    cdef Py_ssize_t group, tile, t, r, at
    memset(totals, 0, sizeof(totals))
    memset(scaled, 0, sizeof(scaled))
    for group in range(job.groups):
        tile = group * job.group_tiles
        job.panel(job.w + panel * job.panel_bytes + tile * BITNET_TILE_BYTES,
                  job.q + first * job.q_stride + group * job.group_cols, job.q_stride, sums,
                  min(job.group_tiles, job.tiles - tile), tokens)
        for t in range(tokens):
            for r in range(rows):
                at = BITNET_PANEL_ROWS * t + r
                sums[at] -= job.q_sums[(first + t) * job.groups + group]
                totals[at] += sums[at]
                scaled[at] += <float>sums[at] * job.scales[(row + r) * job.scale_step + group]
    for t in range(tokens):
        for r in range(rows):
            at = (first + t) * job.rows + row + r
            if job.y == NULL:
                job.y_int[at] = totals[BITNET_PANEL_ROWS * t + r]
            else:
                job.y[at] = scaled[BITNET_PANEL_ROWS * t + r] * job.factors[first + t]


cdef int _run(Job *job, PackedWeight weight, int threads) except -1:
    """Fill in what does not depend on the kind of inputs, and do the work."""
    cdef const bitnet_kernel *kernel = packing_kernel(weight.layout)
    cdef Py_ssize_t token_units, least_units
    cdef Py_ssize_t sums_at, factors_at
    cdef Block scratch
    job.panel = kernel.panel if kernel != NULL else weight.layout.portable
    job.quant = quant_kernel()
    job.w = weight.data
    job.rows, job.cols = weight.rows, weight.cols
    job.panels, job.tiles, job.panel_bytes = weight.panels, weight.tiles, weight.panel_bytes
    job.scales, job.scale_step, job.groups = &weight.scales[0], weight.scale_step, weight.groups
    job.has_groups = weight.group_size is not None
    job.group_cols = weight.group_size if job.has_groups else weight.cols
    job.group_tiles = job.group_cols // weight.layout.tile_cols if job.has_groups else weight.tiles
    job.failed = 0

    # Tokens an odd number of cache lines apart: at a power of two they would compete for the same few lines.
    job.q_stride = ((job.tiles * weight.layout.tile_cols + 127) & ~127) + 64
    sums_at = checked_product(job.tokens, job.q_stride, "quantised inputs")
    factors_at = sums_at + checked_product(job.tokens, 4 * job.groups, "sums of inputs")
    scratch = allocate(factors_at + 4 * job.tokens, "quantised inputs")
    job.q = <int8_t *>scratch.data
    job.q_sums, job.factors = <int32_t *>(scratch.data + sums_at), <float *>(scratch.data + factors_at)

    job.prepare_tokens = max(<Py_ssize_t>1, PREPARE_INPUTS // job.cols)
    job.unit_tokens = max(<Py_ssize_t>BITNET_TOKENS, UNIT_INPUT_BYTES // job.q_stride // BITNET_TOKENS * BITNET_TOKENS)
    token_units = (job.tokens + job.unit_tokens - 1) // job.unit_tokens
    least_units = (threads * UNITS_PER_THREAD + token_units - 1) // token_units if threads > 1 else 1
    job.unit_panels = max(<Py_ssize_t>1, job.panels // least_units)
    job.panel_units = (job.panels + job.unit_panels - 1) // job.unit_panels
    with nogil:
        run(_prepare, job, (job.tokens + job.prepare_tokens - 1) // job.prepare_tokens, threads)
        if not job.failed:
            run(_multiply, job, token_units * job.panel_units, threads)
    return job.failed


cdef tuple _output_shape(PackedWeight weight, x):
    if x.ndim == 0:
        raise ShapeError.dimensions("x", "(..., cols)", x.shape)
    if x.shape[x.ndim - 1] != weight.cols:
        raise ShapeError.columns(
            f"a {weight.rows} x {weight.cols} ternary weight", weight.cols, x.shape[x.ndim - 1])
    return (*x.shape[: x.ndim - 1], weight.rows)


def matmul(PackedWeight weight not None, x, out=None, num_threads=None):
    """Multiply float inputs with a weight: quantise, multiply integers, scale.

    Parameters
    ----------
    weight : PackedWeight of shape (rows, cols)
    x : ndarray of float32, shape (..., cols)
        C-contiguous and finite; the last axis is one token.
    out : ndarray of float32, shape (..., rows), optional
    num_threads : int, optional

    Returns
    -------
    ndarray of float32, shape (..., rows)

    Raises
    ------
    ShapeError, TensorError
        If an array does not fit.
    QuantizationError
        If a number of `x` is not finite; `out` is then as it was.
    """
    checked(x, "x", np.float32)
    y = checked_output(out, _output_shape(weight, x), np.float32, x)
    cdef int threads = thread_count(num_threads)
    if x.size == 0:
        return y
    cdef const float[::1] x_view = x.reshape(-1)
    cdef float[::1] y_view = y.reshape(-1)
    cdef Job job
    job.x, job.x_int, job.y, job.y_int = &x_view[0], NULL, &y_view[0], NULL
    job.tokens = x_view.shape[0] // weight.cols
    if _run(&job, weight, threads):
        index = np.unravel_index(int(np.argmin(np.isfinite(x))), x.shape)
        raise QuantizationError.not_finite("x", x[index], index)
    return y


def matmul_int(PackedWeight weight not None, x, out=None, num_threads=None):
    """Multiply integer inputs with the codes of a weight; the scales take no part.

    Parameters
    ----------
    weight : PackedWeight of shape (rows, cols)
    x : ndarray of int8, shape (..., cols)
        C-contiguous; the last axis is one token.
    out : ndarray of int32, shape (..., rows), optional
    num_threads : int, optional

    Returns
    -------
    ndarray of int32, shape (..., rows)
        Exact.

    Raises
    ------
    ShapeError, TensorError
        If an array does not fit.
    """
    checked(x, "x", np.int8)
    y = checked_output(out, _output_shape(weight, x), np.int32, x)
    cdef int threads = thread_count(num_threads)
    if x.size == 0:
        return y
    cdef const int8_t[::1] x_view = x.reshape(-1)
    cdef int32_t[::1] y_view = y.reshape(-1)
    cdef Job job
    job.x, job.x_int, job.y, job.y_int = NULL, &x_view[0], NULL, &y_view[0]
    job.tokens = x_view.shape[0] // weight.cols
    _run(&job, weight, threads)
    return y
