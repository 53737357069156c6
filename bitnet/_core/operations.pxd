from libc.stdint cimport int32_t, uint8_t, uintptr_t

from bitnet._core.head_job cimport HeadJob
from bitnet._core.matmul cimport Job
from bitnet._core.ops cimport bitnet_ops

# In the order of `bitnet._core.builder.KINDS`.
cdef enum Kind:
    EMBED
    NORM
    LINEAR
    ROPE
    ATTEND
    GATE
    ADD
    HEAD
    DENSE

cdef struct Operation:
    Kind kind
    # Offsets into the scratch memory, in bytes a token; and widths, in floats.
    Py_ssize_t source, result, source_width, result_width
    Job job                        # LINEAR
    Py_ssize_t column              # LINEAR, DENSE: where in the result's row
    const float *gain              # NORM; ROPE: of the norm of each query head, or NULL
    const float *key_gain          # ROPE: the same of keys
    const float *cosine            # ROPE: (context, head_dim / 2)
    const float *sine
    float eps
    int function                   # GATE
    int dtype                      # EMBED, HEAD, DENSE: of the table
    const uint8_t *table           # EMBED, HEAD, DENSE: (rows, width); or NULL: in a file
    int file                       # EMBED: its descriptor, the table's first byte there, and bytes of a number
    Py_ssize_t offset, item_bytes
    Py_ssize_t rows, row_bytes
    HeadJob head                   # HEAD, of int8 rows
    Py_ssize_t layer               # ROPE, ATTEND
    Py_ssize_t window              # ATTEND: of how many positions a token sees, its own included; or 0 for all
    float factor                   # ATTEND: of the scores; EMBED: of the numbers


cdef struct Shape:
    Py_ssize_t heads, kv_heads, head_dim, layers, context
    int kv_dtype
    Py_ssize_t block_bytes         # of the keys, or of the values, of one head in a page
    Py_ssize_t page_bytes          # of one page: keys and values of all layers


cdef struct Run:
    const Shape *shape
    const bitnet_ops *ops
    Operation *now                 # of the run's own: a product keeps its present inputs there
    Py_ssize_t *starts             # of the units of a product
    uint8_t *lut_scratch          # for products of many tokens
    int lut_threads
    float *parts                   # of attention: `parts_bytes(shape, parts_threads)`
    int parts_threads
    Py_ssize_t n_parts, parts_per_unit  # of each sequence, where they are computed apart
    uint8_t *scratch
    Py_ssize_t tokens
    const int32_t *ids
    const int32_t *positions
    const int32_t *sequences
    const uintptr_t *const *pages  # of each sequence
    const int32_t *tiles           # where each tile of tokens that attend together begins, and the end of the last
    Py_ssize_t n_tiles
    const int32_t *strips          # the same for tokens whose keys are stored together
    Py_ssize_t n_strips
    const int32_t *outputs         # tokens whose logits are wanted
    Py_ssize_t n_outputs
    float *logits                  # (n_outputs, vocabulary)
    const int32_t *leaders         # of an int8 head: how many of the largest are wanted of each; NULL: all
    Py_ssize_t rows_per_unit
    Py_ssize_t capacity
    int failed

# Do an operation: the one that `now` is, for all tokens of the run. Returns 0, or 1 if it failed.
cdef int operate(Run *r, uint8_t *job_scratch, int threads) noexcept nogil

# Where a token's row of what an operation makes begins.
cdef inline float *result_of(const Run *r, Py_ssize_t t) noexcept nogil:
    return <float *>(r.scratch + r.now.result * r.capacity) + t * r.now.result_width

cdef Py_ssize_t attend_together(const Shape *shape, Py_ssize_t tokens, int threads) noexcept nogil

# What attention needs on so many threads, in bytes.
cdef Py_ssize_t parts_bytes(const Shape *shape, int threads) noexcept nogil
