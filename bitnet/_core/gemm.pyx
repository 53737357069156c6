"""Products of many tokens: weights are expanded once for all of them, and two kinds of instructions share the work.

``kernels/gemm_kernel.h`` says how. A unit is a range of blocks of 64 rows and up to 256 tokens. It goes through the
columns in chunks of 400: expands the chunk of its blocks into the second-level cache, and lets the tokens pass by, four
at a time, whose tables stay in the first level. Integer sums grow in the output's own memory from chunk to chunk, and
become floats at the end. They are exact, so the bits are those of any other kernel.
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memset

from bitnet._core.cpu cimport allowed_features
from bitnet._core.packings.contract cimport BITNET_TILE_BYTES
from bitnet._core.threads cimport run

cdef extern from "kernels/gemm.h":
    const bitnet_gemm_kernel GEMM_KERNELS[]

cdef enum:
    # Of a unit: 40 expanded chunks of blocks take 600 KiB of a core's second-level cache, and more of them share the
    # work of preparing the inputs.
    UNIT_BLOCKS = 40
    UNIT_TOKENS = 256
    # Memory of a member: the expanded weights, a block's groups, prepared inputs, and rows that nobody reads.
    GROUPS_AT = UNIT_BLOCKS * GEMM_CHUNK_WEIGHT_BYTES
    INPUTS_AT = GROUPS_AT + GEMM_PANELS * GEMM_CHUNK_GROUP_BYTES
    SPARE_AT = INPUTS_AT + ((GEMM_CHUNK_INPUT_BYTES + 63) & ~63)
    MEMBER_BYTES = SPARE_AT + 4 * GEMM_ROWS
    CHUNK_COLS = GEMM_STEPS * GEMM_COLS


cdef const bitnet_gemm_kernel *gemm_kernel() except? NULL:
    cdef uint32_t allowed = allowed_features()
    cdef const bitnet_gemm_kernel *kernel = GEMM_KERNELS
    while kernel.isa != NULL:
        if kernel.needs & allowed == kernel.needs:
            return kernel
        kernel += 1
    return NULL


def kernel_name():
    """Name the instruction set of the kernel for many tokens.

    Returns
    -------
    str or None
        None where there is none, and the packings' own kernels do all products.
    """
    cdef const bitnet_gemm_kernel *kernel = gemm_kernel()
    return kernel.isa.decode() if kernel != NULL else None


cdef Py_ssize_t gemm_scratch_bytes(int threads) noexcept nogil:
    return threads * <Py_ssize_t>MEMBER_BYTES


cdef void _expand(const GemmJob *job, Py_ssize_t block, Py_ssize_t chunk, Py_ssize_t steps, uint8_t *groups,
                  uint8_t *weights) noexcept nogil:
    """One chunk of one block."""
    cdef Py_ssize_t first = chunk * (CHUNK_COLS // job.tile_cols), tiles, there, wanted = steps * GEMM_GROUPS, p
    cdef uint8_t *to
    tiles = min(CHUNK_COLS // job.tile_cols, job.tiles - first)
    there = tiles * (job.tile_cols // 4)
    for p in range(GEMM_PANELS):
        to = groups + p * GEMM_CHUNK_GROUP_BYTES
        job.groups(job.w + (block * GEMM_PANELS + p) * job.panel_bytes + first * BITNET_TILE_BYTES, tiles, to)
        if there < wanted:  # columns that the weight does not have: inputs are zero there, and any code will do
            memset(to + there * GEMM_GROUP_BYTES, 1, (wanted - there) * GEMM_GROUP_BYTES)
    job.kernel.expand(groups, steps, weights)


cdef void _multiply(void *data, Py_ssize_t unit, int member) noexcept nogil:
    cdef GemmJob *job = <GemmJob *>data
    cdef uint8_t *scratch = job.scratch + member * <Py_ssize_t>MEMBER_BYTES
    cdef uint8_t *inputs = scratch + INPUTS_AT
    cdef int32_t sums[UNIT_TOKENS]
    cdef int32_t *y[GEMM_TOKENS]
    cdef Py_ssize_t first_block = unit % job.row_units * job.unit_blocks
    cdef Py_ssize_t blocks = min(job.unit_blocks, job.blocks - first_block), rows = blocks * GEMM_ROWS
    cdef Py_ssize_t first_token = unit // job.row_units * UNIT_TOKENS
    cdef Py_ssize_t tokens = min(<Py_ssize_t>UNIT_TOKENS, job.tokens - first_token)
    cdef Py_ssize_t cols = job.tiles * job.tile_cols, total = (cols + GEMM_COLS - 1) // GEMM_COLS
    cdef Py_ssize_t chunk = 0, steps, block, t, i
    cdef int32_t *out = <int32_t *>job.y + first_token * job.y_stride + first_block * GEMM_ROWS
    if blocks <= 0:
        return
    memset(sums, 0, sizeof(sums))
    for t in range(tokens):
        memset(out + t * job.y_stride, 0, 4 * rows)
    while chunk * GEMM_STEPS < total:
        steps = min(<Py_ssize_t>GEMM_STEPS, total - chunk * GEMM_STEPS)
        for block in range(blocks):
            _expand(job, first_block + block, chunk, steps, scratch + GROUPS_AT,
                    scratch + block * GEMM_CHUNK_WEIGHT_BYTES)
        t = 0
        while t < tokens:
            job.kernel.prepare(job.q + (first_token + t) * job.q_stride + chunk * CHUNK_COLS, job.q_stride, steps,
                               inputs, sums + t)
            for block in range(blocks):
                for i in range(GEMM_TOKENS):
                    y[i] = out + (t + i) * job.y_stride + block * GEMM_ROWS
                    if t + i >= tokens:
                        y[i] = <int32_t *>(scratch + SPARE_AT)
                job.kernel.multiply(scratch + block * GEMM_CHUNK_WEIGHT_BYTES, inputs, steps, y)
            t += GEMM_TOKENS
        chunk += 1
    for t in range(tokens):
        if job.scales == NULL:
            job.kernel.finish(out + t * job.y_stride, rows, sums[t], NULL, 0, 0)
        else:
            job.kernel.finish(out + t * job.y_stride, rows, sums[t],
                              job.scales + first_block * GEMM_ROWS * job.scale_step, job.scale_step,
                              job.factors[first_token + t])


cdef void multiply_many(GemmJob *job, int threads) noexcept nogil:
    cdef Py_ssize_t most = threads * <Py_ssize_t>UNIT_BLOCKS
    # As many units as threads, or a multiple of that, all alike.
    job.row_units = threads * ((job.blocks + most - 1) // most)
    job.unit_blocks = (job.blocks + job.row_units - 1) // job.row_units
    run(_multiply, job, job.row_units * ((job.tokens + UNIT_TOKENS - 1) // UNIT_TOKENS), threads)
