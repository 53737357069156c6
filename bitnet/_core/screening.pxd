from bitnet._core.head_job cimport HeadJob

cdef enum:
    # Of how many tokens at least, and at most, and with how many leaders each: fewer tokens wait for memory anyway.
    SCREEN_FROM = 4
    SCREEN_UP_TO = 64
    MAX_LEADERS = 64

# The largest |scale| * |row| of each panel.
cdef void measure_reach(const HeadJob *job, float *reach, int threads) noexcept nogil

# What `screen_rows` needs for so many tokens, in bytes.
cdef Py_ssize_t screening_bytes(const HeadJob *job, Py_ssize_t tokens) noexcept nogil

# Compute each token's largest numbers, `leaders` of them, of inputs that are split. False where that does not pay: then
# all are to be computed.
cdef bint screen_rows(HeadJob *job, void *scratch, int threads) noexcept nogil
