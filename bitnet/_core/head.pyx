"""The int8 head: rows of int8 with a scale each, times float inputs of 16 bits.

    a = 32639 / max |x|   n = round(x a) = 256 h + l   h in -127..127, l in -128..127
    y[r] = scale[r] / a * (256 sum_c w[r, c] h[c] + sum_c w[r, c] l[c])

The input's error, at most max |x| / 65278 a number, is a 256th of what quantising the weights has done. The sums are exact
integers and their combination is exact in double, so results are the same bits on every instruction set, alone and in
any batch. Rows lie in panels of 16 (``kernels/head_kernel.h``): a product reads one stream, without sums over lanes.
"""

import numpy as np

cimport cython
from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset

from bitnet._core.cpu cimport allowed_features
from bitnet._core.head_job cimport (
    HEAD_COLS,
    HEAD_LARGEST_INPUT,
    HEAD_MAX_COLS,
    HEAD_MAX_TOKENS,
    HEAD_ROWS,
    HEAD_TILE_BYTES,
    HeadJob,
    bitnet_head_kernel,
    finish_rows,
    finish_totals,
)
from bitnet._core.memory cimport allocate, checked_product
from bitnet._core.screening cimport (
    MAX_LEADERS,
    SCREEN_FROM,
    SCREEN_UP_TO,
    measure_reach,
    screen_rows,
    screening_bytes,
)
from bitnet._core.threads cimport raise_flag, run, thread_count

from bitnet._core.arrays import checked, checked_matrix
from bitnet.errors import InferenceError, ShapeError, TensorError

cdef extern from "kernels/head.h":
    const bitnet_head_kernel HEAD_KERNELS[]

cdef enum:
    # The bit pattern of infinity; every NaN lies above.
    NOT_FINITE = 0x7f800000
    # Units of work for each thread: enough for them to end together.
    UNITS_PER_THREAD = 16


cdef void _portable_panel(const int8_t *w, const int8_t *x, Py_ssize_t x_stride, int32_t *sums, Py_ssize_t tiles,
                          Py_ssize_t inputs) noexcept nogil:
    cdef Py_ssize_t tile, t, r, c
    memset(sums, 0, inputs * HEAD_ROWS * sizeof(int32_t))
    for tile in range(tiles):
        for t in range(inputs):
            for r in range(HEAD_ROWS):
                for c in range(HEAD_COLS):
                    sums[HEAD_ROWS * t + r] += (<int32_t>w[tile * HEAD_TILE_BYTES + HEAD_COLS * r + c]
                                                * x[t * x_stride + tile * HEAD_COLS + c])


cdef bitnet_head_kernel PORTABLE
PORTABLE.isa, PORTABLE.needs, PORTABLE.bias, PORTABLE.panel, PORTABLE.wide = "portable", 0, 0, _portable_panel, NULL


cdef const bitnet_head_kernel *_kernel() except NULL:
    cdef uint32_t allowed = allowed_features()
    cdef const bitnet_head_kernel *kernel = HEAD_KERNELS
    while kernel.isa != NULL:
        if kernel.needs & allowed == kernel.needs:
            return kernel
        kernel += 1
    return &PORTABLE


def kernel_name():
    """Name the instruction set of the head's kernel in use.

    Returns
    -------
    str
    """
    return _kernel().isa.decode()


cdef class Int8Rows:
    """A table of int8 rows with a scale each, to multiply with. Filled once, then immutable.

    Parameters
    ----------
    rows, cols : int

    Attributes
    ----------
    scales : ndarray of float32, shape (rows,)
        What a weight of 1 stands for.
    reach : ndarray of float32, shape (panels,), or None
        Of ``screening.pyx``, once that was used: the largest scale times norm of each 16 rows.
    """

    def __init__(self, Py_ssize_t rows, Py_ssize_t cols):
        _shape_rows(self, rows, cols)
        self.block = allocate(checked_product(self.panels * HEAD_TILE_BYTES, self.tiles, "the head"), "the head", "head")
        memset(self.block.data + (self.panels - 1) * self.tiles * HEAD_TILE_BYTES, 0, self.tiles * HEAD_TILE_BYTES)
        self.data = <const int8_t *>self.block.data
        self.scales = np.zeros(rows, np.float32)

    @staticmethod
    def bytes_of(rows, cols):
        """Say how many bytes the weights of a table take, padding included."""
        return -(-rows // HEAD_ROWS) * -(-cols // HEAD_COLS) * HEAD_TILE_BYTES

    @property
    def shape(self):
        return self.rows, self.cols

    @property
    def nbytes(self):
        """Bytes of the weights, padding included; the scales are not counted."""
        return Int8Rows.bytes_of(self.rows, self.cols)

    @property
    def packed_bytes(self):
        """The bytes of the weights as they lie in memory: ndarray of uint8, read-only."""
        stored = np.frombuffer(self.mapping if self.block is None else self.block, np.uint8)[: self.nbytes]
        stored.flags.writeable = False
        return stored

    def fill(self, Py_ssize_t first, weights, scales):
        """Write some rows.

        Parameters
        ----------
        first : int
            The first of them.
        weights : ndarray of int8, shape (n, cols)
            -127 to 127.
        scales : ndarray of float32, shape (n,)
        """
        cdef const int8_t[:, ::1] view = checked_matrix(weights, "weights", np.int8)
        cdef Py_ssize_t n = view.shape[0], i, row, tile, some
        cdef int8_t *to
        if self.block is None:
            raise TensorError.read_only("the int8 table")
        if view.shape[1] != self.cols or first < 0 or n > self.rows - first:
            raise ShapeError.mismatch("weights", (max(0, min(n, self.rows - first)), self.cols), weights.shape)
        self.scales[first : first + n] = checked(scales, "scales", np.float32)
        with nogil:
            for i in range(n):
                row = first + i
                to = <int8_t *>self.block.data + row // HEAD_ROWS * self.tiles * HEAD_TILE_BYTES
                to += row % HEAD_ROWS * HEAD_COLS
                for tile in range(self.tiles):
                    some = min(<Py_ssize_t>HEAD_COLS, self.cols - tile * HEAD_COLS)
                    memset(to + tile * HEAD_TILE_BYTES, 0, HEAD_COLS)
                    memcpy(to + tile * HEAD_TILE_BYTES, &view[i, tile * HEAD_COLS], some)

    def dequantize(self):
        """Give the numbers that the table stands for.

        Returns
        -------
        ndarray of float32, shape (rows, cols)
        """
        tiles = self.packed_bytes.view(np.int8).reshape(self.panels, self.tiles, HEAD_ROWS, HEAD_COLS)
        weights = tiles.transpose(0, 2, 1, 3).reshape(self.panels * HEAD_ROWS, -1)[: self.rows, : self.cols]
        return weights * self.scales[:, None]

    cdef int measure(self, int threads) except -1:
        cdef HeadJob job
        cdef float[::1] view
        if self.reach is not None:
            return 0
        view = reach = np.empty(self.panels, np.float32)
        load_rows(&job, self)
        with nogil:
            measure_reach(&job, &view[0], threads)
        with cython.critical_section(self):
            if self.reach is None:  # else another thread was first, and its numbers are in use
                self.reach_data, self.reach = &view[0], reach
        return 0

    def multiply(self, x, num_threads=None, leaders=None):
        """Multiply inputs with all rows.

        Parameters
        ----------
        x : ndarray of float32, shape (tokens, cols)
        num_threads : int, optional
        leaders : ndarray of int32, shape (tokens,), optional
            How many of each token's numbers are wanted, at most 64: the largest, and what equals them. In place of the
            others there may be any that are below these. Where it is 0 or less for a token, all of all tokens are wanted.

        Returns
        -------
        ndarray of float32, shape (tokens, rows)

        Raises
        ------
        InferenceError
            If an input is not finite.
        ShapeError
            If `x` has another number of columns, or `leaders` another shape or too large a number.
        """
        cdef const float[:, ::1] view = checked_matrix(x, "x", np.float32)
        cdef int threads = thread_count(num_threads)
        cdef HeadJob job
        if view.shape[1] != self.cols:
            raise ShapeError.columns(f"a {self.rows} x {self.cols} int8 table", self.cols, view.shape[1])
        picked, y = np.arange(len(x), dtype=np.int32), np.empty((len(x), self.rows), np.float32)
        cdef const int32_t[::1] picked_view = picked
        cdef float[:, ::1] y_view = y
        load_rows(&job, self)
        cdef const int32_t[::1] leaders_view
        if leaders is not None:
            if checked(leaders, "leaders", np.int32).shape != (len(x),):
                raise ShapeError.mismatch("leaders", (len(x),), leaders.shape)
            if leaders.max(initial=0) > MAX_LEADERS:
                raise ShapeError.too_large("the number of leaders", int(leaders.max()), MAX_LEADERS, "logits")
            if (leaders > 0).all():
                self.measure(threads)
                leaders_view = leaders
                job.leaders, job.reach = &leaders_view[0], self.reach_data
        cdef Block scratch = allocate(head_scratch_bytes(&job, len(x)), "scratch")
        job.x, job.x_stride, job.picked, job.tokens = &view[0, 0], self.cols, &picked_view[0], len(x)
        job.y = &y_view[0, 0]
        with nogil:
            failed = multiply_rows(&job, scratch.data, threads)
        if failed:
            raise InferenceError.not_finite("x")
        return y


def rows_of_bytes(data, rows, cols, scales):
    """Use a table where it is, as in a mapped file.

    Kernels read nothing beyond it, whatever the bytes are.

    Parameters
    ----------
    data : ndarray of uint8, shape (nbytes,)
        Of `Int8Rows.packed_bytes`. Begins at a multiple of 64. Kept alive by the table; must not change.
    rows, cols : int
    scales : ndarray of float32, shape (rows,)

    Returns
    -------
    Int8Rows

    Raises
    ------
    ShapeError
        If `data` or `scales` have another size than those of such a table.
    TensorError
        If `data` begins elsewhere.
    """
    cdef const uint8_t[::1] view = checked(data, "data", np.uint8)
    cdef Int8Rows table = Int8Rows.__new__(Int8Rows)
    _shape_rows(table, rows, cols)
    needed = checked_product(table.panels * HEAD_TILE_BYTES, table.tiles, "the head")
    for name, array, shape in (("data", data, (needed,)), ("scales", checked(scales, "scales", np.float32), (rows,))):
        if array.shape != shape:
            raise ShapeError.mismatch(name, shape, array.shape)
    if data.ctypes.data % HEAD_TILE_BYTES:
        raise TensorError.not_aligned("data", f"tiles of {HEAD_TILE_BYTES} bytes")
    table.mapping, table.data, table.scales = data, <const int8_t *>&view[0], scales
    return table


cdef int _shape_rows(Int8Rows table, Py_ssize_t rows, Py_ssize_t cols) except -1:
    if rows < 1 or cols < 1:
        raise ShapeError.empty("an int8 table", (rows, cols))
    if cols > HEAD_MAX_COLS:
        raise ShapeError.too_large("the number of columns", cols, HEAD_MAX_COLS, "columns")
    table.rows, table.cols = rows, cols
    table.panels, table.tiles = (rows + HEAD_ROWS - 1) // HEAD_ROWS, (cols + HEAD_COLS - 1) // HEAD_COLS
    return 0


cdef int load_rows(HeadJob *job, Int8Rows table) except -1:
    cdef const float[::1] scales = table.scales
    job.kernel, job.w, job.scales = _kernel(), table.data, &scales[0]
    job.rows, job.cols, job.panels, job.tiles = table.rows, table.cols, table.panels, table.tiles
    # Inputs an odd number of cache lines apart: at a power of two they would compete for the same few lines.
    job.q_stride = ((HEAD_COLS * table.tiles + 127) & ~127) + 64
    job.leaders, job.reach, job.pause = NULL, NULL, &table.pause
    return 0


cdef Py_ssize_t head_scratch_bytes(const HeadJob *job, Py_ssize_t tokens) noexcept nogil:
    return _screening_at(job, tokens) + screening_bytes(job, tokens)


cdef inline Py_ssize_t _screening_at(const HeadJob *job, Py_ssize_t tokens) noexcept nogil:
    return (2 * tokens * (job.q_stride + sizeof(int32_t)) + tokens * sizeof(float) + 63) & ~<Py_ssize_t>63


cdef void _split(void *data, Py_ssize_t unit, int member) noexcept nogil:
    """Make two rows of bytes of a token's numbers, or one of int16 numbers."""
    cdef HeadJob *job = <HeadJob *>data
    cdef const float *x = job.x + job.picked[unit] * job.x_stride
    cdef int8_t *high = job.q + 2 * unit * job.q_stride
    cdef int8_t *low = high + job.q_stride
    cdef int16_t *wide = <int16_t *>high
    cdef Py_ssize_t c
    cdef int32_t bits, n, h, largest = 0, high_sum = 0, low_sum = 0
    cdef float most, a, rounded
    for c in range(job.cols):
        memcpy(&bits, &x[c], 4)
        largest = max(largest, bits & 0x7fffffff)
    if largest >= NOT_FINITE:
        raise_flag(&job.failed)
        return
    memcpy(&most, &largest, 4)
    most = max(most, <float>1e-30)  # of zeros any will do; smaller ones have no reciprocal
    a = HEAD_LARGEST_INPUT / most
    job.factors[unit] = most / HEAD_LARGEST_INPUT
    if job.kernel.wide != NULL:
        for c in range(job.cols):
            rounded = x[c] * a + <float>12582912
            memcpy(&n, &rounded, 4)
            wide[c] = <int16_t>(n - 0x4b400000)
        memset(wide + job.cols, 0, (job.q_stride - job.cols) * sizeof(int16_t))
        return
    for c in range(job.cols):
        # Adding 1.5 * 2^23 leaves the nearest integer, halves to even, in the low bits.
        rounded = x[c] * a + <float>12582912
        memcpy(&n, &rounded, 4)
        n -= 0x4b400000
        h = (n + 128) >> 8
        high[c], low[c] = <int8_t>h, <int8_t>(n - 256 * h)
        high_sum += h
        low_sum += n - 256 * h
    memset(high + job.cols, 0, job.q_stride - job.cols)
    memset(low + job.cols, 0, job.q_stride - job.cols)
    job.q_sums[2 * unit], job.q_sums[2 * unit + 1] = high_sum, low_sum


cdef void _multiply(void *data, Py_ssize_t unit, int member) noexcept nogil:
    """Some panels times all tokens."""
    cdef HeadJob *job = <HeadJob *>data
    cdef int32_t sums[2 * HEAD_MAX_TOKENS * HEAD_ROWS]
    cdef double totals[HEAD_MAX_TOKENS * HEAD_ROWS]
    cdef const int8_t *w
    cdef Py_ssize_t panel, t, i, some, first = unit * job.panels_per_unit
    for panel in range(first, min(first + job.panels_per_unit, job.panels)):
        w = job.w + panel * job.tiles * HEAD_TILE_BYTES
        t = 0
        while t < job.tokens:
            some = min(<Py_ssize_t>HEAD_MAX_TOKENS, job.tokens - t)
            if job.kernel.wide != NULL:
                job.kernel.wide(w, <int16_t *>(job.q + 2 * t * job.q_stride), job.q_stride, totals, job.tiles, some)
                for i in range(some):
                    finish_totals(job, totals + i * HEAD_ROWS, panel, t + i)
            else:
                job.kernel.panel(w, job.q + 2 * t * job.q_stride, job.q_stride, sums, job.tiles, 2 * some)
                for i in range(some):
                    finish_rows(job, sums + 2 * i * HEAD_ROWS, panel, t + i)
            t += some


cdef int multiply_rows(HeadJob *job, void *scratch, int threads) noexcept nogil:
    job.q = <int8_t *>scratch
    job.q_sums = <int32_t *>(job.q + 2 * job.tokens * job.q_stride)
    job.factors = <float *>(job.q_sums + 2 * job.tokens)
    job.failed = 0
    job.panels_per_unit = max(<Py_ssize_t>1, job.panels // (UNITS_PER_THREAD * threads)) if threads > 1 else job.panels
    run(_split, job, job.tokens, threads)
    if job.failed:
        return 1
    # A wide kernel takes both halves of an input at once, in the time of one.
    if (job.leaders == NULL or job.reach == NULL or job.kernel.wide != NULL
            or not SCREEN_FROM <= job.tokens <= SCREEN_UP_TO
            or not screen_rows(job, <uint8_t *>scratch + _screening_at(job, job.tokens), threads)):
        run(_multiply, job, (job.panels + job.panels_per_unit - 1) // job.panels_per_unit, threads)
    return 0
