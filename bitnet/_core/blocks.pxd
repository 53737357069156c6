cimport cython
from libc.stdint cimport int64_t, uint8_t, uint64_t

cdef enum Status:                  # in the order of memory.h
    DONE
    BEYOND_LIMIT
    REFUSED

cdef enum:
    TAGS = 64


cdef struct Reading:               # of memory.h's bitnet_reading
    int64_t bytes, peak, failed, small_allocated, small_freed, large_allocated, large_freed, large_bytes
    int64_t reserved, huge
    int64_t live_by_log2[64]


cdef class Block:
    cdef uint8_t *data             # 64-byte aligned, or as asked for; NULL when it was freed
    cdef readonly Py_ssize_t nbytes
    cdef uint64_t _state[14]       # a State of blocks.pyx: only that one includes the header that says what a block is
    cdef object frames             # (code, line) of the Python frames that allocated it, or None
    cdef int _views                # of its buffer, that live
    cdef bint _is_freed


@cython.final
cdef class MemoryHandle(Block):
    cdef int check(self, str action) except -1


cdef class Pool:
    cdef void *pool
    cdef int try_to_take(self, Block block, Py_ssize_t nbytes, Py_ssize_t alignment, bint zero, int tag) noexcept
    cdef bint resize_in_place(self, Block block, Py_ssize_t nbytes, bint may_waste) noexcept
    cdef void exchange(self, Block one, Block other) noexcept
    cdef int tag_of(self, Block block) noexcept
    cdef Py_ssize_t alignment_of(self, Block block) noexcept
    cdef void note(self, Block block, frames, bint has_clock) noexcept
    cdef uint64_t last_number(self) noexcept
    cdef list noted(self, uint64_t first, uint64_t last)
    cdef bint owns(self, Block block) noexcept
    cdef Reading read(self) noexcept
    cdef int64_t used(self) noexcept
    cdef int64_t reserved(self) noexcept
    cdef int64_t get_limit(self) noexcept
    cdef void set_limit(self, int64_t limit) noexcept
    cdef void count_failure(self) noexcept
    cdef int64_t tag_bytes(self, int tag) noexcept
    cdef int64_t tag_blocks(self, int tag) noexcept
    cdef size_t give_back(self) noexcept nogil
    cdef int64_t restart(self) noexcept nogil
