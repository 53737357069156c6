"""What is done to all logits of a token before one is chosen: penalties for tokens that occurred, and masks.

A `History` keeps which tokens occurred and how often, so that a penalty takes as long as there are different ones.
"""

import numpy as np

from libc.float cimport FLT_MAX
from libc.stdint cimport int32_t, uint32_t
from libc.string cimport memset

from bitnet._core.blocks cimport Block
from bitnet._core.memory cimport allocate, checked_product

from bitnet._core.arrays import checked
from bitnet.errors import InferenceError, ShapeError


cdef class History:
    """The tokens of a text so far. Not to be shared between threads.

    Parameters
    ----------
    vocab_size : int
    """

    cdef readonly Py_ssize_t vocab_size
    cdef Block _memory
    cdef int32_t *_counts          # of each token: 0 where it did not occur, else 1 and how often it was an answer's
    cdef int32_t *_distinct        # those that occurred
    cdef Py_ssize_t _n

    def __init__(self, Py_ssize_t vocab_size):
        self.vocab_size = vocab_size
        self._memory = allocate(checked_product(vocab_size, 2 * sizeof(int32_t), "a history"), "a history")
        self._counts = <int32_t *>self._memory.data
        self._distinct = self._counts + vocab_size
        memset(self._counts, 0, vocab_size * sizeof(int32_t))

    def add(self, ids, bint is_answer):
        """Take tokens, in any order.

        Parameters
        ----------
        ids : ndarray of int32, shape (tokens,)
        is_answer : bool
            Whether they count for frequency and presence.

        Raises
        ------
        InferenceError
            If one is not in the vocabulary.
        """
        cdef const int32_t[::1] view = checked(ids, "ids", np.int32)
        cdef Py_ssize_t i
        cdef int32_t id
        for i in range(view.shape[0]):
            id = view[i]
            if not 0 <= id < self.vocab_size:
                raise InferenceError.token(id, i, self.vocab_size)
            if self._counts[id] == 0:
                self._counts[id] = 1
                self._distinct[self._n] = id
                self._n += 1
            self._counts[id] += is_answer

    def penalize(self, logits, float repetition, float frequency, float presence):
        """Make tokens that occurred less likely, in place.

        Parameters
        ----------
        logits : ndarray of float32, shape (vocab_size,)
        repetition : float
            Divides positive logits and multiplies negative ones, of all tokens that occurred.
        frequency : float
            Is subtracted for each time a token was an answer's.
        presence : float
            Is subtracted once if it was.
        """
        cdef float[::1] view = checked(logits, "logits", np.float32)
        cdef Py_ssize_t i
        cdef int32_t id, count
        cdef float x
        if view.shape[0] != self.vocab_size:
            raise ShapeError.mismatch("logits", (self.vocab_size,), logits.shape)
        for i in range(self._n):
            id = self._distinct[i]
            count, x = self._counts[id] - 1, view[id]
            if repetition != 1:
                x = x * repetition if x < 0 else x / repetition
            if count:
                x -= count * frequency + presence
            # An extreme penalty: infinities become the largest numbers.
            view[id] = min(max(x, -FLT_MAX), FLT_MAX)


def keep_only(logits, bits):
    """Make all tokens but some the least likely there can be, in place.

    Parameters
    ----------
    logits : ndarray of float32, shape (vocab_size,)
    bits : ndarray of int32, shape (words,)
        A bit for each token, the lowest first; tokens beyond its end go.

    Returns
    -------
    int
        How many tokens stay.
    """
    cdef float[::1] view = checked(logits, "logits", np.float32)
    cdef const int32_t[::1] words = checked(bits, "bits", np.int32)
    cdef Py_ssize_t i, kept = 0, n = view.shape[0], known = min(n, 32 * words.shape[0])
    for i in range(n):
        if i < known and <uint32_t>words[i >> 5] >> (i & 31) & 1:
            kept += 1
        else:
            view[i] = -FLT_MAX
    return kept
