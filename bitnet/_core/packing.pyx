"""The table of packings, and weights packed by them.

Packing works in units of panels on all threads: a unit collects up to 1280 columns of 16 rows as weights -1, 0, 1 from
its source (int8 codes, float numbers, or bytes of a Hugging Face checkpoint), and hands them to the packing. So a
packing knows nothing of sources, and a source nothing of layouts.
"""

import operator

import numpy as np

from libc.stdint cimport int8_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset

from bitnet._core.cpu cimport allowed_features
from bitnet._core.memory cimport allocate, checked_product
from bitnet._core.packings.contract cimport (
    BITNET_MAX_COLS,
    BITNET_PANEL_ROWS,
    BITNET_TILE_BYTES,
    Packing,
    bitnet_kernel,
)
from bitnet._core.packings.i2 cimport I2
from bitnet._core.packings.t5 cimport T5
from bitnet._core.quant cimport bitnet_quant_kernel, quant_kernel, ternary_row
from bitnet._core.threads cimport run, thread_count

from bitnet._core.arrays import checked, checked_matrix
from bitnet.errors import ConfigurationError, KernelError, QuantizationError, ShapeError, TensorError

cdef enum:
    # A multiple of the columns of every packing's tile (16, 20) and of every group size (64, 128).
    CHUNK_COLS = 1280

PACKINGS = ("i2", "t5")
"""Every packing, the fastest to decode first."""

GROUP_SIZES = (64, 128)
"""Numbers of columns that may share a scale."""


cdef const Packing *_layout(name) except NULL:
    if name == "i2":
        return &I2
    if name == "t5":
        return &T5
    raise KernelError.unknown_packing(name, PACKINGS)


cdef const bitnet_kernel *packing_kernel(const Packing *layout) except? NULL:
    cdef uint32_t allowed = allowed_features()
    cdef const bitnet_kernel *kernel = layout.kernels
    while kernel.isa != NULL:
        if kernel.needs & allowed == kernel.needs:
            return kernel
        kernel += 1
    return NULL


def kernel_name(packing):
    """Name the kernel that products with a packing use now.

    Parameters
    ----------
    packing : str
        One of `PACKINGS`.

    Returns
    -------
    str
        The packing and the instruction set, as ``"i2-avx2"``.
    """
    cdef const Packing *layout = _layout(packing)
    cdef const bitnet_kernel *kernel = packing_kernel(layout)
    return f"{packing}-{kernel.isa.decode() if kernel != NULL else 'portable'}"


def tile_cols(packing):
    """Number the columns of a packing's tile, which has 64 bytes for 16 rows.

    Parameters
    ----------
    packing : str
        One of `PACKINGS`.

    Returns
    -------
    int
    """
    return _layout(packing).tile_cols


# ---- sources: n weights of a row from a column on, as -1, 0, 1; not zero where one is none ----

cdef struct Source:
    int (*read)(const Source *source, Py_ssize_t row, Py_ssize_t col, Py_ssize_t n, int8_t *weights) noexcept nogil
    Py_ssize_t rows, cols
    const int8_t *codes
    const uint8_t *packed
    const float *numbers
    const float *s
    Py_ssize_t s_step, strip
    const bitnet_quant_kernel *kernel


cdef int _read_codes(const Source *source, Py_ssize_t row, Py_ssize_t col, Py_ssize_t n,
                     int8_t *weights) noexcept nogil:
    cdef const int8_t *codes = source.codes + row * source.cols + col
    cdef Py_ssize_t i
    cdef uint8_t beyond = 0
    for i in range(n):
        # -1, 0, 1 to 0, 1, 2; any other value to more than 2.
        beyond |= <uint8_t>(<uint8_t>(<uint8_t>codes[i] + 1) > 2)
        weights[i] = codes[i]
    return beyond


cdef int _read_packed(const Source *source, Py_ssize_t row, Py_ssize_t col, Py_ssize_t n,
                      int8_t *weights) noexcept nogil:
    cdef Py_ssize_t quarter = source.rows // 4
    cdef const uint8_t *packed = source.packed + row % quarter * source.cols + col
    cdef int shift = <int>(2 * (row // quarter))
    cdef Py_ssize_t i
    cdef uint8_t code, both = 0
    for i in range(n):
        code = packed[i] >> shift & 3
        both |= code & code >> 1
        weights[i] = <int8_t>(code - 1)
    return both


cdef int _read_numbers(const Source *source, Py_ssize_t row, Py_ssize_t col, Py_ssize_t n,
                       int8_t *weights) noexcept nogil:
    cdef const float *numbers = source.numbers + row * source.cols + col
    cdef const float *s = source.s + row * source.s_step
    cdef Py_ssize_t done = 0, some
    while done < n:
        # `col` begins a strip: chunks are multiples of all group sizes, and without groups the strip is the row.
        some = min(n - done, source.strip)
        ternary_row(source.kernel, numbers + done, some, s[(col + done) // source.strip], weights + done)
        done += some
    return 0


# ---- packing ----

cdef struct PackJob:
    const Packing *layout
    const Source *source
    uint8_t *data
    Py_ssize_t panels, tiles, panel_bytes
    int failed


cdef void _pack_panel(void *data, Py_ssize_t unit, int member) noexcept nogil:
    cdef PackJob *job = <PackJob *>data
    cdef const Source *source = job.source
    cdef int8_t weights[16 * CHUNK_COLS]
    # From the end: what a first pass over the source has just read may still be in the cache.
    cdef Py_ssize_t panel = job.panels - 1 - unit
    cdef Py_ssize_t chunk_tiles = CHUNK_COLS // job.layout.tile_cols
    cdef Py_ssize_t tile = 0, tiles, col, n, row, r
    while tile < job.tiles:
        tiles = min(chunk_tiles, job.tiles - tile)
        col = tile * job.layout.tile_cols
        n = min(tiles * job.layout.tile_cols, source.cols - col)
        if n < tiles * job.layout.tile_cols or panel == job.panels - 1:
            memset(weights, 0, sizeof(weights))
        for r in range(BITNET_PANEL_ROWS):
            row = panel * BITNET_PANEL_ROWS + r
            if row < source.rows and source.read(source, row, col, n, weights + r * CHUNK_COLS):
                job.failed = 1
        job.layout.pack(weights, CHUNK_COLS, job.data + panel * job.panel_bytes + tile * BITNET_TILE_BYTES, tiles)
        tile += tiles


cdef struct UnpackJob:
    const Packing *layout
    const uint8_t *data
    int8_t *codes
    Py_ssize_t rows, cols, tiles, panel_bytes


cdef void _unpack_panel(void *data, Py_ssize_t unit, int member) noexcept nogil:
    cdef UnpackJob *job = <UnpackJob *>data
    cdef int8_t weights[16 * CHUNK_COLS]
    cdef Py_ssize_t chunk_tiles = CHUNK_COLS // job.layout.tile_cols
    cdef Py_ssize_t tile = 0, tiles, col, r, row
    while tile < job.tiles:
        tiles = min(chunk_tiles, job.tiles - tile)
        col = tile * job.layout.tile_cols
        job.layout.unpack(job.data + unit * job.panel_bytes + tile * BITNET_TILE_BYTES, tiles, weights, CHUNK_COLS)
        for r in range(min(<Py_ssize_t>BITNET_PANEL_ROWS, job.rows - unit * BITNET_PANEL_ROWS)):
            row = unit * BITNET_PANEL_ROWS + r
            memcpy(job.codes + row * job.cols + col, weights + r * CHUNK_COLS,
                   min(tiles * job.layout.tile_cols, job.cols - col))
        tile += tiles


cdef class PackedWeight:
    """A ternary weight in one packing. Immutable; safe to share between threads.

    Made by `pack_codes`, `pack_numbers`, `pack_hugging_face_bytes` or `from_packed_bytes`.

    Attributes
    ----------
    rows, cols : int
    scale : ndarray of float32, shape (), (rows,) or (rows, groups)
        What a code of 1 stands for. Read-only.
    group_size : int or None
        Columns that share a scale, where a row has several.
    """

    def __init__(self):
        raise TypeError("a PackedWeight is made by the functions of bitnet._core.packing")

    @property
    def packing(self):
        return self.layout.name.decode()

    @property
    def nbytes(self):
        """Bytes of the packed codes, padding included; the scales are not counted."""
        return self.block.nbytes

    @property
    def packed_bytes(self):
        """The packed codes: a read-only view of their memory, shape (nbytes,), uint8."""
        view = np.frombuffer(self.block, np.uint8)
        view.flags.writeable = False
        return view

    def unpack(self, num_threads=None):
        """Recover the codes.

        Parameters
        ----------
        num_threads : int, optional

        Returns
        -------
        ndarray of int8, shape (rows, cols)
            -1, 0 or 1.
        """
        codes = np.empty((self.rows, self.cols), np.int8)
        cdef int8_t[:, ::1] view = codes
        cdef int threads = thread_count(num_threads)
        cdef UnpackJob job
        job.layout, job.data, job.codes = self.layout, self.data, &view[0, 0]
        job.rows, job.cols, job.tiles, job.panel_bytes = self.rows, self.cols, self.tiles, self.panel_bytes
        with nogil:
            run(_unpack_panel, &job, self.panels, threads)
        return codes


cdef PackedWeight _new(Py_ssize_t rows, Py_ssize_t cols, scale, group_size, packing):
    """A weight whose bytes are yet to be written."""
    cdef PackedWeight packed = PackedWeight.__new__(PackedWeight)
    if cols > BITNET_MAX_COLS:
        raise ShapeError.too_large("the number of columns", cols, BITNET_MAX_COLS, "columns")
    packed.layout = _layout(packing)
    packed.rows, packed.cols = rows, cols
    packed.panels = (rows + BITNET_PANEL_ROWS - 1) // BITNET_PANEL_ROWS
    packed.tiles = (cols + packed.layout.tile_cols - 1) // packed.layout.tile_cols
    packed.panel_bytes = packed.tiles * BITNET_TILE_BYTES
    packed.group_size = _checked_group_size(group_size)
    packed.groups = 1
    if group_size is not None:
        if packed.group_size % packed.layout.tile_cols:
            fitting = next(name for name in PACKINGS if packed.group_size % tile_cols(name) == 0)
            raise KernelError.group_scales(packing, packed.group_size, packed.layout.tile_cols, fitting)
        packed.groups = (cols + packed.group_size - 1) // packed.group_size
    packed.scale = _checked_scale(scale, rows, packed.groups if group_size is not None else None)
    packed.scales = packed.scale.reshape(-1)
    packed.scale_step = 0 if packed.scale.ndim == 0 else packed.groups
    packed.block = allocate(checked_product(packed.panels, packed.panel_bytes, "a packed weight"), "a packed weight")
    packed.data = packed.block.data
    return packed


def _checked_group_size(group_size):
    if group_size is None:
        return None
    try:
        group_size = operator.index(group_size)
    except TypeError:
        pass
    if group_size not in GROUP_SIZES:
        raise ConfigurationError.choice("group_size", group_size, GROUP_SIZES)
    return group_size


def _checked_scale(scale, rows, groups):
    """Float32 and read-only, a copy of the caller's; of the shape that fits."""
    try:
        scale = np.array(scale, dtype=np.float32, order="C")
    except (TypeError, ValueError):
        raise TensorError.not_an_array("scale", scale) from None
    if groups is not None:
        fitting = [(rows, groups)]
    else:
        if scale.shape == (1,):
            scale = scale.reshape(())
        fitting = [(), (rows,)]
    if scale.shape not in fitting:
        raise ShapeError.mismatch("scale", fitting[len(fitting) - 1], scale.shape)
    if not np.isfinite(scale).all():
        index = np.unravel_index(int(np.argmin(np.isfinite(scale))), scale.shape) if scale.ndim else ()
        raise QuantizationError.scale("scale", scale[index], index)
    scale.flags.writeable = False
    return scale


cdef bint _pack(PackedWeight packed, const Source *source, object num_threads) except -1:
    """Write the bytes of a weight; says whether the source had something that is no weight."""
    cdef int threads = thread_count(num_threads)
    cdef PackJob job
    job.layout, job.source, job.data = packed.layout, source, packed.block.data
    job.panels, job.tiles, job.panel_bytes, job.failed = packed.panels, packed.tiles, packed.panel_bytes, 0
    with nogil:
        run(_pack_panel, &job, packed.panels, threads)
    return job.failed


def pack_codes(codes, scale, packing, group_size=None, num_threads=None):
    """Pack ternary codes.

    Parameters
    ----------
    codes : ndarray of int8, shape (rows, cols)
        -1, 0 or 1. C-contiguous.
    scale : float or array of float, shape (), (rows,) or (rows, groups)
        What a code of 1 stands for.
    packing : str
        One of `PACKINGS`.
    group_size : int, optional
        Columns that share a scale: 64 or 128.
    num_threads : int, optional

    Returns
    -------
    PackedWeight

    Raises
    ------
    QuantizationError
        If a code is not ternary or a scale not finite.
    KernelError
        If the packing is unknown, or cannot have such groups.
    """
    checked_matrix(codes, "codes", np.int8)
    cdef const int8_t[:, ::1] view = codes
    cdef PackedWeight packed = _new(view.shape[0], view.shape[1], scale, group_size, packing)
    cdef Source source
    source.read = _read_codes
    source.rows, source.cols, source.codes = packed.rows, packed.cols, &view[0, 0]
    if _pack(packed, &source, num_threads):
        index = np.unravel_index(int(np.argmax(np.abs(codes.view(np.uint8) + np.uint8(1)) > 2)), codes.shape)
        raise QuantizationError.not_ternary("codes", codes[index], index)
    return packed


def pack_hugging_face_bytes(data, scale, packing, num_threads=None):
    """Pack the bytes of a Hugging Face checkpoint, four weights each.

    Parameters
    ----------
    data : ndarray of uint8, shape (rows // 4, cols)
        Bits 2k and 2k + 1 of ``data[r, c]`` are the code (weight + 1) of row ``k * (rows // 4) + r``.
    scale : float or array of float, shape () or (rows,)
        What a code of 1 stands for. (`weight_scale` of a file is this or its reciprocal: its reader knows.)
    packing : str
        One of `PACKINGS`.
    num_threads : int, optional

    Returns
    -------
    PackedWeight

    Raises
    ------
    QuantizationError
        If a weight has the code 3, or a scale is not finite.

    References
    ----------
    ``pack_weights`` in ``integrations/bitnet.py`` of the transformers library.
    """
    checked_matrix(data, "data", np.uint8)
    cdef const uint8_t[:, ::1] view = data
    cdef PackedWeight packed = _new(4 * view.shape[0], view.shape[1], scale, None, packing)
    cdef Source source
    source.read = _read_packed
    source.rows, source.cols, source.packed = packed.rows, packed.cols, &view[0, 0]
    if _pack(packed, &source, num_threads):
        row, col = np.unravel_index(int(np.argmax((data & data >> 1 & 0x55) != 0)), data.shape)
        quarter = next(k for k in range(4) if data[row, col] >> 2 * k & 3 == 3)
        raise QuantizationError.unused_code("data", (quarter * len(data) + row, col))
    return packed


def pack_numbers(w, s, packing, group_size=None, num_threads=None):
    """Round a float weight to ternary and pack it.

    Parameters
    ----------
    w : ndarray of float32, shape (rows, cols)
        Finite. C-contiguous.
    s : ndarray of float32, shape (), (rows,) or (rows, groups)
        Of `bitnet._core.quant.reciprocal_scales`; the weight's scale is ``1 / s``.
    packing : str
        One of `PACKINGS`.
    group_size : int, optional
        Columns that share a scale: 64 or 128.
    num_threads : int, optional

    Returns
    -------
    PackedWeight
    """
    checked_matrix(w, "w", np.float32)
    cdef const float[:, ::1] view = w
    cdef PackedWeight packed = _new(view.shape[0], view.shape[1], np.float32(1) / s, group_size, packing)
    cdef const float[::1] s_view = np.ascontiguousarray(s).reshape(-1)
    cdef Source source
    source.read = _read_numbers
    source.rows, source.cols, source.numbers = packed.rows, packed.cols, &view[0, 0]
    source.s, source.s_step = &s_view[0], packed.scale_step
    source.strip = packed.cols if group_size is None else packed.group_size
    source.kernel = quant_kernel()
    _pack(packed, &source, num_threads)
    return packed


def from_packed_bytes(data, rows, cols, scale, packing, group_size=None):
    """Take over codes that are packed already, as `PackedWeight.packed_bytes` gives them.

    Parameters
    ----------
    data : ndarray of uint8, shape (nbytes,)
    rows, cols : int
    scale, packing, group_size
        As of `pack_codes`.

    Returns
    -------
    PackedWeight

    Raises
    ------
    ShapeError
        If `data` has another size than a weight of that shape.
    """
    checked(data, "data", np.uint8)
    cdef PackedWeight packed
    if rows < 1 or cols < 1:
        raise ShapeError.empty("data", (rows, cols))
    packed = _new(rows, cols, scale, group_size, packing)
    if data.shape != (packed.block.nbytes,):
        raise ShapeError.mismatch("data", (packed.block.nbytes,), data.shape)
    cdef const uint8_t[::1] view = data
    memcpy(packed.block.data, &view[0], packed.block.nbytes)
    return packed
