"""The operations of a program: each is a task over units of tokens, of tokens and heads, or of rows.

Each number is computed by one member of the team in one fixed order: from the token's own row, and, in attention, from
blocks of 64 positions that begin at multiples of 64 of its own sequence.
"""

from libc.errno cimport EINTR, errno
from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint8_t, uintptr_t
from libc.string cimport memset

from bitnet._core.matmul cimport multiply
from bitnet._core.ops cimport OPS_BLOCK
from bitnet._core.threads cimport raise_flag, run

cdef extern from "<unistd.h>" nogil:
    Py_ssize_t pread(int file, void *to, size_t n, int64_t offset)

cdef enum:
    # Of a row that is read from a file, on the stack; a multiple of all vectors' and numbers' sizes.
    PART_BYTES = 8192

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
        return
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


cdef inline uint8_t *_page(const Run *r, Py_ssize_t t, Py_ssize_t position, Py_ssize_t head, bint is_value) noexcept nogil:
    """Where the keys or values of one head begin, in the page of a position of a token's sequence."""
    cdef uintptr_t page = r.pages[r.sequences[t]][position // OPS_BLOCK]
    cdef Py_ssize_t block = OPS_BLOCK * r.shape.head_dim * r.shape.kv_bytes
    return <uint8_t *>page + ((2 * r.now.layer + is_value) * r.shape.kv_heads + head) * block


cdef void _rope(void *data, Py_ssize_t unit, int member) noexcept nogil:
    """Rotate a token's queries and keys where they are, and put its keys and values into the cache."""
    cdef const Run *r = <const Run *>data
    cdef const Shape *s = r.shape
    cdef float *x = _source(r, unit)
    cdef Py_ssize_t position = r.positions[unit], half = s.head_dim // 2, head, at
    cdef const float *cosine = r.cosine + position * half
    cdef const float *sine = r.sine + position * half
    for head in range(s.heads + s.kv_heads):
        r.ops.rope(x + head * s.head_dim, cosine, sine, half)
    x += s.heads * s.head_dim
    at = position % OPS_BLOCK * s.head_dim * s.kv_bytes
    for head in range(s.kv_heads):
        r.ops.store(s.kv_dtype, x + head * s.head_dim, s.head_dim, _page(r, unit, position, head, False) + at)
        r.ops.store(s.kv_dtype, x + (s.kv_heads + head) * s.head_dim, s.head_dim,
                    _page(r, unit, position, head, True) + at)


cdef void _attend(void *data, Py_ssize_t unit, int member) noexcept nogil:
    """One head of one token over all positions up to its own, block by block."""
    cdef const Run *r = <const Run *>data
    cdef const Shape *s = r.shape
    cdef Py_ssize_t t = unit // s.heads, head = unit % s.heads, kv_head = head // (s.heads // s.kv_heads)
    cdef Py_ssize_t start = 0, last = r.positions[t], i
    cdef float *y = result_of(r, t) + head * s.head_dim
    cdef float state[2]
    cdef float factor
    state[0], state[1] = -INFINITY, 0
    memset(y, 0, s.head_dim * sizeof(float))
    while start <= last:
        r.ops.attend(s.kv_dtype, _source(r, t) + head * s.head_dim, _page(r, t, start, kv_head, False),
                     _page(r, t, start, kv_head, True), min(<Py_ssize_t>OPS_BLOCK, last + 1 - start), s.head_dim,
                     r.now.factor, state, y)
        start += OPS_BLOCK
    factor = 1 / state[1]
    for i in range(s.head_dim):
        y[i] *= factor


cdef void _head(void *data, Py_ssize_t unit, int member) noexcept nogil:
    """Some rows of the head, each read once for all tokens that are wanted."""
    cdef const Run *r = <const Run *>data
    cdef Py_ssize_t row, out, first = unit * r.rows_per_unit
    cdef float logit
    for row in range(first, min(first + r.rows_per_unit, r.now.rows)):
        for out in range(r.n_outputs):
            logit = r.ops.dot(r.now.dtype, r.now.table + row * r.now.row_bytes, _source(r, r.outputs[out]),
                              r.now.source_width)
            if r.now.scales != NULL:
                logit *= r.now.scales[row]
            r.logits[out * r.now.rows + row] = logit


cdef int operate(Run *r, uint8_t *job_scratch, int threads) noexcept nogil:
    cdef Operation *o = r.now
    r.failed = 0
    if o.kind == LINEAR:
        o.job.x, o.job.x_int, o.job.y_int = _source(r, 0), NULL, NULL
        o.job.y, o.job.y_stride = result_of(r, 0) + o.column, o.result_width
        o.job.tokens, o.job.starts = r.tokens, r.starts
        return multiply(&o.job, job_scratch, threads)
    if o.kind == EMBED:
        run(_embed, r, r.tokens, threads)
    elif o.kind == NORM:
        run(_norm, r, r.tokens, threads)
    elif o.kind == ROPE:
        run(_rope, r, r.tokens, threads)
    elif o.kind == ATTEND:
        run(_attend, r, r.tokens * r.shape.heads, threads)
    elif o.kind == GATE:
        run(_gate, r, r.tokens, threads)
    elif o.kind == ADD:
        run(_add, r, r.tokens, threads)
    elif r.n_outputs:
        r.rows_per_unit = max(<Py_ssize_t>16, o.rows // (16 * threads))
        run(_head, r, (o.rows + r.rows_per_unit - 1) // r.rows_per_unit, threads)
    return r.failed
