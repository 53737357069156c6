"""Products of many tokens: weights are expanded once for all of them, and two kinds of instructions share the work.

``kernels/gemm_kernel.h`` says how. A unit is a range of blocks of 64 rows and up to 256 tokens. It goes through the
columns in chunks of 320: expands the chunk of its blocks into the second-level cache, and lets the tokens pass by, four
at a time, whose tables stay in the first level, while what the next chunk will expand is fetched. Integer sums grow in
the output's own memory from chunk to chunk, and become floats after the last one. They are exact, so the bits are those
of any other kernel.
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset

from bitnet._core.cpu cimport allowed_features
from bitnet._core.packings.contract cimport BITNET_TILE_BYTES
from bitnet._core.threads cimport run
from bitnet._core.units cimport cut_product

cdef extern from "kernels/gemm.h":
    const bitnet_gemm_kernel GEMM_KERNELS[]

cdef enum:
    # Of a unit, at most: 40 expanded chunks of blocks take half a MiB of a core's second-level cache.
    UNIT_BLOCKS = 40
    UNIT_TOKENS = 256
    # What units repeat, in cycles of a Zen 4 a chunk: the expansion of a block, the preparation of four tokens.
    EXPAND_CYCLES = 900
    PREPARE_CYCLES = 830
    CHUNK_COLS = GEMM_STEPS * GEMM_COLS
    # Of a panel, in the packing whose tiles are the narrowest.
    CHUNK_TILE_BYTES = (CHUNK_COLS >> 4) * BITNET_TILE_BYTES  # no division: in a debug build that is a function
    # Memory of a member: the expanded weights, a block's last tiles, prepared inputs, and rows that nobody reads.
    TAIL_AT = UNIT_BLOCKS * GEMM_CHUNK_WEIGHT_BYTES
    INPUTS_AT = TAIL_AT + GEMM_PANELS * CHUNK_TILE_BYTES
    SPARE_AT = INPUTS_AT + ((GEMM_CHUNK_INPUT_BYTES + 63) & ~63)
    MEMBER_BYTES = SPARE_AT + 4 * GEMM_ROWS


cdef int32_t ZEROS[GEMM_ROWS]  # as all of a module's memory at first


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


cdef inline const uint8_t *_packed(const GemmJob *job, Py_ssize_t block, Py_ssize_t chunk) noexcept nogil:
    """Where a chunk of a block begins; its panels follow at a distance of `panel_bytes`."""
    return (job.w + block * GEMM_PANELS * job.panel_bytes
            + chunk * (CHUNK_COLS // job.tile_cols) * <Py_ssize_t>BITNET_TILE_BYTES)


cdef void _expand(const GemmJob *job, Py_ssize_t block, Py_ssize_t chunk, Py_ssize_t steps, uint8_t *tail,
                  uint8_t *weights) noexcept nogil:
    """One chunk of one block."""
    cdef const uint8_t *packed = _packed(job, block, chunk)
    cdef Py_ssize_t there = job.tiles - chunk * (CHUNK_COLS // job.tile_cols), stride = job.panel_bytes, p
    if there < CHUNK_COLS // job.tile_cols:
        # Steps may end within a tile, and take what the weight does not have. Inputs are zero there: any code will do.
        stride = CHUNK_TILE_BYTES
        memset(tail, 0, GEMM_PANELS * stride)
        for p in range(GEMM_PANELS):
            memcpy(tail + p * stride, packed + p * job.panel_bytes, there * <Py_ssize_t>BITNET_TILE_BYTES)
        packed = tail
    job.expand(packed, stride, steps, weights)


cdef void _multiply(void *data, Py_ssize_t unit, int member) noexcept nogil:
    cdef GemmJob *job = <GemmJob *>data
    cdef uint8_t *scratch = job.scratch + member * <Py_ssize_t>MEMBER_BYTES
    cdef uint8_t *inputs = scratch + INPUTS_AT
    cdef int32_t sums[UNIT_TOKENS]
    cdef int32_t *y[GEMM_TOKENS]
    cdef int32_t *before[GEMM_TOKENS]
    cdef Py_ssize_t first_block = unit % job.row_units * job.unit_blocks
    cdef Py_ssize_t blocks = min(job.unit_blocks, job.blocks - first_block), rows = blocks * GEMM_ROWS
    cdef Py_ssize_t first_token = unit // job.row_units * job.unit_tokens
    cdef Py_ssize_t tokens = min(job.unit_tokens, job.tokens - first_token)
    cdef Py_ssize_t cols = job.tiles * job.tile_cols, total = (cols + GEMM_COLS - 1) // GEMM_COLS
    cdef Py_ssize_t chunk = 0, steps, block, t, i, panel
    cdef int32_t *out = <int32_t *>job.y + first_token * job.y_stride + first_block * GEMM_ROWS
    cdef bint is_last = False, two_panels = tokens < GEMM_PANELS * GEMM_TOKENS
    if blocks <= 0 or tokens <= 0:
        return
    memset(sums, 0, sizeof(sums))
    while not is_last:
        steps = min(<Py_ssize_t>GEMM_STEPS, total - chunk * GEMM_STEPS)
        is_last = (chunk + 1) * GEMM_STEPS >= total
        for block in range(blocks):
            _expand(job, first_block + block, chunk, steps, scratch + TAIL_AT,
                    scratch + block * GEMM_CHUNK_WEIGHT_BYTES)
        t = 0
        while t < tokens:
            # Spread over the first four tokens and the next ones, as far as there are: memory has the more time.
            panel = t // GEMM_TOKENS * (2 if two_panels else 1) % GEMM_PANELS
            job.kernel.prepare(job.q + (first_token + t) * job.q_stride + chunk * CHUNK_COLS, job.q_stride, steps,
                               inputs, sums + t)
            for block in range(blocks):
                for i in range(GEMM_TOKENS):
                    y[i] = out + (t + i) * job.y_stride + block * GEMM_ROWS
                    if t + i >= tokens:
                        y[i] = <int32_t *>(scratch + SPARE_AT)
                    before[i] = y[i] if chunk else ZEROS
                job.kernel.multiply(scratch + block * GEMM_CHUNK_WEIGHT_BYTES, inputs, steps, before, y,
                                    _packed(job, first_block + block, chunk + 1) + panel * job.panel_bytes,
                                    job.panel_bytes if two_panels else 0)
            if is_last:
                for i in range(t, min(t + GEMM_TOKENS, tokens)):
                    _finish(job, out + i * job.y_stride, rows, sums[i], first_block, first_token + i)
            t += GEMM_TOKENS
        chunk += 1


cdef inline void _finish(const GemmJob *job, int32_t *y, Py_ssize_t rows, int32_t total, Py_ssize_t block,
                         Py_ssize_t token) noexcept nogil:
    if job.scales == NULL:
        job.kernel.finish(y, rows, total, NULL, 0, 0)
    else:
        job.kernel.finish(y, rows, total, job.scales + block * GEMM_ROWS * job.scale_step, job.scale_step,
                          job.factors[token])


cdef void multiply_many(GemmJob *job, int threads) noexcept nogil:
    cdef Py_ssize_t fours = (job.tokens + GEMM_TOKENS - 1) // GEMM_TOKENS
    cdef Py_ssize_t token_units = cut_product(job.blocks, UNIT_BLOCKS, EXPAND_CYCLES, fours, UNIT_TOKENS // GEMM_TOKENS,
                                              PREPARE_CYCLES, threads, &job.row_units)
    job.unit_blocks = (job.blocks + job.row_units - 1) // job.row_units
    job.unit_tokens = (fours + token_units - 1) // token_units * GEMM_TOKENS
    run(_multiply, job, job.row_units * token_units, threads)
