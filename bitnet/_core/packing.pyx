"""The table of packings, and weights packed by them.

Packing works in units of panels on all threads: a unit collects up to 7680 columns of 16 rows, one code (weight + 1) a
byte, from its source (``source.pyx``: int8 weights, float numbers, or bytes of a Hugging Face checkpoint), and hands them
to the packing. So a packing knows nothing of sources, and a source nothing of layouts.
"""

import numpy as np

from libc.stdint cimport int8_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset

from bitnet._core.cpu cimport allowed_features
from bitnet._core.memory cimport Block, allocate, checked_product
from bitnet._core.packings.contract cimport (
    BITNET_MAX_COLS,
    BITNET_PANEL_ROWS,
    BITNET_TILE_BYTES,
    Packing,
    bitnet_kernel,
)
from bitnet._core.packings.i2 cimport I2
from bitnet._core.packings.t5 cimport T5
from bitnet._core.quant cimport quant_kernel
from bitnet._core.source cimport Source, read_numbers, read_packed, read_weights
from bitnet._core.threads cimport raise_flag, run, thread_count

from bitnet._core.arrays import as_numbers, checked, checked_group_size, checked_matrix
from bitnet._core.quant import scales_of
from bitnet.errors import KernelError, MemoryError, QuantizationError, ShapeError, TensorError

cdef enum:
    # Columns collected at a time: a multiple of those of every packing's tile (16, 20) and of every group size (64,
    # 128); wide enough for whole rows of today's models, so that a source is read as one stream, and 16 rows of it stay
    # in the second-level cache.
    CHUNK_COLS = 7680

# Rows can be rounded up to a panel without overflow; what does not fit in memory is the allocation's to refuse.
cdef Py_ssize_t MAX_ROWS = (<Py_ssize_t>1 << 62)

# Every packing, the fastest to decode first.
cdef enum:
    LAYOUT_COUNT = 2
cdef const Packing *LAYOUTS[LAYOUT_COUNT]
LAYOUTS[0] = &I2
LAYOUTS[1] = &T5

PACKINGS = tuple([LAYOUTS[i].name.decode() for i in range(LAYOUT_COUNT)])
"""The names of the packings, the fastest to decode first."""


cdef const Packing *_layout(name) except NULL:
    if isinstance(name, str) and name in PACKINGS:
        return LAYOUTS[PACKINGS.index(name)]
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


# ---- packing ----

cdef struct PackJob:
    const Packing *layout
    const Source *source
    uint8_t *data
    Py_ssize_t panels, tiles, panel_bytes, units
    uint8_t *scratch               # 16 * chunk codes for each member
    Py_ssize_t chunk
    int failed


cdef void _pack_unit(void *data, Py_ssize_t unit, int member) noexcept nogil:
    cdef PackJob *job = <PackJob *>data
    cdef int k
    # From the end: what a first pass over the source has just read may still be in the cache.
    cdef Py_ssize_t panel = job.units - 1 - unit
    for k in range(job.source.together):
        if panel < job.panels:
            _pack_panel(job, panel, job.scratch + member * BITNET_PANEL_ROWS * job.chunk)
        panel += job.units


cdef void _pack_panel(PackJob *job, Py_ssize_t panel, uint8_t *codes) noexcept nogil:
    cdef const Source *source = job.source
    cdef Py_ssize_t chunk_tiles = job.chunk // job.layout.tile_cols
    cdef Py_ssize_t tile = 0, tiles, col, n, row, r
    while tile < job.tiles:
        tiles = min(chunk_tiles, job.tiles - tile)
        col = tile * job.layout.tile_cols
        n = min(tiles * job.layout.tile_cols, source.cols - col)
        if n < tiles * job.layout.tile_cols or panel == job.panels - 1:
            memset(codes, 1, BITNET_PANEL_ROWS * job.chunk)  # the weight 0
        for r in range(BITNET_PANEL_ROWS):
            row = panel * BITNET_PANEL_ROWS + r
            if row < source.rows and source.read(source, row, col, n, codes + r * job.chunk):
                raise_flag(&job.failed)
        job.layout.pack(codes, job.chunk, job.data + panel * job.panel_bytes + tile * BITNET_TILE_BYTES, tiles)
        tile += tiles


cdef struct UnpackJob:
    const Packing *layout
    const uint8_t *data
    int8_t *weights
    Py_ssize_t rows, cols, tiles, panel_bytes
    uint8_t *scratch
    Py_ssize_t chunk


cdef void _unpack_panel(void *data, Py_ssize_t unit, int member) noexcept nogil:
    cdef UnpackJob *job = <UnpackJob *>data
    cdef uint8_t *codes = job.scratch + member * BITNET_PANEL_ROWS * job.chunk
    cdef Py_ssize_t chunk_tiles = job.chunk // job.layout.tile_cols
    cdef Py_ssize_t tile = 0, tiles, col, r, i
    cdef int8_t *to
    while tile < job.tiles:
        tiles = min(chunk_tiles, job.tiles - tile)
        col = tile * job.layout.tile_cols
        job.layout.unpack(job.data + unit * job.panel_bytes + tile * BITNET_TILE_BYTES, tiles, codes, job.chunk)
        for r in range(min(<Py_ssize_t>BITNET_PANEL_ROWS, job.rows - unit * BITNET_PANEL_ROWS)):
            to = job.weights + (unit * BITNET_PANEL_ROWS + r) * job.cols + col
            for i in range(min(tiles * job.layout.tile_cols, job.cols - col)):
                to[i] = <int8_t>(codes[r * job.chunk + i] - 1)
        tile += tiles


cdef class PackedWeight:
    """A ternary weight in one packing. Immutable; safe to share between threads.

    Made by `pack_codes`, `pack_numbers`, `pack_hugging_face_bytes`, `from_packed_bytes` or `view_packed_bytes`.

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
        return self.panels * self.panel_bytes

    @property
    def packed_bytes(self):
        """The packed codes: a read-only view of their memory, shape (nbytes,), uint8."""
        owner = self.block if self.mapping is None else self.mapping
        return np.frombuffer(memoryview(owner).toreadonly(), np.uint8)

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
        job.layout, job.data, job.weights = self.layout, self.data, &view[0, 0]
        job.rows, job.cols, job.tiles, job.panel_bytes = self.rows, self.cols, self.tiles, self.panel_bytes
        job.chunk = min(<Py_ssize_t>CHUNK_COLS, self.tiles * self.layout.tile_cols)
        threads = <int>min(<Py_ssize_t>threads, self.panels)
        cdef Block scratch = allocate(threads * BITNET_PANEL_ROWS * job.chunk, "codes to unpack")
        job.scratch = scratch.data
        with nogil:
            run(_unpack_panel, &job, self.panels, threads)
        return codes


cdef PackedWeight new_weight(Py_ssize_t rows, Py_ssize_t cols, scale, group_size, packing):
    """A weight whose bytes are yet to be written."""
    cdef PackedWeight packed = described_weight(rows, cols, scale, group_size, packing)
    packed.block = allocate(checked_product(packed.panels, packed.panel_bytes, "a packed weight"), "a packed weight",
                            "weights")
    packed.data = packed.block.data
    return packed


cdef PackedWeight described_weight(Py_ssize_t rows, Py_ssize_t cols, scale, group_size, packing):
    """A weight without bytes."""
    cdef PackedWeight packed = PackedWeight.__new__(PackedWeight)
    if rows > MAX_ROWS:
        raise MemoryError.overflow("a packed weight", (rows, cols))
    if cols > BITNET_MAX_COLS:
        raise ShapeError.too_large("the number of columns", cols, BITNET_MAX_COLS, "columns")
    packed.layout = _layout(packing)
    packed.rows, packed.cols = rows, cols
    packed.panels = (rows + BITNET_PANEL_ROWS - 1) // BITNET_PANEL_ROWS
    packed.tiles = (cols + packed.layout.tile_cols - 1) // packed.layout.tile_cols
    packed.panel_bytes = packed.tiles * BITNET_TILE_BYTES
    packed.group_size = checked_group_size(group_size)
    packed.groups = 1
    if packed.group_size is not None:
        if packed.group_size % packed.layout.tile_cols:
            fitting = next(name for name in PACKINGS if packed.group_size % tile_cols(name) == 0)
            raise KernelError.group_scales(packing, packed.group_size, packed.layout.tile_cols, fitting)
        packed.groups = (cols + packed.group_size - 1) // packed.group_size
    packed.scale = _checked_scale(scale, rows, packed.groups if packed.group_size is not None else None)
    packed.scales = packed.scale.reshape(-1)
    packed.scale_step = 0 if packed.scale.ndim == 0 else packed.groups
    return packed


def _checked_scale(scale, rows, groups):
    """Float32 and read-only, a copy of the caller's; of the shape that fits."""
    scale = as_numbers(scale, "scale")
    if groups is not None:
        fitting = [(rows, groups)]
    else:
        if scale.shape == (1,) and rows != 1:  # as checkpoints write one scale
            scale = scale.reshape(())
        fitting = [(), (rows,)]
    if scale.shape not in fitting:
        raise ShapeError.scale("scale", fitting, scale.shape)
    if not np.isfinite(scale).all():
        index = np.unravel_index(int(np.argmin(np.isfinite(scale))), scale.shape) if scale.ndim else ()
        raise QuantizationError.scale("scale", scale[index], index)
    # Over bytes, which nobody can make writable.
    return np.frombuffer(scale.tobytes(), np.float32).reshape(scale.shape)


cdef bint _pack(PackedWeight packed, const Source *source, object num_threads) except -1:
    """Write the bytes of a weight; says whether the source had something that is no weight."""
    cdef int threads = thread_count(num_threads)
    cdef PackJob job
    job.layout, job.source, job.data = packed.layout, source, packed.block.data
    job.panels, job.tiles, job.panel_bytes, job.failed = packed.panels, packed.tiles, packed.panel_bytes, 0
    job.units = (job.panels + source.together - 1) // source.together
    job.chunk = min(<Py_ssize_t>CHUNK_COLS, packed.tiles * packed.layout.tile_cols)
    threads = <int>min(<Py_ssize_t>threads, job.units)
    cdef Block scratch = allocate(threads * BITNET_PANEL_ROWS * job.chunk, "codes to pack")
    job.scratch = scratch.data
    with nogil:
        run(_pack_unit, &job, job.units, threads)
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
    cdef PackedWeight packed = new_weight(view.shape[0], view.shape[1], scale, group_size, packing)
    cdef Source source
    source.read, source.together = read_weights, 1
    source.rows, source.cols, source.weights = packed.rows, packed.cols, &view[0, 0]
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
    cdef PackedWeight packed = new_weight(4 * view.shape[0], view.shape[1], scale, None, packing)
    cdef Source source
    source.read, source.together = read_packed, 4
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
    cdef PackedWeight packed = new_weight(view.shape[0], view.shape[1], scales_of(s), group_size, packing)
    cdef const float[::1] s_view = np.ascontiguousarray(s).reshape(-1)
    cdef Source source
    source.read, source.together = read_numbers, 1
    source.rows, source.cols, source.numbers = packed.rows, packed.cols, &view[0, 0]
    source.s, source.s_step = &s_view[0], packed.scale_step
    source.strip = packed.cols if group_size is None else packed.group_size
    source.kernel = quant_kernel()
    _pack(packed, &source, num_threads)
    return packed


def view_packed_bytes(data, rows, cols, scale, packing, group_size=None):
    """Use codes that are packed already where they are, as in a mapped file.

    Kernels read nothing beyond them, whatever they are; but only bytes that packing wrote have results that are exact
    and agree. `from_packed_bytes` looks at each of them, which takes the time of packing.

    Parameters
    ----------
    data : ndarray of uint8, shape (nbytes,)
        Begins at a multiple of 64. Kept alive by the weight; must not change.
    rows, cols, scale, packing, group_size
        As of `from_packed_bytes`.

    Returns
    -------
    PackedWeight

    Raises
    ------
    ShapeError
        If `data` has another size than a weight of that shape.
    TensorError
        If it begins elsewhere.
    """
    checked(data, "data", np.uint8)
    if rows < 1 or cols < 1:
        raise ShapeError.empty("data", (rows, cols))
    cdef PackedWeight packed = described_weight(rows, cols, scale, group_size, packing)
    needed = checked_product(packed.panels, packed.panel_bytes, "a packed weight")
    if data.shape != (needed,):
        raise ShapeError.mismatch("data", (needed,), data.shape)
    if data.ctypes.data % BITNET_TILE_BYTES:
        raise TensorError.not_aligned("data", f"tiles of {BITNET_TILE_BYTES} bytes")
    cdef const uint8_t[::1] view = data
    packed.mapping, packed.data = data, &view[0]
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
    QuantizationError
        If the bytes are not what the packing writes.
    """
    checked(data, "data", np.uint8)
    cdef PackedWeight packed
    if rows < 1 or cols < 1:
        raise ShapeError.empty("data", (rows, cols))
    packed = new_weight(rows, cols, scale, group_size, packing)
    if data.shape != (packed.block.nbytes,):
        raise ShapeError.mismatch("data", (packed.block.nbytes,), data.shape)
    cdef const uint8_t[::1] view = data
    memcpy(packed.block.data, &view[0], packed.block.nbytes)
    # Kernels are exact, and agree, only on bytes that packing writes; so what is unpacked must pack to the same.
    codes = packed.unpack()
    np.minimum(codes, 1, out=codes)
    cdef const int8_t[:, ::1] codes_view = codes
    cdef PackedWeight again = new_weight(rows, cols, scale, group_size, packing)
    cdef Source source
    source.read, source.together = read_weights, 1
    source.rows, source.cols, source.weights = packed.rows, packed.cols, &codes_view[0, 0]
    _pack(again, &source, None)
    differs = packed.packed_bytes != again.packed_bytes
    if differs.any():
        raise QuantizationError.damaged("data", packing, rows, cols, int(np.argmax(differs)))
    return packed
