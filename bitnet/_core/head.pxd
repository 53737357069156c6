from libc.stdint cimport int8_t

from bitnet._core.head_job cimport HeadJob
from bitnet._core.memory cimport Block

# A table of int8 rows, each with a scale.
cdef class Int8Rows:
    cdef readonly Py_ssize_t rows, cols
    cdef readonly object scales    # float32, (rows,)
    cdef Py_ssize_t panels, tiles
    cdef const int8_t *data
    cdef Block block               # whose data that is, or None
    cdef object mapping            # else who has it
    cdef readonly object reach     # float32, (panels,): of screening.pyx; None before that is used
    cdef const float *reach_data   # its numbers
    cdef int pause                 # products that are not screened
    # Make ready for products of which only the largest numbers are wanted.
    cdef int measure(self, int threads) except -1

# Begin a job with it (head_job.pxd).
cdef int load_rows(HeadJob *job, Int8Rows table) except -1

# What `multiply_rows` needs for so many tokens, in bytes.
cdef Py_ssize_t head_scratch_bytes(const HeadJob *job, Py_ssize_t tokens) noexcept nogil

# Do it; returns 0, or 1 where an input is not finite.
cdef int multiply_rows(HeadJob *job, void *scratch, int threads) noexcept nogil
