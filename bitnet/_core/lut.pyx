"""Products of many tokens by look-up: 16 tokens share a table of the sums of four inputs, which all rows of a weight read.

``kernels/lut_kernel.h`` says how. A unit is a range of panels and of blocks of 16 tokens. It goes through the columns in
parts, as many as int16 sums can take: finds where each row's sums lie in their tables, once for all blocks, and then, block
by block, makes the tables of two tiles at a time and lets all rows pass by. What the next part will read is fetched
meanwhile. At the end of a part sums become int32, in the output's own memory, where the rows of a panel lie for a while in
place of the tokens of a block. They are exact, so the bits are those of any other kernel.
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t

from bitnet._core.cpu cimport allowed_features
from bitnet._core.packings.contract cimport BITNET_GROUP_COLS, BITNET_TILE_BYTES
from bitnet._core.threads cimport run
from bitnet._core.units cimport cut_product

cdef extern from "kernels/lut.h":
    const bitnet_lut_kernel LUT_KERNELS[]

cdef enum:
    # Of a unit, at most: the places of its sums and the sums themselves take 400 kB of a core's second-level cache.
    UNIT_PANELS = 160
    UNIT_BLOCKS = 8
    # What units repeat, in cycles of a Zen 4 for two tiles: the places of a panel, the tables of a block.
    INDEX_CYCLES = 30
    TABLES_CYCLES = 750
    # Of a part and panel: 14 tiles of four groups, or 12 of five.
    PART_INDEX_BYTES = 12 * LUT_ROWS * 5 * 2
    PANEL_SUMS = LUT_ROWS * LUT_TOKENS
    # Memory of a member: tables, places, short sums; and sums of what has no room in the output: a block that is not whole,
    # and each block's last panel where that is not whole.
    INDICES_AT = (LUT_TABLES_BYTES + 63) & ~63
    SHORT_AT = INDICES_AT + UNIT_PANELS * PART_INDEX_BYTES
    BLOCK_AT = SHORT_AT + UNIT_PANELS * PANEL_SUMS * 2
    LAST_AT = BLOCK_AT + UNIT_PANELS * PANEL_SUMS * 4
    MEMBER_BYTES = LAST_AT + UNIT_BLOCKS * PANEL_SUMS * 4

# What a member does at the time.
ctypedef struct Unit:
    const LutJob *job
    uint8_t *scratch
    Py_ssize_t first_panel, panels, whole_panels, first_token, tokens
    # Of a part.
    Py_ssize_t first_tile, tiles, tile_bytes


cdef const bitnet_lut_kernel *lut_kernel() except? NULL:
    cdef uint32_t allowed = allowed_features()
    cdef const bitnet_lut_kernel *kernel = LUT_KERNELS
    while kernel.isa != NULL:
        if kernel.needs & allowed == kernel.needs:
            return kernel
        kernel += 1
    return NULL


def kernel_name():
    """Name the instruction set of the kernel that looks sums up.

    Returns
    -------
    str or None
        None where there is none. Packings with a dot-product kernel do not use it.
    """
    cdef const bitnet_lut_kernel *kernel = lut_kernel()
    return kernel.isa.decode() if kernel != NULL else None


cdef Py_ssize_t lut_scratch_bytes(int threads) noexcept nogil:
    return threads * <Py_ssize_t>MEMBER_BYTES


cdef inline int32_t *_output(const Unit *u, Py_ssize_t block) noexcept nogil:
    cdef const LutJob *job = u.job
    return (<int32_t *>job.y + (u.first_token + block * LUT_TOKENS) * job.y_stride + u.first_panel * LUT_ROWS)


cdef inline int32_t *_sums(const Unit *u, Py_ssize_t block, Py_ssize_t panel, Py_ssize_t *panel_step,
                           Py_ssize_t *row_step) noexcept nogil:
    """Where the int32 sums of a block begin, for some panels from this one on."""
    panel_step[0], row_step[0] = PANEL_SUMS, LUT_TOKENS
    if (block + 1) * LUT_TOKENS > u.tokens:
        return <int32_t *>(u.scratch + BLOCK_AT) + panel * PANEL_SUMS
    if panel >= u.whole_panels:
        return <int32_t *>(u.scratch + LAST_AT) + block * PANEL_SUMS
    panel_step[0], row_step[0] = LUT_ROWS, u.job.y_stride
    return _output(u, block) + panel * LUT_ROWS


cdef void _look_up(const Unit *u, Py_ssize_t block, Py_ssize_t tile, bint is_last_block) noexcept nogil:
    """Two tiles, or the last one of a part, for all rows and a block."""
    cdef const LutJob *job = u.job
    cdef uint8_t *indices = u.scratch + INDICES_AT
    cdef Py_ssize_t first, count, next_tile = u.first_tile + u.tiles + tile
    cdef lut_run r
    r.tiles = min(<Py_ssize_t>LUT_TILES, u.tiles - tile)
    r.tile_bytes, r.fifth_at = u.tile_bytes, 0
    if job.tile_cols > 4 * BITNET_GROUP_COLS:
        r.fifth_at = u.panels * LUT_ROWS * 4 * 2
    job.kernel.tables(job.q + (u.first_token + block * LUT_TOKENS) * job.q_stride + (u.first_tile + tile) * job.tile_cols,
                      job.q_stride, min(<Py_ssize_t>LUT_TOKENS, u.tokens - block * LUT_TOKENS), r.tiles, job.tile_cols,
                      u.scratch)
    r.tables, r.is_first, r.is_new = u.scratch, tile == 0, u.first_tile == 0
    first = 0
    while first < u.panels:
        count = u.panels - first
        r.sums = NULL
        if tile + LUT_TILES >= u.tiles:
            if first < u.whole_panels:
                count = u.whole_panels - first
            r.sums = _sums(u, block, first, &r.panel_step, &r.row_step)
        r.indices = indices + tile * u.tile_bytes + first * LUT_ROWS * 4 * 2
        if r.fifth_at:
            r.fifth_at = (u.panels * 4 - first * 3) * LUT_ROWS * 2
        r.short_sums, r.panels = <short *>(u.scratch + SHORT_AT) + first * PANEL_SUMS, count
        r.next, r.next_step = indices, 0
        if is_last_block and next_tile < job.tiles:
            r.next = job.w + (u.first_panel + first) * job.panel_bytes + next_tile * <Py_ssize_t>BITNET_TILE_BYTES
            r.next_step = job.panel_bytes
        job.kernel.look_up(&r)
        first += count


cdef void _finish(const Unit *u, Py_ssize_t block) noexcept nogil:
    cdef const LutJob *job = u.job
    cdef Py_ssize_t panel, row, panel_step, row_step
    cdef const int32_t *sums
    cdef const float *scales = NULL
    for panel in range(u.panels):
        sums = _sums(u, block, panel, &panel_step, &row_step)
        row = (u.first_panel + panel) * LUT_ROWS
        if job.scales != NULL:
            scales = job.scales + row * job.scale_step
        job.kernel.finish(sums, row_step, _output(u, block) + panel * LUT_ROWS, job.y_stride,
                          min(<Py_ssize_t>LUT_ROWS, job.rows - row),
                          min(<Py_ssize_t>LUT_TOKENS, u.tokens - block * LUT_TOKENS), scales, job.scale_step,
                          job.factors + u.first_token + block * LUT_TOKENS)


cdef void _multiply(void *data, Py_ssize_t unit, int member) noexcept nogil:
    cdef const LutJob *job = <const LutJob *>data
    cdef Py_ssize_t part_tiles = LUT_SHORT_GROUPS * BITNET_GROUP_COLS // job.tile_cols & ~<Py_ssize_t>1
    cdef Py_ssize_t blocks, block, tile
    cdef Unit u
    u.job, u.scratch = job, job.scratch + member * <Py_ssize_t>MEMBER_BYTES
    u.first_panel = unit % job.row_units * job.unit_panels
    u.panels = min(job.unit_panels, job.panels - u.first_panel)
    u.whole_panels = min(u.panels, job.rows // LUT_ROWS - u.first_panel)
    u.first_token = unit // job.row_units * job.unit_blocks * LUT_TOKENS
    u.tokens = min(job.unit_blocks * LUT_TOKENS, job.tokens - u.first_token)
    if u.panels <= 0 or u.tokens <= 0:
        return
    blocks = (u.tokens + LUT_TOKENS - 1) // LUT_TOKENS
    u.tile_bytes = u.panels * LUT_ROWS * (job.tile_cols // BITNET_GROUP_COLS) * 2
    u.first_tile = 0
    while u.first_tile < job.tiles:
        u.tiles = min(part_tiles, job.tiles - u.first_tile)
        job.index(job.w + u.first_panel * job.panel_bytes + u.first_tile * <Py_ssize_t>BITNET_TILE_BYTES,
                  job.panel_bytes, u.panels, u.tiles, u.scratch + INDICES_AT, u.tile_bytes)
        for block in range(blocks):
            tile = 0
            while tile < u.tiles:
                _look_up(&u, block, tile, block + 1 == blocks)
                tile += LUT_TILES
        u.first_tile += u.tiles
    for block in range(blocks):
        _finish(&u, block)


cdef Py_ssize_t look_up_many(LutJob *job, int threads) noexcept nogil:
    if job.tokens % LUT_TOKENS < job.least_tokens:
        job.tokens -= job.tokens % LUT_TOKENS
    cdef Py_ssize_t blocks = (job.tokens + LUT_TOKENS - 1) // LUT_TOKENS
    cdef Py_ssize_t token_units = cut_product(job.panels, UNIT_PANELS, INDEX_CYCLES, blocks, UNIT_BLOCKS, TABLES_CYCLES,
                                              threads, &job.row_units)
    job.unit_panels = (job.panels + job.row_units - 1) // job.row_units
    job.unit_blocks = (blocks + token_units - 1) // token_units
    run(_multiply, job, job.row_units * token_units, threads)
    return job.tokens
