"""Products with packed weights: checks, threads, panels, scales.

Work is cut into units of some panels and some tokens; a unit calls the packing's kernel for each panel and each 8 of
its tokens, and writes the finished numbers. Every number is computed within one unit in a fixed way, so results are
the same bits for any number of threads and any split of the tokens.

    integers   y[t, r] = sum_c weight[r, c] * x[t, c]                      exact, int32
    floats     q, a = x quantised per token;   y[t, r] = float32(sum) * (scale[r] * (1 / a[t]))

    as they are                y[t, r] = sum_c weight[r, c] * x[t, c] * scale[r]                    float32, column by column

Where groups of columns have scales, ``float32(sum of the group) * scale`` is added up group by group in float32, and
the factor ``1 / a`` comes last.
"""

import numpy as np

from libc.stdint cimport int8_t, int32_t, uint8_t, uint64_t
from libc.string cimport memcpy, memset

from bitnet._core.lut cimport look_up_many, lut_kernel, lut_scratch_bytes
from bitnet._core.memory cimport Block, allocate, checked_product
from bitnet._core.ops cimport vector_ops
from bitnet._core.packing cimport PackedWeight, packing_kernel
from bitnet._core.packings.contract cimport (
    BITNET_PANEL_ROWS,
    BITNET_TILE_BYTES,
    BITNET_TOKENS,
    bitnet_kernel,
)
from bitnet._core.quant cimport int8_row, quant_kernel
from bitnet._core.threads cimport raise_flag, run, thread_count

from bitnet._core.arrays import checked, checked_output
from bitnet.errors import KernelError, QuantizationError, ShapeError

cdef enum:
    # The inputs of a unit's tokens stay in a core's second-level cache while the panels pass by, and the pages of its
    # outputs, one or more a token, in the first level of its TLB.
    UNIT_INPUT_BYTES = 256 << 10
    UNIT_TOKENS = 64
    # Preparing fewer inputs than this takes less time than handing them out.
    PREPARE_INPUTS = 16 << 10


cdef int32_t _sum(const int8_t *q, Py_ssize_t n) noexcept nogil:
    """The sum of n integers, eight at a time: as 0 to 255, pairs of them added in 16-bit lanes."""
    cdef Py_ssize_t i, start = 0, end
    cdef int32_t total = 0
    cdef uint64_t eight, lanes
    while start < n - 7:
        # 128 times 2 * 255 fits 16 bits.
        end = min(start + 1024, n & ~<Py_ssize_t>7)
        lanes = 0
        for i in range(start, end, 8):
            memcpy(&eight, q + i, 8)
            eight ^= <uint64_t>0x8080808080808080
            lanes += (eight & <uint64_t>0x00ff00ff00ff00ff) + (eight >> 8 & <uint64_t>0x00ff00ff00ff00ff)
        total += <int32_t>((lanes & 0xffff) + (lanes >> 16 & 0xffff) + (lanes >> 32 & 0xffff) + (lanes >> 48))
        total -= <int32_t>(128 * (end - start))
        start = end
    for i in range(start, n):
        total += q[i]
    return total


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
                raise_flag(&job.failed)
                return
            job.factors[t] = <float>1 / a
            if job.groups == 1:
                job.q_sums[t] = total
                continue
        else:
            memcpy(q, job.x_int + t * job.cols, job.cols)
        for group in range(job.groups):
            c = group * job.group_cols
            job.q_sums[t * job.groups + group] = _sum(q + c, min(job.group_cols, job.cols - c))


cdef void _multiply(void *data, Py_ssize_t unit, int member) noexcept nogil:
    """Some panels times some tokens."""
    cdef Job *job = <Job *>data
    cdef Py_ssize_t panels = unit % job.panel_units
    cdef Py_ssize_t first_token = job.first_token + unit // job.panel_units * job.unit_tokens
    cdef Py_ssize_t last_token = min(first_token + job.unit_tokens, job.tokens)
    cdef Py_ssize_t panel, t
    for panel in range(job.starts[panels], job.starts[panels + 1]):
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
    cdef Py_ssize_t t, at
    job.panel(job.w + panel * job.panel_bytes, job.q + first * job.q_stride, job.q_stride, sums, job.tiles, tokens)
    for t in range(tokens):
        at = (first + t) * job.y_stride + row
        if job.y == NULL:
            _finish_integers(sums + BITNET_PANEL_ROWS * t, job.q_sums[first + t], rows, job.y_int + at)
        elif job.scale_step == 0:
            _finish_floats(sums + BITNET_PANEL_ROWS * t, job.q_sums[first + t], rows,
                           job.scales[0] * job.factors[first + t], job.y + at)
        else:
            _finish_rows(sums + BITNET_PANEL_ROWS * t, job.q_sums[first + t], rows, job.scales + row,
                         job.factors[first + t], job.y + at)


# What is done to the sums of one token and up to 16 rows. Of their own, so that the compiler sees nothing else in the
# loops and can use vectors.

cdef void _finish_integers(const int32_t *sums, int32_t q_sum, Py_ssize_t rows, int32_t *y) noexcept nogil:
    cdef Py_ssize_t r
    for r in range(rows):
        y[r] = sums[r] - q_sum


cdef void _finish_floats(const int32_t *sums, int32_t q_sum, Py_ssize_t rows, float scale, float *y) noexcept nogil:
    cdef Py_ssize_t r
    for r in range(rows):
        y[r] = <float>(sums[r] - q_sum) * scale


cdef void _finish_rows(const int32_t *sums, int32_t q_sum, Py_ssize_t rows, const float *scales, float factor,
                       float *y) noexcept nogil:
    cdef Py_ssize_t r
    for r in range(rows):
        y[r] = <float>(sums[r] - q_sum) * (scales[r] * factor)


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
            at = (first + t) * job.y_stride + row + r
            if job.y == NULL:
                job.y_int[at] = totals[BITNET_PANEL_ROWS * t + r]
            else:
                job.y[at] = scaled[BITNET_PANEL_ROWS * t + r] * job.factors[first + t]


cdef void _pad(void *data, Py_ssize_t unit, int member) noexcept nogil:
    """Copy a token's floats, and put zeros behind them up to a whole tile."""
    cdef Job *job = <Job *>data
    cdef float *to = <float *>job.q + unit * job.padded_stride
    memcpy(to, job.x + unit * job.cols, job.cols * sizeof(float))
    memset(to + job.cols, 0, (job.padded_stride - job.cols) * sizeof(float))


cdef void _multiply_as_they_are(void *data, Py_ssize_t unit, int member) noexcept nogil:
    """Some panels times some tokens, whose floats are not quantised."""
    cdef Job *job = <Job *>data
    cdef Py_ssize_t panels = unit % job.panel_units
    cdef Py_ssize_t first_token = unit // job.panel_units * job.unit_tokens
    cdef Py_ssize_t last_token = min(first_token + job.unit_tokens, job.tokens)
    cdef float sums[BITNET_TOKENS * BITNET_PANEL_ROWS]
    cdef Py_ssize_t panel, row, rows, t, tokens, group, tile, r, i
    cdef float *y
    for panel in range(job.starts[panels], job.starts[panels + 1]):
        row = panel * BITNET_PANEL_ROWS
        rows = min(<Py_ssize_t>BITNET_PANEL_ROWS, job.rows - row)
        t = first_token
        while t < last_token:
            tokens = min(<Py_ssize_t>BITNET_TOKENS, last_token - t)
            for group in range(job.groups):
                tile = group * job.group_tiles
                job.ops.floats(job.w + panel * job.panel_bytes + tile * BITNET_TILE_BYTES,
                               job.padded + t * job.padded_stride + group * job.group_cols, job.padded_stride, sums,
                               min(job.group_tiles, job.tiles - tile), tokens)
                for i in range(tokens):
                    y = job.y + (t + i) * job.y_stride + row
                    for r in range(rows):
                        if group == 0:
                            y[r] = 0
                        y[r] += sums[BITNET_PANEL_ROWS * i + r] * job.scales[(row + r) * job.scale_step + group]
            t += BITNET_TOKENS


cdef int load_weight(Job *job, PackedWeight weight, bint takes_floats=False) except -1:
    if takes_floats and weight.packing != "i2":
        raise KernelError.float_inputs(weight.packing)
    job.takes_floats, job.ops = takes_floats, vector_ops()
    cdef const bitnet_kernel *kernel = packing_kernel(weight.layout)
    job.panel = kernel.panel if kernel != NULL else weight.layout.portable
    job.quant = quant_kernel()
    job.w = weight.data
    job.rows, job.cols = weight.rows, weight.cols
    job.panels, job.tiles, job.panel_bytes = weight.panels, weight.tiles, weight.panel_bytes
    job.scales, job.scale_step, job.groups = &weight.scales[0], weight.scale_step, weight.groups
    job.has_groups = weight.group_size is not None
    job.group_cols = weight.group_size if job.has_groups else weight.cols
    job.group_tiles = job.group_cols // weight.layout.tile_cols if job.has_groups else weight.tiles
    # Tokens an odd number of cache lines apart: at a power of two they would compete for the same few lines.
    job.q_stride = ((job.tiles * weight.layout.tile_cols + 127) & ~127) + 64
    job.lut.kernel, job.lut_scratch, job.lut_threads = NULL, NULL, 0
    if kernel != NULL and kernel.look_up.index != NULL and not job.has_groups:
        job.lut.kernel, job.lut.how = lut_kernel(kernel.look_up.needs), kernel.look_up
        job.lut.w, job.lut.panel_bytes, job.lut.tiles = job.w, job.panel_bytes, job.tiles
        job.lut.tile_cols, job.lut.rows, job.lut.panels = weight.layout.tile_cols, job.rows, job.panels
        job.lut.scale_step = job.scale_step
    job.padded_stride = job.tiles * weight.layout.tile_cols
    return 0


cdef Py_ssize_t scratch_bytes(const Job *job, Py_ssize_t tokens) noexcept nogil:
    if job.takes_floats:
        return tokens * job.padded_stride * sizeof(float) if job.cols != job.padded_stride else 0
    return tokens * (job.q_stride + 4 * job.groups + 4)


cdef Py_ssize_t many_scratch_bytes(int threads) noexcept nogil:
    return lut_scratch_bytes(threads)


cdef int multiply(Job *job, uint8_t *scratch, int threads) noexcept nogil:
    cdef Py_ssize_t token_units
    job.q = <int8_t *>scratch
    job.q_sums = <int32_t *>(scratch + job.tokens * job.q_stride)
    job.factors = <float *>(job.q_sums + job.tokens * job.groups)
    job.failed, job.first_token = 0, 0
    job.prepare_tokens = max(<Py_ssize_t>1, PREPARE_INPUTS // job.cols)
    job.unit_tokens = min(<Py_ssize_t>UNIT_TOKENS, UNIT_INPUT_BYTES // job.q_stride // BITNET_TOKENS * BITNET_TOKENS)
    job.unit_tokens = max(<Py_ssize_t>BITNET_TOKENS, job.unit_tokens)
    _cut_panels(job, threads)
    token_units = (job.tokens + job.unit_tokens - 1) // job.unit_tokens
    if job.takes_floats:
        job.padded = job.x
        if job.padded_stride != job.cols:
            job.padded = <float *>job.q
            run(_pad, job, job.tokens, threads)
        run(_multiply_as_they_are, job, token_units * job.panel_units, threads)
        return 0
    run(_prepare, job, (job.tokens + job.prepare_tokens - 1) // job.prepare_tokens, threads)
    if job.failed:
        return 1
    if job.lut.kernel != NULL and job.lut_scratch != NULL and job.tokens >= job.lut.how.least_tokens:
        _look_up_many(job, min(threads, job.lut_threads))
        token_units = (job.tokens - job.first_token + job.unit_tokens - 1) // job.unit_tokens
    run(_multiply, job, token_units * job.panel_units, threads)
    return 0


cdef void _look_up_many(Job *job, int threads) noexcept nogil:
    job.lut.q, job.lut.q_stride, job.lut.tokens, job.lut.factors = job.q, job.q_stride, job.tokens, job.factors
    job.lut.y = <void *>job.y if job.y != NULL else <void *>job.y_int
    job.lut.scales = job.scales if job.y != NULL else NULL
    job.lut.y_stride, job.lut.scratch = job.y_stride, job.lut_scratch
    job.first_token = look_up_many(&job.lut, threads)


cdef int _run(Job *job, PackedWeight weight, int threads, bint takes_floats=False) except -1:
    """A product by itself: with scratch memory of its own."""
    cdef Py_ssize_t starts[MAX_PANEL_UNITS + 1]
    cdef Block scratch, lut_scratch
    cdef int failed
    load_weight(job, weight, takes_floats)
    checked_product(job.tokens, job.q_stride + 4 * job.groups + 4, "quantised inputs")
    if job.lut.kernel != NULL and job.tokens >= job.lut.how.least_tokens:
        lut_scratch = allocate(many_scratch_bytes(threads), "look-up tables")
        job.lut_scratch, job.lut_threads = lut_scratch.data, threads
    scratch = allocate(scratch_bytes(job, job.tokens), "quantised inputs")
    job.starts, job.y_stride = starts, weight.rows
    with nogil:
        failed = multiply(job, scratch.data, threads)
    return failed


cdef void _cut_panels(Job *job, int threads) noexcept nogil:
    """Cut the panels into units: large ones first, that read memory as long streams, then smaller and smaller ones, so
    that the threads end together."""
    cdef Py_ssize_t start = 0, left, units_left, size
    job.panel_units = 0
    while start < job.panels:
        left = job.panels - start
        units_left = MAX_PANEL_UNITS - job.panel_units
        size = left
        if threads > 1:
            # Not less than what the units that remain can hold, so that the last one is no larger than the others.
            size = max((left + 2 * threads - 1) // (2 * threads), (left + units_left - 1) // units_left)
        job.starts[job.panel_units] = start
        job.panel_units += 1
        start += size
    job.starts[job.panel_units] = job.panels


def panel_units(Py_ssize_t panels, int threads):
    """Say how the panels of a product are cut into units of work.

    Parameters
    ----------
    panels, threads : int

    Returns
    -------
    list of int
        The panels of each unit, in the order in which units are handed out.
    """
    cdef Job job
    cdef Py_ssize_t starts[MAX_PANEL_UNITS + 1]
    job.panels, job.starts = panels, starts
    _cut_panels(&job, threads)
    return [job.starts[i + 1] - job.starts[i] for i in range(job.panel_units)]


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


def matmul_float(PackedWeight weight not None, x, out=None, num_threads=None):
    """Multiply float inputs with a weight as they are.

    Parameters
    ----------
    weight : PackedWeight of shape (rows, cols)
        In packing i2.
    x : ndarray of float32, shape (..., cols)
        C-contiguous; the last axis is one token.
    out : ndarray of float32, shape (..., rows), optional
    num_threads : int, optional

    Returns
    -------
    ndarray of float32, shape (..., rows)
        The same bits on every instruction set and any number of threads.

    Raises
    ------
    ShapeError, TensorError
        If an array does not fit.
    KernelError
        If the weight is in another packing.
    """
    checked(x, "x", np.float32)
    y = checked_output(out, _output_shape(weight, x), np.float32, x)
    cdef int threads = thread_count(num_threads)
    cdef Job job
    load_weight(&job, weight, True)
    if x.size == 0:
        return y
    cdef const float[::1] x_view = x.reshape(-1)
    cdef float[::1] y_view = y.reshape(-1)
    job.x, job.x_int, job.y, job.y_int = &x_view[0], NULL, &y_view[0], NULL
    job.tokens = x_view.shape[0] // weight.cols
    _run(&job, weight, threads, True)
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
