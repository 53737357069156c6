# How a product of many tokens is divided: what gemm.pyx and lut.pyx share.

# Into how many units of tokens, and, in `row_units`, of rows: so that all threads have equal work, no unit has more than
# `most_rows` and `most_tokens`, and the least is done twice. Each unit of tokens repeats `row_cost` for each of the `rows`,
# each unit of rows `token_cost` for each of the `tokens`; rows and tokens are counted in blocks.
cdef inline Py_ssize_t cut_product(Py_ssize_t rows, Py_ssize_t most_rows, Py_ssize_t row_cost, Py_ssize_t tokens,
                                   Py_ssize_t most_tokens, Py_ssize_t token_cost, int threads,
                                   Py_ssize_t *row_units) noexcept nogil:
    cdef Py_ssize_t least = (tokens + most_tokens - 1) // most_tokens, across, down, cost, best = 0, found = 0
    for across in range(least, least * threads + 1):
        down = (rows + most_rows - 1) // most_rows
        while down * across % threads:
            down += 1
        cost = across * rows * row_cost + down * tokens * token_cost
        if found == 0 or cost < best:
            best, row_units[0], found = cost, down, across
    return found
