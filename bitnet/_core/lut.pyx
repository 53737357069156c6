"""Products of many tokens by look-up: 16 or 32 tokens share a table of the sums of four inputs, which all rows of a weight read.

``kernels/lut_kernel.h`` says how. A unit is a range of panels and of blocks of as many tokens as a look-up takes. It goes
through the columns in parts, whose sums fit int16 whatever the inputs are: makes the indices of all passes of a part, once
for all blocks, and then, block by block and pass by pass, makes the tables and lets all rows pass by. What the next part will
read is fetched meanwhile. Where the magnitudes of a block's tokens allow it, its int16 sums go on through the next part;
where not, they become int32, in the output's own memory. There the panels of a group lie in place of the tokens of a square,
each side by side: as rows in the tokens' places they would be in few sets of a cache, where outputs are a multiple of 1 KiB
apart. All sums are exact, so the bits are those of any other kernel.
"""

from libc.stdint cimport INT16_MAX, int32_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset

from bitnet._core.cpu cimport allowed_features
from bitnet._core.packings.contract cimport BITNET_TILE_BYTES
from bitnet._core.threads cimport run

cdef extern from "kernels/lut.h":
    const bitnet_lut_kernel LUT_KERNELS[]

cdef enum:
    # Of a unit, at most: the indices of its panels and their short sums take 575 kB of a core's second-level cache.
    UNIT_PANELS = 160
    UNIT_BLOCKS = 8
    # What units repeat, in cycles of a Zen 4 for a pass: the indices of a panel, the tables of a block.
    INDEX_CYCLES = 30
    TABLES_CYCLES = 750
    SQUARE_SUMS = LUT_ROWS * LUT_SQUARE
    # Memory of a member: tables, indices, short sums; and sums of what has no room in the output: a square that is not whole,
    # and each square's panels behind whole groups.
    INDICES_AT = (LUT_MOST_TABLES_BYTES + 63) & ~63
    SHORT_AT = INDICES_AT + UNIT_PANELS * LUT_MOST_PART_BYTES
    SQUARE_AT = SHORT_AT + UNIT_BLOCKS * UNIT_PANELS * LUT_MOST_SQUARES * SQUARE_SUMS * 2
    REST_AT = SQUARE_AT + UNIT_PANELS * SQUARE_SUMS * 4
    MEMBER_BYTES = REST_AT + UNIT_BLOCKS * LUT_MOST_SQUARES * LUT_GROUP_PANELS * SQUARE_SUMS * 4

# What a member does at the time.
ctypedef struct Unit:
    const LutJob *job
    uint8_t *scratch
    Py_ssize_t first_panel, panels, grouped, first_token, tokens
    bint is_one_block
    # Of a part.
    Py_ssize_t first_tile, tiles, passes
    # Of each block: the largest sum that its short sums may have reached, 0 where they begin; and whether there are int32
    # sums of earlier parts.
    Py_ssize_t reached[UNIT_BLOCKS]
    bint has_sums[UNIT_BLOCKS]


cdef const bitnet_lut_kernel *lut_kernel(uint32_t needs) noexcept nogil:
    cdef const bitnet_lut_kernel *kernel = LUT_KERNELS
    while kernel.isa != NULL and kernel.needs != needs:
        kernel += 1
    return kernel if kernel.isa != NULL else NULL


def kernel_names():
    """Name the instruction sets of the kernels that look sums up.

    Returns
    -------
    list of str
        Those that the CPU and BITNET_ISA allow; a packing chooses among them.
    """
    cdef uint32_t allowed = allowed_features()
    cdef const bitnet_lut_kernel *kernel = LUT_KERNELS
    found = []
    while kernel.isa != NULL:
        if kernel.needs & allowed == kernel.needs:
            found.append(kernel.isa.decode())
        kernel += 1
    return found


cdef Py_ssize_t lut_scratch_bytes(int threads) noexcept nogil:
    return threads * <Py_ssize_t>MEMBER_BYTES


cdef inline int32_t *_output(const Unit *u, Py_ssize_t square) noexcept nogil:
    cdef const LutJob *job = u.job
    return <int32_t *>job.y + (u.first_token + square * LUT_SQUARE) * job.y_stride + u.first_panel * LUT_ROWS


cdef inline lut_square _sums(const Unit *u, Py_ssize_t square, Py_ssize_t panel) noexcept nogil:
    """Where the int32 sums of a square are, of whole groups of panels from this one on, or of what is behind them."""
    cdef lut_square found
    found.panel_step, found.row_step, found.group_step = SQUARE_SUMS, LUT_SQUARE, LUT_GROUP_PANELS * SQUARE_SUMS
    if (square + 1) * LUT_SQUARE > u.tokens:
        found.at = <int32_t *>(u.scratch + SQUARE_AT) + panel * SQUARE_SUMS
    elif panel >= u.grouped:
        found.at = <int32_t *>(u.scratch + REST_AT) + (square * LUT_GROUP_PANELS + panel - u.grouped) * SQUARE_SUMS
    else:
        found.at, found.panel_step = _output(u, square) + panel * LUT_ROWS, u.job.y_stride
        found.group_step = LUT_GROUP_PANELS * LUT_ROWS
    return found


cdef inline Py_ssize_t _largest(const Unit *u, Py_ssize_t first_token, Py_ssize_t first_tile,
                                Py_ssize_t tiles) noexcept nogil:
    """The largest magnitude that sums over these tiles can have in the block that begins with this token."""
    return u.job.kernel.largest(
        u.job.q + (u.first_token + first_token) * u.job.q_stride + first_tile * u.job.tile_cols, u.job.q_stride,
        min(u.job.squares * LUT_SQUARE, u.tokens - first_token), tiles * u.job.tile_cols)


cdef inline void _index(const Unit *u, Py_ssize_t panel, Py_ssize_t panels, Py_ssize_t first_pass,
                        Py_ssize_t passes) noexcept nogil:
    """Make the indices of some passes of a part."""
    cdef const LutJob *job = u.job
    job.how.index(job.w + (u.first_panel + panel) * job.panel_bytes + u.first_tile * <Py_ssize_t>BITNET_TILE_BYTES,
                  job.panel_bytes, panels, u.tiles, first_pass, passes, 4 + job.squares, u.scratch + INDICES_AT)


cdef inline void _fetch(const Unit *u, Py_ssize_t one_pass, lut_run *r) noexcept nogil:
    """Say which tiles of a panel are fetched in this pass of the last block: those that will be read first when the pass, or
    where indices are made for many blocks, the part is done."""
    cdef const LutJob *job = u.job
    cdef Py_ssize_t count = job.how.pass_tiles, first = u.first_tile + (one_pass + 1) * count
    if not u.is_one_block:
        count = (job.how.part_tiles + u.passes - 1) // u.passes
        first = u.first_tile + u.tiles + one_pass * count
    elif one_pass + 1 == u.passes:
        first = u.first_tile + u.tiles
    r.next = job.w + u.first_panel * job.panel_bytes + first * <Py_ssize_t>BITNET_TILE_BYTES
    r.next_step, r.next_lines = job.panel_bytes, max(<Py_ssize_t>0, min(count, job.tiles - first))


cdef void _look_up(const Unit *u, Py_ssize_t first_token, Py_ssize_t one_pass, bint is_first, bint is_last) noexcept nogil:
    """A pass of a part, for all panels and the block that begins with this token; whether it is the first or the last one of
    short sums."""
    cdef const LutJob *job = u.job
    cdef Py_ssize_t tokens = min(job.squares * LUT_SQUARE, u.tokens - first_token), panel = 0, i
    cdef Py_ssize_t fetches = LUT_ROWS if u.passes == 1 else (LUT_ROWS + u.passes - 2) // (u.passes - 1)
    cdef lut_run r
    job.kernel.tables(job.q + (u.first_token + first_token) * job.q_stride + u.first_tile * job.tile_cols, job.q_stride,
                      tokens, u.tiles, one_pass, job.tile_cols, u.scratch)
    r.tables, r.tile_cols, r.tiles = u.scratch, job.tile_cols, min(<Py_ssize_t>2, u.tiles - one_pass * job.how.pass_tiles)
    r.squares = job.squares
    r.is_first, r.is_new = is_first and one_pass == 0, not u.has_sums[first_token // (job.squares * LUT_SQUARE)]
    r.is_last = is_last and one_pass + 1 == u.passes
    r.fetch_from = one_pass * fetches
    r.fetch_to = min(r.fetch_from + fetches, <Py_ssize_t>LUT_ROWS) if is_last and not r.is_last else 0
    r.next, r.next_step, r.next_lines = job.w, 0, 0
    if first_token + tokens == u.tokens:
        _fetch(u, one_pass, &r)
    while panel < u.panels:
        for i in range(r.squares):
            r.sums[i] = _sums(u, first_token // LUT_SQUARE + i, panel)
        r.indices = u.scratch + INDICES_AT + (one_pass * u.panels + panel) * job.how.pass_bytes
        r.panels = (u.grouped if panel < u.grouped else u.panels) - panel
        if u.is_one_block:
            # Nobody else needs the indices: a few at a time stay in the first-level cache.
            r.indices, r.panels = u.scratch + INDICES_AT, min(<Py_ssize_t>LUT_GROUP_PANELS, r.panels)
            _index(u, panel, r.panels, one_pass, 1)
        r.short_sums = <short *>(u.scratch + SHORT_AT) + (first_token * UNIT_PANELS + panel * LUT_SQUARE * r.squares) * LUT_ROWS
        job.kernel.look_up(&r)
        r.next += r.panels * r.next_step
        panel += r.panels


cdef void _finish(const Unit *u, Py_ssize_t square) noexcept nogil:
    cdef const LutJob *job = u.job
    cdef Py_ssize_t panel, row, i
    cdef lut_square sums = _sums(u, square, 0)
    cdef const float *scales = NULL
    for panel in range(u.panels):
        if panel % LUT_GROUP_PANELS == 0:
            sums = _sums(u, square, panel)
            if sums.group_step == LUT_GROUP_PANELS * LUT_ROWS:
                # What comes there is of other panels.
                for i in range(LUT_GROUP_PANELS):
                    memcpy(u.scratch + i * SQUARE_SUMS * 4, sums.at + i * sums.panel_step, SQUARE_SUMS * 4)
                sums.at, sums.panel_step = <int32_t *>u.scratch, SQUARE_SUMS
        row = (u.first_panel + panel) * LUT_ROWS
        if job.scales != NULL:
            scales = job.scales + row * job.scale_step
        job.kernel.finish(sums.at + panel % LUT_GROUP_PANELS * sums.panel_step, sums.row_step,
                          _output(u, square) + panel * LUT_ROWS, job.y_stride,
                          min(<Py_ssize_t>LUT_ROWS, job.rows - row),
                          min(<Py_ssize_t>LUT_SQUARE, u.tokens - square * LUT_SQUARE), scales, job.scale_step,
                          job.factors + u.first_token + square * LUT_SQUARE)


cdef void _multiply(void *data, Py_ssize_t unit, int member) noexcept nogil:
    cdef const LutJob *job = <const LutJob *>data
    cdef Py_ssize_t block, token, one_pass, square, next_tile
    cdef bint is_first, is_last
    cdef Unit u
    u.job, u.scratch = job, job.scratch + member * <Py_ssize_t>MEMBER_BYTES
    u.first_panel = unit % job.row_units * job.unit_panels
    u.panels = min(job.unit_panels, job.panels - u.first_panel)
    u.grouped = min(u.panels, job.rows // LUT_ROWS - u.first_panel) & ~<Py_ssize_t>(LUT_GROUP_PANELS - 1)
    u.first_token = job.first_token + unit // job.row_units * job.unit_tokens
    u.tokens = min(job.unit_tokens, job.end_token - u.first_token)
    if u.panels <= 0 or u.tokens <= 0:
        return
    u.is_one_block = u.tokens <= job.squares * LUT_SQUARE
    memset(u.reached, 0, sizeof(u.reached))
    memset(u.has_sums, 0, sizeof(u.has_sums))
    u.first_tile = 0
    while u.first_tile < job.tiles:
        u.tiles = min(job.how.part_tiles, job.tiles - u.first_tile)
        u.passes = min(job.how.part_passes, (u.tiles + job.how.pass_tiles - 1) // job.how.pass_tiles)
        if not u.is_one_block:
            _index(&u, 0, u.panels, 0, u.passes)
        next_tile = u.first_tile + u.tiles
        token = block = 0
        while token < u.tokens:
            is_first, is_last = u.reached[block] == 0, next_tile == job.tiles
            if not is_last:
                if is_first:
                    u.reached[block] = 1 + _largest(&u, token, u.first_tile, u.tiles)
                # With the next part, too?
                u.reached[block] += _largest(&u, token, next_tile, min(job.how.part_tiles, job.tiles - next_tile))
                is_last = u.reached[block] > INT16_MAX
            for one_pass in range(u.passes):
                _look_up(&u, token, one_pass, is_first, is_last)
            if is_last:
                u.reached[block], u.has_sums[block] = 0, True
            token += job.squares * LUT_SQUARE
            block += 1
        u.first_tile += u.tiles
    for square in range((u.tokens + LUT_SQUARE - 1) // LUT_SQUARE):
        _finish(&u, square)


cdef Py_ssize_t _cut(const LutJob *job, Py_ssize_t blocks, int threads, Py_ssize_t *row_units) noexcept nogil:
    """Into how many units of tokens, and, in `row_units`, of panels a product is divided: so that all threads have equal work,
    no unit has too much, and the least is done twice. Each unit of tokens makes the indices of all panels again, each unit of
    panels the tables of all blocks."""
    cdef Py_ssize_t least = (blocks + UNIT_BLOCKS - 1) // UNIT_BLOCKS, across, down, cost, best = 0, found = 0
    for across in range(least, least * threads + 1):
        down = (job.panels + UNIT_PANELS - 1) // UNIT_PANELS
        while down * across % threads:
            down += 1
        cost = across * job.panels * INDEX_CYCLES + down * blocks * TABLES_CYCLES
        if found == 0 or cost < best:
            best, row_units[0], found = cost, down, across
    return found


cdef void _look_up_some(LutJob *job, int threads) noexcept nogil:
    """The tokens from `first_token` to `end_token` - 1, in blocks of as many squares as there are to be."""
    cdef Py_ssize_t block = job.squares * LUT_SQUARE, blocks = (job.end_token - job.first_token + block - 1) // block
    cdef Py_ssize_t token_units = _cut(job, blocks, threads, &job.row_units)
    job.unit_panels = (job.panels + job.row_units - 1) // job.row_units
    job.unit_tokens = (blocks + token_units - 1) // token_units * block
    run(_multiply, job, job.row_units * token_units, threads)


cdef Py_ssize_t look_up_many(LutJob *job, int threads) noexcept nogil:
    cdef Py_ssize_t rest, least
    job.end_token = 0
    while job.tokens - job.end_token >= job.how.least_tokens:
        job.first_token, rest = job.end_token, job.tokens - job.end_token
        job.squares, least = 1, job.how.least_tokens
        if job.kernel.squares == 2 and rest >= job.how.wide_from:
            job.squares, least = 2, job.how.wide_from
        job.end_token = job.tokens
        if rest % (job.squares * LUT_SQUARE) < least:
            job.end_token -= rest % (job.squares * LUT_SQUARE)
        _look_up_some(job, threads)
    return job.end_token
