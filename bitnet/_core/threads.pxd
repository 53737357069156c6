ctypedef void (*team_task)(void *data, Py_ssize_t unit, int member) noexcept nogil

# task(data, unit, member) once for each unit, on at most `threads` threads. A second caller waits.
cdef void run(team_task task, void *data, Py_ssize_t units, int threads) noexcept nogil

# For a task to set a flag that its caller looks at after `run`.
cdef void raise_flag(int *flag) noexcept nogil

# `requested` is None or what the caller asked for; ConfigurationError if that is no number of threads.
cdef int thread_count(object requested) except -1
