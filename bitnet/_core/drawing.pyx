"""A draw from the tokens of a vocabulary: temperature, top-k, top-p, min-p, typical-p, then one token by chance.

What each filter keeps is defined in `bitnet.sampling.Sampler`. A draw is computed in one order, with the operations of
IEEE 754 and an exponential of our own: the same random number gives the same token alone and beside others, on any number
of threads, on every machine (but for the C library's logarithm in typical-p). `Draws` makes several side by side.
"""

import numpy as np

from libc.float cimport FLT_MAX
from libc.math cimport fabs, log
from libc.stdint cimport int32_t, uint32_t
from libc.string cimport memcpy, memset

from bitnet._core.blocks cimport Block
from bitnet._core.memory cimport allocate, checked_product
from bitnet._core.threads cimport run, thread_count

from bitnet._core.arrays import checked
from bitnet.errors import MemoryError, ShapeError

cdef enum:
    LANES = 16                     # maxima and sums side by side, which the compiler may put into vectors
    MAX_BLOCK = 64                 # logits that share a maximum: of a vocabulary of 128 256 there are 2004
    SUM_BLOCK = 256                # weights that share a sum: near the root of that vocabulary two steps cost least
    RANGES = 1024                  # of keys, which share a sum of weights
    FEW = 48                       # keys, that are sorted by insertion
    WORTH_A_THREAD = 1 << 14       # logits: a draw from fewer takes less time than another thread takes to come
    BITS_OF_87 = 0x42ae0000        # as a float32; e^-87 is the last whole power of e that is no subnormal one

cdef int32_t BITS_OF_LEAST = <int32_t>0xff7fffff  # the least float32


cdef struct Draw:
    const float *scores
    float temperature, min_p
    double top_p, typical_p, uniform
    Py_ssize_t top_k
    Py_ssize_t token


cdef struct Job:
    Draw *draws
    Py_ssize_t n
    char *scratch
    Py_ssize_t scratch_bytes


cdef struct Kept:                  # tokens that may be drawn, ascending, with what is known of each
    Py_ssize_t n
    int32_t *ids                   # not looked at where all are there
    float *depths
    float *weights
    float *keys
    bint has_all


cdef void _weigh(const float *scores, Py_ssize_t n, float largest, float temperature, float *depths,
                 float *weights) noexcept nogil:
    """The depth of each score below the largest, and e^-depth: 0 from 87 on, and for what may not come.

    Cody and Waite's reduction to [-ln 2 / 2, ln 2 / 2] and Taylor's polynomial of degree 6, as in kernels/ops_body.h: within
    3e-7 of the value. Choices are made between integers, whose order is that of the floats: then the compiler may use
    vectors.
    """
    cdef Py_ssize_t i
    cdef float depth, whole, r, p
    cdef int32_t bits, score, power, result
    for i in range(n):
        depth = (largest - scores[i]) / temperature
        depths[i] = depth
        memcpy(&bits, &depth, 4)
        memcpy(&score, &scores[i], 4)
        bits = bits if bits < BITS_OF_87 else BITS_OF_87
        memcpy(&depth, &bits, 4)
        # Adding and taking away 1.5 * 2^23 rounds to an integer, which is in the low bits between the two.
        whole = depth * <float>-1.44269504 + <float>12582912
        memcpy(&power, &whole, 4)
        whole = whole - <float>12582912
        r = (-depth - whole * <float>0.693359375) + whole * <float>2.12194440e-4
        p = r * <float>(1.0 / 720) + <float>(1.0 / 120)
        p = p * r + <float>(1.0 / 24)
        p = p * r + <float>(1.0 / 6)
        p = p * r + <float>0.5
        p = p * r + <float>1
        p = p * r + <float>1
        memcpy(&result, &p, 4)
        result = <int32_t>(<uint32_t>result + (<uint32_t>power << 23))
        result &= -<int32_t>(bits < BITS_OF_87) & -<int32_t>(score != BITS_OF_LEAST)
        memcpy(&weights[i], &result, 4)


cdef float _largest(const float *x, Py_ssize_t n) noexcept nogil:
    cdef float largest[LANES]
    cdef Py_ssize_t i = 0, j
    for j in range(LANES):
        largest[j] = x[0]
    while i + LANES <= n:
        for j in range(LANES):
            largest[j] = x[i + j] if x[i + j] > largest[j] else largest[j]
        i += LANES
    while i < n:
        largest[0] = x[i] if x[i] > largest[0] else largest[0]
        i += 1
    for j in range(1, LANES):
        largest[0] = max(largest[0], largest[j])
    return largest[0]


cdef double _sum(const float *x, Py_ssize_t n) noexcept nogil:
    """In `LANES` sums of every so-many-th, which are then added in order."""
    cdef double sums[LANES]
    cdef Py_ssize_t i = 0, j
    memset(sums, 0, sizeof(sums))
    while i + LANES <= n:
        for j in range(LANES):
            sums[j] += x[i + j]
        i += LANES
    while i < n:
        sums[i % LANES] += x[i]
        i += 1
    for j in range(1, LANES):
        sums[0] += sums[j]
    return sums[0]


cdef float _kth(float *x, Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    """The k-th largest, by Hoare's selection; the numbers change places."""
    cdef Py_ssize_t first = 0, last = n - 1, at = k - 1, i, j
    cdef float pivot, a, b, c
    while first < last:
        a, b, c = x[first], x[(first + last) // 2], x[last]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = first, last
        while i <= j:
            while x[i] > pivot:
                i += 1
            while x[j] < pivot:
                j -= 1
            if i <= j:
                x[i], x[j] = x[j], x[i]
                i += 1
                j -= 1
        if at <= j:
            last = j
        elif at >= i:
            first = i
        else:
            break
    return x[at]


cdef Py_ssize_t _at_least_kth(const float *scores, Py_ssize_t n, Py_ssize_t k, int32_t *ids, float *some) noexcept nogil:
    """The tokens whose score is at least the k-th largest; how many they are. `some` has room for all scores, and for two."""
    # k blocks have a maximum of at least the k-th largest maximum, so k scores are at least that, and the k-th largest
    # score is. A comparison with it leaves little to choose from.
    cdef Py_ssize_t blocks = (n + MAX_BLOCK - 1) // MAX_BLOCK, i, block, end, count = 0, kept = 0
    cdef float least = -FLT_MAX
    if k <= blocks:
        for block in range(blocks):
            some[block] = _largest(scores + block * MAX_BLOCK, min(<Py_ssize_t>MAX_BLOCK, n - block * MAX_BLOCK))
        memcpy(some + blocks, some, blocks * sizeof(float))
        least = _kth(some + blocks, blocks, k)
        for block in range(blocks):
            if some[block] < least:
                continue
            end = min((block + 1) * MAX_BLOCK, n)
            for i in range(block * MAX_BLOCK, end):
                if scores[i] >= least:
                    ids[count] = <int32_t>i
                    count += 1
    else:
        for i in range(n):
            ids[i] = <int32_t>i
        count = n
    for i in range(count):
        some[i] = scores[ids[i]]
    least = _kth(some, count, k)
    for i in range(count):
        if scores[ids[i]] >= least:
            ids[kept] = ids[i]
            kept += 1
    return kept


cdef void _keep(Kept *kept, Py_ssize_t at, Py_ssize_t to) noexcept nogil:
    kept.ids[to] = <int32_t>at if kept.has_all else kept.ids[at]
    kept.depths[to], kept.weights[to] = kept.depths[at], kept.weights[at]


cdef void _keep_lightest(Kept *kept, double mass, float above, bint with_equals, int32_t *candidates) noexcept nogil:
    """Keep what has the least keys, until it has so much weight together; of equal keys the first, or all of them.

    Only tokens of a weight above some number are looked at, which have so much. `candidates` has room for all tokens, twice.

    Instead of a sort: how much weight lies in each of many ranges of keys; then the same with the keys of the range in
    which the sum comes to its mark, and so on until there are few.
    """
    cdef double sums[RANGES]
    cdef const float *keys = kept.keys
    cdef double before = 0, scale
    cdef float low = FLT_MAX, high = 0, base, key
    cdef Py_ssize_t n = 0, count, i, j, some, last, r, mark, to = 0
    cdef int32_t *found = candidates + _room(kept.n)
    for i in range(kept.n):
        candidates[n] = <int32_t>i
        n += kept.weights[i] > above
    memcpy(found, candidates, n * sizeof(int32_t))
    count = n
    for j in range(n):
        low, high = min(low, keys[found[j]]), max(high, keys[found[j]])
    while count > FEW and low < high:
        memset(sums, 0, sizeof(sums))
        scale, base = (RANGES - 1) / (<double>high - low), low
        for j in range(count):
            sums[_range(keys[found[j]], base, scale)] += kept.weights[found[j]]
        last = -1  # the first range at whose end there is enough, or that with the greatest keys
        for r in range(RANGES):
            if sums[r] > 0:
                before += sums[last] if last >= 0 else 0
                last = r
                if before + sums[r] >= mass:
                    break
        some, low, high = 0, FLT_MAX, 0
        for j in range(count):
            if _range(keys[found[j]], base, scale) == last:
                found[some] = found[j]
                low, high = min(low, keys[found[j]]), max(high, keys[found[j]])
                some += 1
        count = some
    # Sorted by key, those with equal keys as they come.
    if low < high:
        for i in range(1, count):
            mark, key = found[i], keys[found[i]]
            j = i
            while j > 0 and keys[found[j - 1]] > key:
                found[j] = found[j - 1]
                j -= 1
            found[j] = <int32_t>mark
    last = 0
    before += kept.weights[found[0]]
    while last + 1 < count and before < mass:
        last += 1
        before += kept.weights[found[last]]
    mark, key = found[last], keys[found[last]]
    for j in range(n):
        i = candidates[j]
        if keys[i] < key or (keys[i] == key and (with_equals or i <= mark)):
            _keep(kept, i, to)
            to += 1
    kept.n, kept.has_all = to, False


cdef inline Py_ssize_t _range(float key, float low, double scale) noexcept nogil:
    """In which range a key is: the least in the first, the greatest in another, and none before a lesser one."""
    return <Py_ssize_t>((<double>key - low) * scale)


cdef Py_ssize_t _drawn(const float *weights, Py_ssize_t n, double uniform, double *blocks) noexcept nogil:
    """Where the sum of weights first exceeds `uniform` of the whole; block by block, then within one."""
    cdef Py_ssize_t count = (n + SUM_BLOCK - 1) // SUM_BLOCK, block, i, last = 0
    cdef double sum = 0, before, target
    for block in range(count):
        before = sum
        sum += _sum(weights + block * SUM_BLOCK, min(<Py_ssize_t>SUM_BLOCK, n - block * SUM_BLOCK))
        blocks[block] = sum
        last = block if sum > before else last
    target = uniform * sum
    block = 0
    while block < last and blocks[block] <= target:  # rounding can bring the target up to the last sum
        block += 1
    target -= blocks[block - 1] if block else 0
    sum, last = 0, block * SUM_BLOCK
    for i in range(block * SUM_BLOCK, min((block + 1) * SUM_BLOCK, n)):
        if weights[i] > 0:
            sum, last = sum + weights[i], i
            if sum > target:
                break
    return last


cdef Py_ssize_t _draw(const Draw *draw, Py_ssize_t n, char *scratch) noexcept nogil:
    cdef Kept kept
    cdef Py_ssize_t room = _room(n), i, to
    cdef const float *scores = draw.scores
    cdef double total, logarithm, entropy, share
    cdef float least
    cdef int32_t *found
    kept.depths = <float *>scratch
    kept.weights, kept.keys = kept.depths + room, kept.depths + 2 * room
    kept.ids, found = <int32_t *>(kept.depths + 3 * room), <int32_t *>(kept.depths + 4 * room)
    kept.has_all, kept.n = draw.top_k >= n, n
    if not kept.has_all:
        kept.n = _at_least_kth(scores, n, draw.top_k, kept.ids, kept.depths)
    elif draw.min_p > 0 and draw.top_p == 1:  # what is far below need not be weighed to be left out
        least = <float>(_largest(scores, n) + draw.temperature * (log(draw.min_p) - 0.001) * 1.001)
        kept.n, kept.has_all = 0, False
        for i in range(n):
            kept.ids[kept.n] = <int32_t>i
            kept.n += scores[i] >= least
    if not kept.has_all:
        for i in range(kept.n):
            kept.keys[i] = scores[kept.ids[i]]
        scores = kept.keys
    _weigh(scores, kept.n, _largest(draw.scores, n), draw.temperature, kept.depths, kept.weights)
    if draw.top_p < 1:
        kept.keys = kept.depths
        total = _sum(kept.weights, kept.n)
        # Of those with less than 1 / n of what is left out there are at most n.
        _keep_lightest(&kept, draw.top_p * total, <float>((1 - draw.top_p) * total / (2 * kept.n)), False, found)
        kept.keys = <float *>scratch + 2 * room
    if draw.min_p > 0:
        to = 0
        for i in range(kept.n):
            if kept.weights[i] >= draw.min_p:
                _keep(&kept, i, to)
                to += 1
        kept.n, kept.has_all = to, False
    if draw.typical_p < 1:
        total = _sum(kept.weights, kept.n)
        logarithm, entropy = log(total), 0
        for i in range(kept.n):
            if kept.weights[i] > 0:
                share = kept.weights[i] / total
                entropy += share * (kept.depths[i] + logarithm)
        for i in range(kept.n):
            kept.keys[i] = <float>fabs(kept.depths[i] + logarithm - entropy)
        _keep_lightest(&kept, draw.typical_p * total, 0, True, found)
    i = _drawn(kept.weights, kept.n, draw.uniform, <double *>(kept.depths + 6 * room))
    return i if kept.has_all else kept.ids[i]


cdef Py_ssize_t _room(Py_ssize_t n) noexcept nogil:
    return (n + 15) & ~15


cdef void _do(void *data, Py_ssize_t unit, int member) noexcept nogil:
    cdef Job *job = <Job *>data
    job.draws[unit].token = _draw(&job.draws[unit], job.n, job.scratch + member * job.scratch_bytes)


cdef class Draws:
    """Draws that are made side by side. Not to be shared between threads.

    Parameters
    ----------
    vocab_size : int

    Attributes
    ----------
    count : int
        How many were added.
    """

    cdef readonly Py_ssize_t vocab_size, count
    cdef Py_ssize_t _bytes, _most, _scratch_bytes
    cdef Block _draws, _scratch
    cdef list _kept

    def __init__(self, Py_ssize_t vocab_size):
        self.vocab_size = vocab_size
        # Of a thread: depths, weights, keys, and three lists of tokens; and the sums of blocks.
        self._bytes = checked_product(6 * sizeof(float), _room(vocab_size), "draws")
        self._bytes += ((vocab_size // SUM_BLOCK + 1) * sizeof(double) + 63) & ~63
        self._kept = []

    def add(self, logits, double uniform, float temperature=1, Py_ssize_t top_k=0, double top_p=1, float min_p=0,
            double typical_p=1):
        """Have a token drawn by `make`.

        Parameters
        ----------
        logits : ndarray of float32, shape (vocab_size,)
            Finite. What is the least number there is may not come. Not changed, and not to be changed before `make`.
        uniform : float
            The random number, from 0 to 1.
        temperature, top_k, top_p, min_p, typical_p : float, optional
            As of `GenerationConfig`; no `top_k` is 0.

        Returns
        -------
        int
            Its number, for `token`.

        Raises
        ------
        ShapeError
            If there are more or fewer logits.
        MemoryError
            If there is none to draw in.
        """
        cdef const float[::1] view = checked(logits, "logits", np.float32)
        cdef Draw *draw
        cdef Block grown
        if view.shape[0] != self.vocab_size:
            raise ShapeError.mismatch("logits", (self.vocab_size,), logits.shape)
        if self.count == self._most:
            grown = allocate((2 * self._most + 4) * sizeof(Draw), "draws")
            if self.count:
                memcpy(grown.data, self._draws.data, self.count * sizeof(Draw))
            self._draws, self._most = grown, 2 * self._most + 4
        if self._scratch is None:
            self._scratch = allocate(self._bytes, "draws")
            self._scratch_bytes = self._bytes
        draw = <Draw *>self._draws.data + self.count
        draw.scores, draw.uniform, draw.temperature, draw.top_k = &view[0], uniform, temperature, top_k or self.vocab_size
        draw.top_p, draw.min_p, draw.typical_p, draw.token = top_p, min_p, typical_p, -1
        self._kept.append(logits)
        self.count += 1
        return self.count - 1

    def make(self, num_threads=None):
        """Draw what was added.

        Parameters
        ----------
        num_threads : int, optional
        """
        cdef int threads = thread_count(num_threads)
        cdef Job job
        if self.count == 0:
            return
        if self.count * self.vocab_size < 2 * WORTH_A_THREAD:
            threads = 1
        threads = <int>min(<Py_ssize_t>threads, self.count)
        if self._scratch_bytes < threads * self._bytes:
            try:
                self._scratch = allocate(threads * self._bytes, "draws")
                self._scratch_bytes = threads * self._bytes
            except MemoryError:
                threads = <int>(self._scratch_bytes // self._bytes)  # `add` has seen to one
        job.draws, job.n = <Draw *>self._draws.data, self.vocab_size
        job.scratch, job.scratch_bytes = <char *>self._scratch.data, self._bytes
        with nogil:
            run(_do, &job, self.count, threads)

    def token(self, Py_ssize_t number):
        """Say what was drawn.

        Parameters
        ----------
        number : int
            That `add` gave.

        Returns
        -------
        int

        Raises
        ------
        ShapeError
            If there is no such draw.
        """
        if not 0 <= number < self.count:
            raise ShapeError.too_large("a draw", number, self.count - 1, "of those added")
        return (<Draw *>self._draws.data)[number].token

    def clear(self):
        """Forget all."""
        self.count = 0
        self._kept.clear()
