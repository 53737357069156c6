"""The tokens of a run, gathered without making arrays: what a scheduler fills again for every step.

A `PageTable` is where the keys and values of one sequence lie. A `Batch` takes the next tokens of any of them, and has
the logits when it was run.
"""

import operator

import numpy as np

from libc.stdint cimport int32_t, uint32_t, uintptr_t
from libc.string cimport memcpy

from bitnet._core.blocks cimport Block
from bitnet._core.memory cimport allocate, checked_product
from bitnet._core.operations cimport Run
from bitnet._core.ops cimport OPS_BLOCK
from bitnet._core.screening cimport MAX_LEADERS, SCREEN_FROM

from bitnet._core.arrays import checked
from bitnet.errors import InferenceError, ShapeError

cdef enum:
    LANES = 16                     # of a look at the logits: so many maxima side by side


cdef class PageTable:
    """The addresses of the pages of one sequence, in the order of its positions.

    Attributes
    ----------
    count : int
        Pages.
    addresses : ndarray of uint64, shape (count,)
        A view; it stays as it is when pages are added.
    """

    def __cinit__(self):
        self._addresses = np.empty(0, np.uint64)

    @property
    def addresses(self):
        return self._addresses[: self.count]

    def append(self, Block page not None):
        """Add a page at the end.

        Parameters
        ----------
        page : Block
        """
        cdef uintptr_t[::1] view
        if self.count == len(self._addresses):
            grown = np.empty(2 * self.count + 8, np.uint64)
            grown[: self.count] = self._addresses
            self._addresses = grown
            view = grown
            self._data = &view[0]
        self._data[self.count] = <uintptr_t>page.data
        self.count += 1

    def truncate(self, Py_ssize_t count):
        """Forget the pages behind the first ones.

        Parameters
        ----------
        count : int
            How many stay.
        """
        if 0 <= count < self.count:
            # A run may still read the old table.
            self._addresses = self._addresses[:count].copy()
            self.count = count
            self._data = <uintptr_t *><uintptr_t>self._addresses.ctypes.data


cdef class Batch:
    """Tokens of any mix of sequences, for `Execution.step`. Not to be shared between threads.

    Parameters
    ----------
    max_tokens, vocab_size : int

    Attributes
    ----------
    tokens, outputs, sequences : int
        That are in it.
    logits : ndarray of float32, shape (outputs, vocab_size)
        After a step; memory of this batch, which the next step overwrites. It may be changed.
    """

    def __init__(self, max_tokens, vocab_size):
        self.max_tokens, self.vocab_size = operator.index(max_tokens), operator.index(vocab_size)
        cdef Py_ssize_t some = checked_product(self.max_tokens, sizeof(int32_t), "a batch")
        self._memory = allocate(5 * some + 2 * self.max_tokens * sizeof(Py_ssize_t), "a batch")
        self.pages = <uintptr_t *>self._memory.data
        self.rooms = <Py_ssize_t *>(self.pages + self.max_tokens)
        self.ids = <int32_t *>(self.rooms + self.max_tokens)
        self.positions, self.of = self.ids + self.max_tokens, self.ids + 2 * self.max_tokens
        self.wanted, self.leaders = self.ids + 3 * self.max_tokens, self.ids + 4 * self.max_tokens
        self._kept = []

    def clear(self):
        """Take all tokens out."""
        self.tokens = self.outputs = self.sequences = 0
        self._wants_all = False
        self._kept.clear()

    def add(self, PageTable pages not None, Py_ssize_t position, ids, Py_ssize_t outputs, int32_t leaders=0):
        """Add tokens that follow each other in one sequence.

        Parameters
        ----------
        pages : PageTable
            With pages for these positions.
        position : int
            Of the first of them.
        ids : ndarray of int32, shape (tokens,)
        outputs : int
            Of how many, the last ones, the logits are wanted.
        leaders : int, optional
            How many of an output's logits: the largest, and what equals them. The others may then be any that are below
            these. Without it, or where it is above 64, all are wanted.

        Raises
        ------
        InferenceError
            If there is no room for them.
        ShapeError
            If more outputs than tokens are wanted.
        """
        cdef const int32_t[::1] view = checked(ids, "ids", np.int32)
        cdef Py_ssize_t n = view.shape[0], i
        if not 0 <= outputs <= n:
            raise ShapeError.too_large("the number of outputs", outputs, n, "of the tokens given")
        if n == 0:
            return
        self._begin(pages, n)
        memcpy(self.ids + self.tokens, &view[0], n * sizeof(int32_t))
        for i in range(n):
            self.positions[self.tokens + i] = <int32_t>(position + i)
            self.of[self.tokens + i] = <int32_t>(self.sequences - 1)
        for i in range(n - outputs, n):
            self._want(<int32_t>(self.tokens + i), leaders)
        self.tokens += n

    def add_token(self, PageTable pages not None, Py_ssize_t position, int32_t id, int32_t leaders=0):
        """Add one token of a sequence, whose logits are wanted.

        Parameters
        ----------
        pages : PageTable
            With a page for this position.
        position, id : int
        leaders : int, optional
            As of `add`.

        Raises
        ------
        InferenceError
            If there is no room for it.
        """
        self._begin(pages, 1)
        self.ids[self.tokens], self.positions[self.tokens] = id, <int32_t>position
        self.of[self.tokens] = <int32_t>(self.sequences - 1)
        self._want(<int32_t>self.tokens, leaders)
        self.tokens += 1

    cdef void _want(self, int32_t token, int32_t leaders) noexcept:
        if not 0 < leaders <= MAX_LEADERS:
            leaders, self._wants_all = 0, True
        self.wanted[self.outputs], self.leaders[self.outputs] = token, leaders
        self.outputs += 1

    cdef int _begin(self, PageTable pages, Py_ssize_t n) except -1:
        if n > self.max_tokens - self.tokens:
            raise InferenceError.too_many_tokens(self.tokens + n, self.max_tokens)
        self._kept.append(pages)
        self.pages[self.sequences] = <uintptr_t>pages._data
        self.rooms[self.sequences] = pages.count * OPS_BLOCK
        self.sequences += 1
        return 0

    cdef int fill(self, Run *r, Py_ssize_t context) except -1:
        cdef Py_ssize_t i
        if self._room < self.outputs:
            self._logits, self._view = None, None
            self._room = 0
            self._logits = allocate(checked_product(self.outputs * sizeof(float), self.vocab_size, "logits"), "logits")
            self._room = self.outputs
            self._view = np.frombuffer(self._logits, np.float32).reshape(self._room, self.vocab_size)
            self.data = <float *>self._logits.data
        r.tokens, r.ids, r.positions, r.sequences = self.tokens, self.ids, self.positions, self.of
        r.outputs, r.n_outputs = self.wanted, self.outputs
        r.pages = <const uintptr_t *const *>self.pages
        r.logits, r.leaders = self.data if self.outputs else NULL, NULL
        if not self._wants_all and self.outputs >= SCREEN_FROM:
            r.leaders = self.leaders
        for i in range(self.sequences):
            self.rooms[i] = min(self.rooms[i], context)
        if is_out_of_range(r, self.vocab_size, self.rooms, self.sequences):
            ids, positions, of, wanted = [
                np.array(one) for one in (<int32_t[:self.tokens]>self.ids, <int32_t[:self.tokens]>self.positions,
                                          <int32_t[:self.tokens]>self.of, <int32_t[:self.max_tokens]>self.wanted)]
            refuse(ids, positions, of, np.array(<Py_ssize_t[:self.sequences]>self.rooms), wanted[: self.outputs],
                   self.vocab_size)
        return 0

    @property
    def logits(self):
        return np.empty((0, self.vocab_size), np.float32) if self._view is None else self._view[: self.outputs]

    def row(self, Py_ssize_t output):
        """Give the logits of an output, as `logits` has them.

        Parameters
        ----------
        output : int

        Returns
        -------
        ndarray of float32, shape (vocab_size,)
        """
        self._check(output)
        return self._view[output]

    cdef int _check(self, Py_ssize_t output) except -1:
        if not 0 <= output < self.outputs:
            raise ShapeError.too_large("an output", output, self.outputs - 1, "of the batch")
        return 0

    def best(self, Py_ssize_t output):
        """Find the largest logit of an output; of equal ones the first.

        Parameters
        ----------
        output : int

        Returns
        -------
        int
            Its token, or -1 where a logit is not finite.
        """
        self._check(output)
        return _best(self.data + output * self.vocab_size, self.vocab_size)


cdef Py_ssize_t _best(const float *x, Py_ssize_t n) noexcept nogil:
    """Where the largest number is, the first of equals; -1 if one is not finite."""
    cdef float largest[LANES]
    cdef uint32_t highest[LANES]
    cdef uint32_t bits[LANES]
    cdef float most
    cdef Py_ssize_t i = 0, j
    for j in range(LANES):
        largest[j], highest[j] = x[0], 0
    # Side by side, so that the compiler may use vectors: it may not reorder one chain of comparisons of floats.
    while i + LANES <= n:
        memcpy(bits, x + i, sizeof(bits))
        for j in range(LANES):
            largest[j] = x[i + j] if x[i + j] > largest[j] else largest[j]
        for j in range(LANES):
            bits[j] &= <uint32_t>0x7fffffff
            highest[j] = bits[j] if bits[j] > highest[j] else highest[j]
        i += LANES
    while i < n:
        memcpy(bits, x + i, sizeof(uint32_t))
        largest[0] = x[i] if x[i] > largest[0] else largest[0]
        highest[0] = max(highest[0], bits[0] & <uint32_t>0x7fffffff)
        i += 1
    most = largest[0]
    for j in range(LANES):
        if highest[j] >= <uint32_t>0x7f800000:  # the bit pattern of infinity; every NaN lies above
            return -1
        most = max(most, largest[j])
    for i in range(n):
        if x[i] == most:
            return i
    return -1


cdef bint is_out_of_range(const Run *r, Py_ssize_t vocab_size, const Py_ssize_t *rooms, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t t
    for t in range(r.tokens):
        if not (0 <= r.ids[t] < vocab_size and 0 <= r.sequences[t] < n):
            return True
        if not 0 <= r.positions[t] < rooms[r.sequences[t]]:
            return True
    for t in range(r.n_outputs):
        if not 0 <= r.outputs[t] < r.tokens:
            return True
    return False


cdef Py_ssize_t cut(const Run *r, Py_ssize_t most, int32_t *starts) noexcept nogil:
    cdef Py_ssize_t t, n = 0
    cdef bint is_next
    for t in range(r.tokens):
        is_next = (t > 0 and t - starts[n - 1] < most and r.sequences[t] == r.sequences[t - 1]
                   and r.positions[t] == r.positions[t - 1] + 1 and r.positions[t] % OPS_BLOCK)
        if not is_next:
            starts[n] = <int32_t>t
            n += 1
    starts[n] = <int32_t>r.tokens
    return n


cdef int within(str what, numbers, Py_ssize_t count, str unit) except -1:
    bad = np.flatnonzero((numbers < 0) | (numbers >= count))
    if bad.size:
        raise ShapeError.too_large(what, int(numbers[bad[0]]), count - 1, unit)
    return 0


cdef int refuse(ids, positions, sequences, rooms, outputs, Py_ssize_t vocab_size) except -1:
    within("an output's token", outputs, len(ids), "of the tokens given")
    bad = np.flatnonzero((ids < 0) | (ids >= vocab_size))
    if bad.size:
        raise InferenceError.token(int(ids[bad[0]]), int(positions[bad[0]]), vocab_size)
    within("a sequence's number", sequences, len(rooms), "of the pages given")
    bad = np.flatnonzero((positions < 0) | (positions >= rooms[sequences]))
    raise InferenceError.beyond_context(int(positions[bad[0]]), int(rooms[sequences[bad[0]]]))
