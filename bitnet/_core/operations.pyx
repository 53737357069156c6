"""The operations of a program: each is a task over units of tokens, of tokens and heads, or of rows.

Each number is computed in one fixed order: from the token's own row, and, in attention, from blocks of 64 positions that
begin at multiples of 64 of its own sequence, in parts of 256 positions, whose sums are added one after the other. Who
computes which part changes no bit.
"""

from libc.errno cimport EINTR, errno
from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint8_t, uintptr_t
from libc.string cimport memset

from bitnet._core.head cimport multiply_rows
from bitnet._core.matmul cimport multiply
from bitnet._core.ops cimport OPS_BLOCK, OPS_INT8, OPS_QUERIES, OPS_QUERY_BYTES
from bitnet._core.threads cimport raise_flag, run

cdef extern from "<unistd.h>" nogil:
    Py_ssize_t pread(int file, void *to, size_t n, int64_t offset)

cdef enum:
    # Of a row that is read from a file, on the stack; a multiple of all vectors' and numbers' sizes.
    PART_BYTES = 8192
    # Of a head of keys and values, that take its blocks from memory together.
    TILE_QUERIES = 64
    # What attention adds up by itself: a multiple of a block.
    PART_POSITIONS = 256
    # For parts that several threads compute: those of 16384 positions and 5 heads of 4 queries of 128 take 0.7 MB.
    PARTS_BYTES = 1 << 20
    # Fewer units than so many a thread may leave some threads idle at the end.
    FEW_UNITS = 8

cdef inline float *_source(const Run *r, Py_ssize_t t) noexcept nogil:
    return <float *>(r.scratch + r.now.source * r.capacity) + t * r.now.source_width


cdef void _embed(void *data, Py_ssize_t unit, int member) noexcept nogil:
    cdef Run *r = <Run *>data
    cdef const Operation *o = r.now
    cdef float *y = result_of(r, unit)
    cdef Py_ssize_t at = r.ids[unit] * o.row_bytes, done = 0, some, got
    cdef float numbers[2048]
    cdef uint8_t *part = <uint8_t *>numbers
    if o.table != NULL:
        r.ops.load(o.dtype, o.table + at, o.result_width, y)
        done = o.row_bytes
    while done < o.row_bytes:
        some = min(<Py_ssize_t>PART_BYTES, o.row_bytes - done)
        got = pread(o.file, part, some, o.offset + at + done)
        if got < 0 and errno == EINTR:
            continue
        if got != some:  # an error, or a file that was cut short
            raise_flag(&r.failed)
            return
        r.ops.load(o.dtype, part, some // o.item_bytes, y + done // o.item_bytes)
        done += some
    if o.factor != 1:
        for at in range(o.result_width):
            y[at] *= o.factor


cdef void _norm(void *data, Py_ssize_t unit, int member) noexcept nogil:
    cdef const Run *r = <const Run *>data
    r.ops.rms_norm(_source(r, unit), r.now.gain, r.now.eps, r.now.result_width, result_of(r, unit))


cdef void _gate(void *data, Py_ssize_t unit, int member) noexcept nogil:
    cdef const Run *r = <const Run *>data
    cdef const float *x = _source(r, unit)
    r.ops.gate(r.now.function, x, x + r.now.result_width, r.now.result_width, result_of(r, unit))


cdef void _add(void *data, Py_ssize_t unit, int member) noexcept nogil:
    cdef const Run *r = <const Run *>data
    r.ops.add(_source(r, unit), r.now.result_width, result_of(r, unit))


cdef inline uint8_t *_block(const Run *r, Py_ssize_t t, Py_ssize_t position, Py_ssize_t head, bint is_value) noexcept nogil:
    """The keys or values of one head, in the page of a position of a token's sequence."""
    cdef uintptr_t page = r.pages[r.sequences[t]][position // OPS_BLOCK]
    return <uint8_t *>page + ((2 * r.now.layer + is_value) * r.shape.kv_heads + head) * r.shape.block_bytes


cdef void _rope(void *data, Py_ssize_t unit, int member) noexcept nogil:
    """Rotate a head's key, and the queries that it is for, of neighbouring tokens where they are; and put keys and values
    into the cache. The same thread may well attend to them next."""
    cdef const Run *r = <const Run *>data
    cdef const Shape *s = r.shape
    cdef Py_ssize_t strip = unit // s.kv_heads, kv_head = unit % s.kv_heads, group = s.heads // s.kv_heads
    cdef Py_ssize_t first = r.strips[strip], tokens = r.strips[strip + 1] - first, half = s.head_dim // 2, i, head, t
    cdef Py_ssize_t at = r.positions[first] % OPS_BLOCK, width = r.now.source_width
    cdef const float *cosine
    cdef const float *sine
    cdef float *x
    for t in range(first, first + tokens):
        cosine, sine = r.now.cosine + r.positions[t] * half, r.now.sine + r.positions[t] * half
        for i in range(group + 1):
            head = kv_head * group + i if i < group else s.heads + kv_head
            x = _source(r, t) + head * s.head_dim
            if r.now.gain != NULL:
                r.ops.rms_norm(x, r.now.gain if i < group else r.now.key_gain, r.now.eps, s.head_dim, x)
            r.ops.rope(x, cosine, sine, half)
    x = _source(r, first) + (s.heads + kv_head) * s.head_dim
    r.ops.store_keys(s.kv_dtype, x, width, tokens, s.head_dim, _block(r, first, r.positions[first], kv_head, False), at)
    for t in range(tokens):
        r.ops.store_value(s.kv_dtype, x + t * width + s.kv_heads * s.head_dim, s.head_dim,
                          _block(r, first, r.positions[first], kv_head, True), at + t)


cdef Py_ssize_t attend_together(const Shape *shape, Py_ssize_t tokens, int threads) noexcept nogil:
    """How many neighbouring tokens, at most, take each block of the cache from memory together."""
    cdef Py_ssize_t group = shape.heads // shape.kv_heads, fair = tokens * shape.kv_heads // (8 * threads)
    # Some units for each thread, whose work differs: the later a token, the more it attends to.
    return max(<Py_ssize_t>1, <Py_ssize_t>OPS_QUERIES // group, min(<Py_ssize_t>TILE_QUERIES // group, fair))


cdef void _attend(void *data, Py_ssize_t unit, int member) noexcept nogil:
    """The queries of a tile of neighbouring tokens that share a head of keys and values."""
    cdef const Run *r = <const Run *>data
    cdef const Shape *s = r.shape
    cdef Py_ssize_t first = r.tiles[unit // s.kv_heads], kv_head = unit % s.kv_heads, at = 0
    cdef Py_ssize_t queries = (r.tiles[unit // s.kv_heads + 1] - first) * (s.heads // s.kv_heads)
    while at < queries:
        _attend_some(r, first, kv_head, at, min(<Py_ssize_t>TILE_QUERIES, queries - at), member)
        at += TILE_QUERIES


cdef void _prepare_queries(const Run *r, Py_ssize_t first, Py_ssize_t kv_head, Py_ssize_t at, Py_ssize_t queries,
                           int member, const void **query) noexcept nogil:
    """As `attend` wants them; those for an int8 cache in the member's memory."""
    cdef const Shape *s = r.shape
    cdef Py_ssize_t group = s.heads // s.kv_heads, nbytes = OPS_QUERY_BYTES(s.head_dim), q
    cdef uint8_t *to = <uint8_t *>r.parts + _sums_bytes(s, r.parts_threads) + member * TILE_QUERIES * nbytes
    cdef const float *x
    for q in range(queries):
        x = _source(r, first + (at + q) // group) + (kv_head * group + (at + q) % group) * s.head_dim
        query[q] = x
        if s.kv_dtype == OPS_INT8:
            query[q] = to + q * nbytes
            r.ops.prepare_query(x, s.head_dim, to + q * nbytes)


cdef void _attend_some(const Run *r, Py_ssize_t first, Py_ssize_t kv_head, Py_ssize_t at, Py_ssize_t queries,
                       int member) noexcept nogil:
    """Some of them over all positions up to their own, or a window that ends there, part by part. Their own are in the
    same block."""
    cdef const Shape *s = r.shape
    cdef float *sums[TILE_QUERIES]
    cdef float *part[TILE_QUERIES]
    cdef float state[2 * TILE_QUERIES]
    cdef float part_state[2 * TILE_QUERIES]
    cdef Py_ssize_t number = _first_position(r, first, at) // PART_POSITIONS, end = r.positions[first] // PART_POSITIONS + 1
    cdef float *parts = r.parts + member * TILE_QUERIES * s.head_dim
    cdef const void *query[TILE_QUERIES]
    cdef Py_ssize_t q
    _prepare_queries(r, first, kv_head, at, queries, member, query)
    for q in range(queries):
        sums[q], part[q] = _result_of_query(r, first, kv_head, at + q), parts + q * s.head_dim
    if number + 1 == end:
        _attend_part(r, first, kv_head, at, queries, query, number, end, state, sums)
    else:
        for q in range(queries):
            state[2 * q], state[2 * q + 1] = -INFINITY, 0
            memset(sums[q], 0, s.head_dim * sizeof(float))
        while number < end:
            _attend_part(r, first, kv_head, at, queries, query, number, end, part_state, part)
            for q in range(queries):
                r.ops.merge(part_state + 2 * q, part[q], s.head_dim, state + 2 * q, sums[q])
            number += 1
    for q in range(queries):
        _divide(sums[q], s.head_dim, state[2 * q + 1])


cdef inline Py_ssize_t _first_position(const Run *r, Py_ssize_t first, Py_ssize_t at) noexcept nogil:
    """That a query, and those after it in its tile, attend to."""
    cdef Py_ssize_t token = at // (r.shape.heads // r.shape.kv_heads)
    return max(<Py_ssize_t>0, r.positions[first] + token + 1 - r.now.window) if r.now.window else 0


cdef inline float *_result_of_query(const Run *r, Py_ssize_t first, Py_ssize_t kv_head, Py_ssize_t query) noexcept nogil:
    cdef Py_ssize_t group = r.shape.heads // r.shape.kv_heads
    return result_of(r, first + query // group) + (kv_head * group + query % group) * r.shape.head_dim


cdef inline void _divide(float *sum, Py_ssize_t n, float total) noexcept nogil:
    cdef float factor = 1 / total
    cdef Py_ssize_t i
    for i in range(n):
        sum[i] *= factor


cdef void _attend_part(const Run *r, Py_ssize_t first, Py_ssize_t kv_head, Py_ssize_t at, Py_ssize_t queries,
                       const void *const *query, Py_ssize_t number, Py_ssize_t end, float *state,
                       float *const *sums) noexcept nogil:
    """Some queries over the positions of one part, block by block, when the same thread does those up to `end` next. A
    state is the largest score and a sum."""
    cdef const Shape *s = r.shape
    cdef Py_ssize_t positions[TILE_QUERIES]
    cdef Py_ssize_t begins[TILE_QUERIES]
    cdef Py_ssize_t group = s.heads // s.kv_heads, window = r.now.window, t, q, ahead
    cdef Py_ssize_t start = max(number * <Py_ssize_t>PART_POSITIONS, _first_position(r, first, at) // OPS_BLOCK * OPS_BLOCK)
    cdef Py_ssize_t last = min(<Py_ssize_t>r.positions[first], (number + 1) * <Py_ssize_t>PART_POSITIONS - 1)
    cdef Py_ssize_t reads_to = min(<Py_ssize_t>r.positions[first], end * <Py_ssize_t>PART_POSITIONS - 1)
    for q in range(queries):
        state[2 * q], state[2 * q + 1] = -INFINITY, 0
        memset(sums[q], 0, s.head_dim * sizeof(float))
    while start <= last:
        for q in range(queries):
            t = r.positions[first + (at + q) // group] + 1
            positions[q] = min(<Py_ssize_t>OPS_BLOCK, t - start)
            begins[q] = max(<Py_ssize_t>0, t - window - start) if window else 0
        q = 0
        while q < queries:
            # The first queries fetch the next block, if there is one.
            ahead = start + OPS_BLOCK if q == 0 and start + OPS_BLOCK <= reads_to else start
            r.ops.attend(s.kv_dtype, <int>min(<Py_ssize_t>OPS_QUERIES, queries - q), query + q,
                         _block(r, first, start, kv_head, False), _block(r, first, start, kv_head, True),
                         _block(r, first, ahead, kv_head, False), _block(r, first, ahead, kv_head, True), begins + q,
                         positions + q, s.head_dim, r.now.factor, <float (*)[2]>(state + 2 * q), sums + q)
            q += OPS_QUERIES
        start += OPS_BLOCK


# Of single tokens, where there are fewer heads than would keep all threads busy: each part by itself, and then their sum in
# the same order as above.

cdef inline float *_part_of(const Run *r, Py_ssize_t part) noexcept nogil:
    """The weighted sums of a group's queries, and then their states."""
    return r.parts + part * (r.shape.heads // r.shape.kv_heads) * (r.shape.head_dim + 2)


cdef void _attend_apart(void *data, Py_ssize_t unit, int member) noexcept nogil:
    """Some parts of one head of a token's sequence."""
    cdef const Run *r = <const Run *>data
    cdef const Shape *s = r.shape
    cdef Py_ssize_t units = (r.n_parts + r.parts_per_unit - 1) // r.parts_per_unit, pair = unit // units
    cdef Py_ssize_t begin = unit % units * r.parts_per_unit, end = min(begin + r.parts_per_unit, r.n_parts), number
    cdef Py_ssize_t first = r.tiles[pair // s.kv_heads], group = s.heads // s.kv_heads, at, q, some
    cdef float *part
    cdef float *sums[TILE_QUERIES]
    cdef const void *query[TILE_QUERIES]
    at = 0
    while at < group:
        some = min(<Py_ssize_t>TILE_QUERIES, group - at)
        _prepare_queries(r, first, pair % s.kv_heads, at, some, member, query)
        for number in range(begin, end):
            part = _part_of(r, pair * r.n_parts + number)
            for q in range(some):
                sums[q] = part + (at + q) * s.head_dim
            _attend_part(r, first, pair % s.kv_heads, at, some, query, number, end,
                         part + group * s.head_dim + 2 * at, sums)
        at += some


cdef void _add_parts(void *data, Py_ssize_t pair, int member) noexcept nogil:
    cdef const Run *r = <const Run *>data
    cdef const Shape *s = r.shape
    cdef Py_ssize_t group = s.heads // s.kv_heads, first = r.tiles[pair // s.kv_heads], q, number
    cdef float state[2]
    cdef float *part
    cdef float *sum
    for q in range(group):
        sum = _result_of_query(r, first, pair % s.kv_heads, q)
        state[0], state[1] = -INFINITY, 0
        memset(sum, 0, s.head_dim * sizeof(float))
        for number in range(r.n_parts):
            part = _part_of(r, pair * r.n_parts + number)
            r.ops.merge(part + group * s.head_dim + 2 * q, part + q * s.head_dim, s.head_dim, state, sum)
        _divide(sum, s.head_dim, state[1])


cdef inline Py_ssize_t _sums_bytes(const Shape *shape, int threads) noexcept nogil:
    return max(threads * <Py_ssize_t>TILE_QUERIES * shape.head_dim * <Py_ssize_t>sizeof(float), <Py_ssize_t>PARTS_BYTES)


cdef Py_ssize_t parts_bytes(const Shape *shape, int threads) noexcept nogil:
    return _sums_bytes(shape, threads) + threads * TILE_QUERIES * OPS_QUERY_BYTES(shape.head_dim)


cdef void _attend_all(Run *r, int threads) noexcept nogil:
    cdef const Shape *s = r.shape
    cdef Py_ssize_t pairs = r.n_tiles * s.kv_heads, t
    r.n_parts = 1
    if r.n_tiles == r.tokens and 1 < threads and pairs < FEW_UNITS * threads:
        for t in range(r.tokens):
            r.n_parts = max(r.n_parts, r.positions[t] // <Py_ssize_t>PART_POSITIONS + 1)
    if r.n_parts > 1 and <uint8_t *>_part_of(r, pairs * r.n_parts) <= <uint8_t *>r.parts + PARTS_BYTES:
        # Neighbours together: each fetches the next one's beginning.
        r.parts_per_unit = max(<Py_ssize_t>1, pairs * r.n_parts // (FEW_UNITS * threads))
        run(_attend_apart, r, pairs * ((r.n_parts + r.parts_per_unit - 1) // r.parts_per_unit), min(threads, r.parts_threads))
        run(_add_parts, r, pairs, threads)
    else:
        run(_attend, r, pairs, min(threads, r.parts_threads))


cdef void _head(void *data, Py_ssize_t unit, int member) noexcept nogil:
    """Some rows of the head, each read once for all tokens that are wanted."""
    cdef const Run *r = <const Run *>data
    cdef Py_ssize_t row, out, first = unit * r.rows_per_unit
    for row in range(first, min(first + r.rows_per_unit, r.now.rows)):
        for out in range(r.n_outputs):
            r.logits[out * r.now.rows + row] = r.ops.dot(
                r.now.dtype, r.now.table + row * r.now.row_bytes, _source(r, r.outputs[out]), r.now.source_width)


cdef void _dense(void *data, Py_ssize_t unit, int member) noexcept nogil:
    """Some rows of a weight of floats, each read once for all tokens."""
    cdef Run *r = <Run *>data
    cdef Py_ssize_t row, t, first = unit * r.rows_per_unit
    for row in range(first, min(first + r.rows_per_unit, r.now.rows)):
        for t in range(r.tokens):
            result_of(r, t)[r.now.column + row] = r.ops.dot(
                r.now.dtype, r.now.table + row * r.now.row_bytes, _source(r, t), r.now.source_width)


cdef int operate(Run *r, uint8_t *job_scratch, int threads) noexcept nogil:
    cdef Operation *o = r.now
    r.failed = 0
    if o.kind == LINEAR:
        o.job.x, o.job.x_int, o.job.y_int = _source(r, 0), NULL, NULL
        o.job.y, o.job.y_stride = result_of(r, 0) + o.column, o.result_width
        o.job.tokens, o.job.starts = r.tokens, r.starts
        o.job.lut_scratch, o.job.lut_threads = r.lut_scratch, r.lut_threads
        return multiply(&o.job, job_scratch, threads)
    if o.kind == EMBED:
        run(_embed, r, r.tokens, threads)
    elif o.kind == NORM:
        run(_norm, r, r.tokens, threads)
    elif o.kind == ROPE:
        run(_rope, r, r.n_strips * r.shape.kv_heads, threads)
    elif o.kind == ATTEND:
        _attend_all(r, threads)
    elif o.kind == GATE:
        run(_gate, r, r.tokens, threads)
    elif o.kind == ADD:
        run(_add, r, r.tokens, threads)
    elif o.kind == DENSE:
        r.rows_per_unit = max(<Py_ssize_t>16, o.rows // (16 * threads))
        run(_dense, r, (o.rows + r.rows_per_unit - 1) // r.rows_per_unit, threads)
    elif r.n_outputs and o.dtype == OPS_INT8:
        o.head.x, o.head.x_stride, o.head.picked, o.head.tokens = _source(r, 0), o.source_width, r.outputs, r.n_outputs
        o.head.y, o.head.leaders = r.logits, r.leaders
        return multiply_rows(&o.head, job_scratch, threads)
    elif r.n_outputs:
        r.rows_per_unit = max(<Py_ssize_t>16, o.rows // (16 * threads))
        run(_head, r, (o.rows + r.rows_per_unit - 1) // r.rows_per_unit, threads)
    return r.failed
