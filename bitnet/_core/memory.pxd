from bitnet._core.blocks cimport Block

# From the process's pool. `what` names the purpose in an error, `tag` in statistics. The bytes are not initialised.
cdef Block allocate(Py_ssize_t nbytes, str what, str tag=*)

# a * b, or bitnet.MemoryError where that is no size.
cdef Py_ssize_t checked_product(Py_ssize_t a, Py_ssize_t b, str what) except -1
