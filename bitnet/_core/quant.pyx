"""Numbers to codes: absmean ternary weights, absmax int8 activations.

The formulas are those of BitNet b1.58 (Ma et al. 2024, arXiv:2402.17764, section 2; as computed by the
`BitLinear` layers of the transformers library):

    weights       m = max(mean |W|, 1e-5)   s = 1 / m           t = clamp(round(W s), -1, 1)     W ~ t / s
    activations   per token (row)           a = 127 / max(max |x|, 1e-5)   q = round(x a)        x ~ q / a

in float32, rounding half to even. The mean is summed in double: blocks of 65536 numbers, each in 16 lanes (number i
goes to lane i % 16), lanes and blocks added one after the other; so it has the same bits on every instruction set
and any number of threads.
"""

import numpy as np

from libc.math cimport rintf
from libc.stdint cimport int8_t, int32_t, uint32_t
from libc.string cimport memcpy

from bitnet._core.cpu cimport allowed_features
from bitnet._core.threads cimport raise_flag, run, thread_count

from bitnet._core.arrays import checked, checked_group_size, checked_matrix, checked_output
from bitnet.errors import QuantizationError, ShapeError

cdef extern from "kernels/quant.h":
    const bitnet_quant_kernel QUANT_KERNELS[]
    enum:
        QUANT_STEP

cdef enum:
    BLOCK = 65536
    # Codes that no cache would keep until they are used.
    STREAMED = 8 << 20
    # The bit pattern of infinity; every NaN lies above.
    NOT_FINITE = 0x7f800000

cdef float FLOOR = 1e-5


cdef const bitnet_quant_kernel *quant_kernel() except? NULL:
    cdef uint32_t allowed = allowed_features()
    cdef const bitnet_quant_kernel *kernel = QUANT_KERNELS
    while kernel.isa != NULL:
        if kernel.needs & allowed == kernel.needs:
            return kernel
        kernel += 1
    return NULL


def kernel_name():
    """Name the instruction set of the quantisation kernel in use.

    Returns
    -------
    str
    """
    cdef const bitnet_quant_kernel *kernel = quant_kernel()
    return kernel.isa.decode() if kernel != NULL else "portable"


# ---- one strip of numbers: the kernel takes whole steps, these functions the rest ----

cdef inline uint32_t _magnitude(float x) noexcept nogil:
    cdef uint32_t bits
    memcpy(&bits, &x, 4)
    return bits & 0x7fffffff


cdef inline float _as_float(uint32_t bits) noexcept nogil:
    cdef float x
    memcpy(&x, &bits, 4)
    return x


cdef inline Py_ssize_t _whole_steps(const bitnet_quant_kernel *kernel, Py_ssize_t n) noexcept nogil:
    return n - n % QUANT_STEP if kernel != NULL else 0


cdef double _sum_abs(const bitnet_quant_kernel *kernel, const float *x, Py_ssize_t n, uint32_t *largest) noexcept nogil:
    """The sum of magnitudes of at most BLOCK numbers; raises `largest` to the largest bit pattern."""
    cdef double lanes[16]
    cdef double total = 0
    cdef Py_ssize_t i, whole = _whole_steps(kernel, n)
    cdef uint32_t bits
    for i in range(16):
        lanes[i] = 0
    if whole:
        bits = kernel.sum_abs(x, whole, lanes)
        largest[0] = max(largest[0], bits)
    for i in range(whole, n):
        bits = _magnitude(x[i])
        largest[0] = max(largest[0], bits)
        lanes[i % 16] += <double>_as_float(bits)
    for i in range(16):
        total += lanes[i]
    return total


cdef void ternary_row(const bitnet_quant_kernel *kernel, const float *x, Py_ssize_t n, float s, int8_t *t,
                      bint streams) noexcept nogil:
    cdef Py_ssize_t i, whole = _whole_steps(kernel, n)
    if whole:
        kernel.ternary(x, whole, s, t, streams)
    for i in range(whole, n):
        t[i] = <int8_t>rintf(min(max(x[i] * s, <float>-1), <float>1))


cdef int int8_row(const bitnet_quant_kernel *kernel, const float *x, Py_ssize_t n, int8_t *q, float *a,
                  int32_t *sum_q) noexcept nogil:
    cdef Py_ssize_t i, whole = _whole_steps(kernel, n)
    cdef uint32_t largest = kernel.max_abs(x, whole) if whole else 0
    cdef int32_t total = 0
    cdef float factor
    for i in range(whole, n):
        largest = max(largest, _magnitude(x[i]))
    if largest >= NOT_FINITE:
        return 1
    factor = <float>127 / max(_as_float(largest), FLOOR)
    if whole:
        total = kernel.int8(x, whole, factor, q)
    for i in range(whole, n):
        q[i] = <int8_t>rintf(x[i] * factor)
        total += q[i]
    a[0] = factor
    sum_q[0] = total
    return 0


# ---- weights ----

cdef struct MeanJob:
    const bitnet_quant_kernel *kernel
    const float *w
    Py_ssize_t cols            # of a row
    Py_ssize_t strip           # numbers that share a mean
    Py_ssize_t strips          # of a row
    Py_ssize_t numbers
    double *sums               # one per block, or one per strip
    uint32_t *largest          # likewise


cdef void _mean_of_block(void *data, Py_ssize_t unit, int member) noexcept nogil:
    cdef MeanJob *job = <MeanJob *>data
    cdef Py_ssize_t start = unit * BLOCK
    job.largest[unit] = 0
    job.sums[unit] = _sum_abs(job.kernel, job.w + start, min(<Py_ssize_t>BLOCK, job.numbers - start),
                              &job.largest[unit])


cdef void _means_of_row(void *data, Py_ssize_t unit, int member) noexcept nogil:
    cdef MeanJob *job = <MeanJob *>data
    cdef Py_ssize_t strip, start, length, block, at
    for strip in range(job.strips):
        start = unit * job.cols + strip * job.strip
        length = min(job.strip, job.cols - strip * job.strip)
        at = unit * job.strips + strip
        job.largest[at] = 0
        job.sums[at] = 0
        block = 0
        while block < length:
            job.sums[at] += _sum_abs(job.kernel, job.w + start + block, min(<Py_ssize_t>BLOCK, length - block),
                                     &job.largest[at])
            block += BLOCK
        job.sums[at] /= length


def reciprocal_scales(w, bint per_row=False, group_size=None, num_threads=None):
    """Compute ``s = 1 / max(mean |W|, 1e-5)`` of a weight.

    Parameters
    ----------
    w : ndarray of float32, shape (rows, cols)
    per_row : bool, optional
        A mean for each row, instead of one for all.
    group_size : int, optional
        A mean for each run of so many columns of a row; the last run may be shorter.
    num_threads : int, optional

    Returns
    -------
    ndarray of float32, shape (), (rows,) or (rows, groups)

    Raises
    ------
    QuantizationError
        If a number is not finite.
    """
    checked_matrix(w, "w", np.float32)
    group_size = checked_group_size(group_size)
    cdef const float[:, ::1] view = w
    cdef Py_ssize_t rows = view.shape[0], cols = view.shape[1], units
    cdef int threads = thread_count(num_threads)
    cdef MeanJob job
    cdef bint whole = not per_row and group_size is None
    job.kernel = quant_kernel()
    job.w = &view[0, 0]
    job.cols = cols
    job.numbers = rows * cols
    job.strip = cols if group_size is None else group_size
    job.strips = (cols + job.strip - 1) // job.strip
    units = (job.numbers + BLOCK - 1) // BLOCK if whole else rows * job.strips
    sums_array, largest_array = np.empty(units, np.float64), np.empty(units, np.uint32)
    cdef double[::1] sums = sums_array
    cdef uint32_t[::1] largest = largest_array
    job.sums, job.largest = &sums[0], &largest[0]
    with nogil:
        if whole:
            run(_mean_of_block, &job, units, threads)
        else:
            run(_means_of_row, &job, rows, threads)
    if largest_array.max() >= NOT_FINITE:
        _raise_not_finite("w", w)
    if whole:
        means = np.float64(_in_order(sums, units) / job.numbers)
    else:
        means = sums_array if group_size is None else sums_array.reshape(rows, job.strips)
    return np.asarray(np.float32(1) / np.maximum(means.astype(np.float32), np.float32(FLOOR)))


def scales_of(s):
    """What a code of 1 stands for: ``1 / s``, or the largest float where that is beyond it.

    Parameters
    ----------
    s : ndarray of float32
        Of `reciprocal_scales`.

    Returns
    -------
    ndarray of float32, shape of `s`
    """
    with np.errstate(over="ignore"):
        return np.asarray(np.minimum(np.float32(1) / s, np.finfo(np.float32).max))


cdef double _in_order(double[::1] sums, Py_ssize_t n) noexcept:
    # Not ndarray.sum: its order of additions is NumPy's business.
    cdef double total = 0
    cdef Py_ssize_t i
    for i in range(n):
        total += sums[i]
    return total


def _raise_not_finite(what, array):
    index = np.unravel_index(int(np.argmin(np.isfinite(array))), array.shape)
    raise QuantizationError.not_finite(what, array[index], index)


cdef struct TernaryJob:
    const bitnet_quant_kernel *kernel
    const float *w
    const float *s
    int8_t *t
    Py_ssize_t cols, strip, strips, s_per_row
    Py_ssize_t rows, rows_per_unit
    bint streams


cdef void _ternary_rows(void *data, Py_ssize_t unit, int member) noexcept nogil:
    cdef TernaryJob *job = <TernaryJob *>data
    # From the end: the first pass has just read that, so some of it is still in the cache.
    cdef Py_ssize_t last = job.rows - unit * job.rows_per_unit
    cdef Py_ssize_t row, strip, at
    for row in range(max(<Py_ssize_t>0, last - job.rows_per_unit), last):
        for strip in range(job.strips):
            at = row * job.cols + strip * job.strip
            ternary_row(job.kernel, job.w + at, min(job.strip, job.cols - strip * job.strip),
                        job.s[row * job.s_per_row + strip * (job.s_per_row != 0)], job.t + at, job.streams)


def ternarize(w, s, group_size=None, out=None, num_threads=None):
    """Round a weight to ternary codes with the scales of `reciprocal_scales`.

    Parameters
    ----------
    w : ndarray of float32, shape (rows, cols)
        Finite.
    s : ndarray of float32, shape (), (rows,) or (rows, groups)
    group_size : int, optional
    out : ndarray of int8, shape (rows, cols), optional
        Where to write the codes.
    num_threads : int, optional

    Returns
    -------
    ndarray of int8, shape (rows, cols)
        -1, 0 or 1.

    Raises
    ------
    TensorError, ShapeError
        If an array has the wrong dtype, layout or shape.
    """
    checked_matrix(w, "w", np.float32)
    group_size = checked_group_size(group_size)
    s = checked(np.asarray(s, order="C"), "s", np.float32)
    groups = 1 if group_size is None else -(-w.shape[1] // group_size)
    fitting = [(), (w.shape[0],)] if group_size is None else [(w.shape[0], groups)]
    if s.shape not in fitting:
        raise ShapeError.scale("s", fitting, s.shape)
    cdef const float[:, ::1] view = w
    cdef const float[::1] scales = s.reshape(-1)
    cdef int threads = thread_count(num_threads)
    cdef TernaryJob job
    codes = checked_output(out, w.shape, np.int8, w)
    cdef int8_t[:, ::1] codes_view = codes
    job.kernel = quant_kernel()
    job.w, job.s, job.t = &view[0, 0], &scales[0], &codes_view[0, 0]
    job.rows, job.cols = view.shape[0], view.shape[1]
    job.strip = job.cols if group_size is None else group_size
    job.strips = (job.cols + job.strip - 1) // job.strip
    job.s_per_row = 0 if s.ndim == 0 else job.strips
    job.rows_per_unit = max(<Py_ssize_t>1, BLOCK // job.cols)
    job.streams = job.rows * job.cols >= STREAMED
    with nogil:
        run(_ternary_rows, &job, (job.rows + job.rows_per_unit - 1) // job.rows_per_unit, threads)
    return codes


# ---- activations ----

cdef struct Int8Job:
    const bitnet_quant_kernel *kernel
    const float *x
    int8_t *q
    float *a
    Py_ssize_t tokens, cols, tokens_per_unit
    int *failed


cdef void _int8_tokens(void *data, Py_ssize_t unit, int member) noexcept nogil:
    cdef Int8Job *job = <Int8Job *>data
    cdef Py_ssize_t t, first = unit * job.tokens_per_unit
    cdef int32_t unused
    for t in range(first, min(first + job.tokens_per_unit, job.tokens)):
        if int8_row(job.kernel, job.x + t * job.cols, job.cols, job.q + t * job.cols, &job.a[t], &unused):
            raise_flag(job.failed)


def quantize_activations(x, out=None, num_threads=None):
    """Quantise each token to int8 by its largest magnitude.

    Parameters
    ----------
    x : ndarray of float32, shape (..., cols)
        Activations; the last axis is one token. C-contiguous and finite.
    out : ndarray of int8, shape (..., cols), optional
        Where to write the integers.
    num_threads : int, optional

    Returns
    -------
    q : ndarray of int8, shape (..., cols)
        -127 to 127.
    scale : ndarray of float32, shape (...)
        ``1 / a``: `x` is close to ``q * scale[..., None]``, within half a scale.

    Raises
    ------
    QuantizationError
        If a number is not finite; `out` may then be written in part.
    TensorError, ShapeError
        If an array has the wrong dtype, layout or shape.
    """
    checked(x, "x", np.float32)
    if x.ndim == 0:
        raise ShapeError.dimensions("x", "(..., cols)", x.shape)
    q = checked_output(out, x.shape, np.int8, x)
    cdef int threads = thread_count(num_threads)
    a = np.empty(x.shape[: x.ndim - 1], np.float32)
    if x.size == 0:
        a.fill(np.float32(127) / np.float32(FLOOR))
        return q, np.asarray(np.float32(1) / a)
    cdef const float[::1] x_view = x.reshape(-1)
    cdef int8_t[::1] q_view = q.reshape(-1)
    cdef float[::1] a_view = a.reshape(-1)
    cdef Int8Job job
    cdef int failed = 0
    job.kernel = quant_kernel()
    job.x, job.q, job.a, job.failed = &x_view[0], &q_view[0], &a_view[0], &failed
    job.cols = x.shape[x.ndim - 1]
    job.tokens = a_view.shape[0]
    job.tokens_per_unit = max(<Py_ssize_t>1, BLOCK // job.cols)
    with nogil:
        run(_int8_tokens, &job, (job.tokens + job.tokens_per_unit - 1) // job.tokens_per_unit, threads)
    if failed:
        _raise_not_finite("x", x)
    return q, np.asarray(np.float32(1) / a)
