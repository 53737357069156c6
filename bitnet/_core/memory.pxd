from libc.stdint cimport uint8_t


cdef class Block:
    cdef uint8_t *data           # 64-byte aligned; in 2 MiB huge pages from 1 MiB on
    cdef readonly Py_ssize_t nbytes
    cdef size_t _mapped          # length of the mapping, 0 if the block came from the C library
    cdef void *_base             # what to give back


# `what` names the purpose in an error. The bytes are not initialised.
cdef Block allocate(Py_ssize_t nbytes, str what)

# a * b, or bitnet.MemoryError where that is no size.
cdef Py_ssize_t checked_product(Py_ssize_t a, Py_ssize_t b, str what) except -1
