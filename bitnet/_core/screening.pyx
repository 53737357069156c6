"""Of an int8 head only what can be among a token's largest logits, exactly: half of the work of a batch.

An input is 256 h + l (head.pyx). The high halves alone give each logit up to what the low halves can add, by the inequality
of Cauchy and Schwarz at most |row| * |l|:

    approximation[r] = scale[r] / a * 256 sum_c w[r, c] h[c]         |logit[r] - approximation[r]| <= |scale[r]| / a * |w[r]| |l|

So the k-th largest lower bound of any k panels is no more than the k-th largest logit, and a panel of 16 rows whose upper bound
is below it has none of the k largest. All other panels are computed again, with both halves, as head.pyx does; theirs are the
same bits. What is left of the others is the approximation, which is below the k-th largest logit.

This saves arithmetic, so it is for several tokens: one token waits for the weights. (Two planes of the *weights* would save
reading; but the low nibbles of 2560 columns may add 6.5 standard deviations of a random row's logit, so that no row is left out.)
"""

from libc.math cimport INFINITY, fabs, sqrt
from libc.stdint cimport int8_t, int32_t
from libc.string cimport memset

from bitnet._core.head_job cimport HEAD_COLS, HEAD_MAX_INPUTS, HEAD_ROWS, HEAD_TILE_BYTES, HeadJob, finish_rows
from bitnet._core.threads cimport run

cdef enum:
    # Products after one that left too much to be computed again are not screened.
    PAUSE = 64

ctypedef struct Measuring:
    const HeadJob *job
    float *reach


cdef void _measure(void *data, Py_ssize_t panel, int member) noexcept nogil:
    cdef Measuring *m = <Measuring *>data
    cdef const HeadJob *job = m.job
    cdef const int8_t *w = job.w + panel * job.tiles * HEAD_TILE_BYTES
    cdef int32_t squares[HEAD_TILE_BYTES]
    cdef Py_ssize_t tile, i, r
    cdef double most = 0, total
    # 127^2 times HEAD_MAX_COLS / 4 fits.
    memset(squares, 0, sizeof(squares))
    for tile in range(job.tiles):
        for i in range(HEAD_TILE_BYTES):
            squares[i] += <int32_t>w[i] * w[i]
        w += HEAD_TILE_BYTES
    for r in range(min(<Py_ssize_t>HEAD_ROWS, job.rows - panel * HEAD_ROWS)):
        total = 0
        for i in range(HEAD_COLS):
            total += squares[HEAD_COLS * r + i]
        most = max(most, sqrt(total) * fabs(job.scales[panel * HEAD_ROWS + r]))
    m.reach[panel] = <float>(most * 1.000001)


cdef void measure_reach(const HeadJob *job, float *reach, int threads) noexcept nogil:
    cdef Measuring measuring
    measuring.job, measuring.reach = job, reach
    run(_measure, &measuring, job.panels, threads)


cdef Py_ssize_t screening_bytes(const HeadJob *job, Py_ssize_t tokens) noexcept nogil:
    return min(tokens, <Py_ssize_t>SCREEN_UP_TO) * (job.panels * sizeof(float) + 3 * sizeof(double))


cdef inline double _bound(const HeadJob *job, Py_ssize_t token, Py_ssize_t panel, double approximation) noexcept nogil:
    """How far a logit may be from its approximation, rounding included: three steps of float32 and a margin, and the least
    steps that float32 has."""
    return job.low[token] * job.reach[panel] + 1e-6 * fabs(approximation) + 1e-35


cdef void _approximate(void *data, Py_ssize_t unit, int member) noexcept nogil:
    """Some panels, by the high halves of all tokens."""
    cdef HeadJob *job = <HeadJob *>data
    cdef int32_t sums[HEAD_MAX_INPUTS * HEAD_ROWS]
    cdef const int8_t *w
    cdef Py_ssize_t panel, t, some, i, stride, first = unit * job.panels_per_unit
    for panel in range(first, min(first + job.panels_per_unit, job.panels)):
        w = job.w + panel * job.tiles * HEAD_TILE_BYTES
        t = 0
        while t < job.tokens:
            # Kernels take an even number of rows; the last of an odd number is taken twice.
            some, stride = min(<Py_ssize_t>HEAD_MAX_INPUTS, job.tokens - t) & ~<Py_ssize_t>1, 2 * job.q_stride
            if some == 0:
                some, stride = 1, 0
            job.kernel.panel(w, job.q + 2 * t * job.q_stride, stride, sums, job.tiles, max(<Py_ssize_t>2, some))
            for i in range(some):
                job.most[(t + i) * job.panels + panel] = _finish_high(job, sums + i * HEAD_ROWS, panel, t + i)
            t += some


cdef float _finish_high(HeadJob *job, const int32_t *sums, Py_ssize_t panel, Py_ssize_t token) noexcept nogil:
    """Returns the largest of them."""
    cdef Py_ssize_t at = panel * HEAD_ROWS, r, rows = min(<Py_ssize_t>HEAD_ROWS, job.rows - at)
    cdef int32_t high = job.kernel.bias * job.q_sums[2 * token]
    cdef float *y = job.y + token * job.rows + at
    cdef float most
    for r in range(rows):
        y[r] = <float>(256.0 * (sums[r] - high)) * (job.scales[at + r] * job.factors[token])
    most = y[0]
    for r in range(1, rows):
        most = y[r] if y[r] > most else most
    return most


cdef void _prepare(void *data, Py_ssize_t token, int member) noexcept nogil:
    cdef HeadJob *job = <HeadJob *>data
    cdef const int8_t *low = job.q + (2 * token + 1) * job.q_stride
    cdef double total = 0
    cdef Py_ssize_t c
    for c in range(job.cols):
        total += <double>(<int32_t>low[c] * low[c])
    job.low[token] = sqrt(total) * job.factors[token] * 1.00001


cdef void _choose(void *data, Py_ssize_t token, int member) noexcept nogil:
    """What a panel must be able to reach; and how many can."""
    cdef HeadJob *job = <HeadJob *>data
    cdef const float *most = job.most + token * job.panels
    cdef double best[MAX_LEADERS]
    cdef double bound
    cdef Py_ssize_t panel, i, k = job.leaders[token]
    for i in range(k):
        best[i] = -INFINITY
    for panel in range(job.panels):
        bound = most[panel] - _bound(job, token, panel, most[panel])
        if bound > best[k - 1]:
            i = k - 1
            while i > 0 and best[i - 1] < bound:
                best[i] = best[i - 1]
                i -= 1
            best[i] = bound
    job.least[token], job.survivors[token] = best[k - 1], 0
    for panel in range(job.panels):
        job.survivors[token] += _survives(job, token, panel)


cdef inline bint _survives(const HeadJob *job, Py_ssize_t token, Py_ssize_t panel) noexcept nogil:
    cdef double most = job.most[token * job.panels + panel]
    return most + _bound(job, token, panel, most) >= job.least[token]


cdef void _complete(void *data, Py_ssize_t unit, int member) noexcept nogil:
    """Some panels, of the tokens whose largest logits may be there, by both halves."""
    cdef HeadJob *job = <HeadJob *>data
    cdef int32_t sums[HEAD_MAX_INPUTS * HEAD_ROWS]
    cdef Py_ssize_t panel, t, first = unit * job.panels_per_unit
    for panel in range(first, min(first + job.panels_per_unit, job.panels)):
        for t in range(job.tokens):
            if _survives(job, t, panel):
                job.kernel.panel(job.w + panel * job.tiles * HEAD_TILE_BYTES, job.q + 2 * t * job.q_stride, job.q_stride,
                                 sums, job.tiles, 2)
                finish_rows(job, sums, panel, t)


cdef bint screen_rows(HeadJob *job, void *scratch, int threads) noexcept nogil:
    cdef Py_ssize_t t, survivors = 0, units = (job.panels + job.panels_per_unit - 1) // job.panels_per_unit
    if job.pause[0] > 0:
        job.pause[0] -= 1
        return False
    job.low = <double *>scratch
    job.least, job.survivors = job.low + job.tokens, <Py_ssize_t *>(job.low + 2 * job.tokens)
    job.most = <float *>(job.survivors + job.tokens)
    run(_prepare, job, job.tokens, threads)
    run(_approximate, job, units, threads)
    run(_choose, job, job.tokens, threads)
    for t in range(job.tokens):
        survivors += job.survivors[t]
    # Alone a panel takes a token up to four times as long as in a batch of them.
    if 8 * survivors > job.tokens * job.panels:
        job.pause[0] = PAUSE
        return False
    run(_complete, job, units, threads)
    return True
