from libc.stdint cimport int32_t, uintptr_t

from bitnet._core.blocks cimport Block
from bitnet._core.operations cimport Run

cdef class PageTable:
    cdef readonly Py_ssize_t count
    cdef object _addresses         # ndarray of uint64: room for `count` and more
    cdef uintptr_t *_data

cdef class Batch:
    cdef readonly Py_ssize_t max_tokens, vocab_size
    cdef readonly Py_ssize_t tokens, outputs, sequences
    cdef Block _memory, _logits
    cdef int32_t *ids
    cdef int32_t *positions
    cdef int32_t *of               # which of `pages`
    cdef int32_t *wanted
    cdef int32_t *leaders          # of each output
    cdef uintptr_t *pages
    cdef Py_ssize_t *rooms
    cdef float *data               # (outputs, vocab_size)
    cdef Py_ssize_t _room          # rows of logits there is memory for
    cdef object _view
    cdef list _kept                # the tables, while their addresses are here
    cdef bint _wants_all           # logits, of an output
    cdef void _want(self, int32_t token, int32_t leaders) noexcept
    cdef int _check(self, Py_ssize_t output) except -1
    cdef int _begin(self, PageTable pages, Py_ssize_t n) except -1
    # Describe itself to a run, if nothing in it is out of range; logits have memory afterwards.
    cdef int fill(self, Run *r, Py_ssize_t context) except -1

# Whether a token, a sequence, a position or an output of a run is none; `rooms` are the positions of each sequence.
cdef bint is_out_of_range(const Run *r, Py_ssize_t vocab_size, const Py_ssize_t *rooms, Py_ssize_t n) noexcept nogil

# Cut the tokens of a run into parts of at most so many neighbours in one block of one sequence; returns how many.
cdef Py_ssize_t cut(const Run *r, Py_ssize_t most, int32_t *starts) noexcept nogil

# Say by an error what of a run's arrays is out of range, or which numbers are not below `count`.
cdef int refuse(ids, positions, sequences, rooms, outputs, Py_ssize_t vocab_size) except -1
cdef int within(str what, numbers, Py_ssize_t count, str unit) except -1
