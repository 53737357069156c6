"""A model's forward pass as a flat list of operations, and the running of it.

A model file writes the pass once, with a `bitnet._core.builder.Builder`. Of that a `Program` is made: operations with
names and shapes, bound to weights, their scratch memory planned. An `Execution` owns that memory for runs of up to so many tokens.

A run takes tokens of any mix of sequences. It holds no GIL, allocates nothing, and looks at a cancel flag between
operations. Each number is computed by one member of the team in one fixed order: from the token's own row, and, in
attention, from blocks of 64 positions that begin at multiples of 64 of its own sequence. So a token's logits are the
same bits alone and in any batch, in any cutting of the prompt, on any number of threads.
"""

import operator

import numpy as np

from libc.stdint cimport int32_t, int64_t, uint8_t, uintptr_t
from libc.string cimport memset

from bitnet._core.batch cimport Batch, cut, is_out_of_range, refuse, within
from bitnet._core.clock cimport now_ns
from bitnet._core.head cimport Int8Rows, head_scratch_bytes, load_rows
from bitnet._core.head_job cimport HEAD_TILE_BYTES
from bitnet._core.matmul cimport MAX_PANEL_UNITS, load_weight, many_scratch_bytes, scratch_bytes
from bitnet._core.memory cimport Block, allocate, checked_product
from bitnet._core.operations cimport ATTEND, DENSE, EMBED, GATE, HEAD, LINEAR, NORM, ROPE, Kind, Operation, Run, Shape
from bitnet._core.operations cimport attend_together, operate, parts_bytes
from bitnet._core.ops cimport OPS_BFLOAT16, OPS_BLOCK, OPS_BLOCK_BYTES, OPS_FLOAT16, OPS_FLOAT32, OPS_INT8, vector_ops
from bitnet._core.threads cimport raise_flag, thread_count

from bitnet._core.arrays import checked, checked_matrix
from bitnet._core.builder import KINDS as _KINDS
from bitnet._core.builder import TableInFile
from bitnet._core.counting import positions_of
from bitnet._core.head import kernel_name as head_kernel_name
from bitnet._core.ops import GATES as _GATES
from bitnet._core.packing import kernel_name
from bitnet.errors import InferenceError, KernelError, ShapeError

cdef enum:
    STRIP_TOKENS = 16              # whose keys are stored together

PAGE_TOKENS = OPS_BLOCK
"""Positions of a sequence whose keys and values share a page."""

DTYPES = {"float32": OPS_FLOAT32, "float16": OPS_FLOAT16, "bfloat16": OPS_BFLOAT16, "int8": OPS_INT8}
"""How numbers can be stored, by name."""

_NUMPY = {"float32": np.float32, "float16": np.uint16, "bfloat16": np.uint16, "int8": np.int8}


# Never bound anew: without a GIL a list guards what is in it, but nothing guards a name.
cdef list _recorders = []


def add_recorder(function):
    """Have a function called after every run of any program, with the time of each of its operations.

    Parameters
    ----------
    function : callable
        Called with the program, when the run began (of the monotonic clock, in ns), an int64 array of nanoseconds (the
        checks before, each operation, the look at the logits), the numbers of tokens, of outputs, of positions attended
        to, of positions that were read, and of threads, and a dict: the two numbers of positions within each window.
    """
    _recorders.append(function)


def remove_recorder(function):
    """Have it called no more.

    Parameters
    ----------
    function : callable
    """
    if function in _recorders:
        _recorders.remove(function)


cdef class Program:
    """A forward pass, ready to run. Immutable; may be shared between threads.

    Parameters
    ----------
    builder : Builder
    kv_dtype : {"float16", "float32", "int8"}
        How keys and values are stored.

    Attributes
    ----------
    page_bytes : int
        Bytes of a page of the cache: keys and values of `PAGE_TOKENS` positions in all layers.
    vocab_size : int
    context : int
        The longest sequence, in tokens.
    windows : tuple of int
        The windows of attentions that do not see all positions.
    operations : list of dict
        As the builder wrote them, with their weights.
    """

    cdef Block _memory
    cdef Operation *_operations
    cdef Py_ssize_t _count
    cdef Shape _shape
    cdef readonly object names, kinds, widths, windows, operations
    cdef readonly Py_ssize_t vocab_size, scratch_token_bytes
    cdef readonly object _angles   # by the base of the frequencies: cosines, and sines

    def __init__(self, builder, kv_dtype="float16"):
        cdef Operation *op
        cdef const float[::1] floats
        config = builder.config
        self.scratch_token_bytes = builder.plan()
        self._count = len(builder.operations)
        self._memory = allocate(self._count * sizeof(Operation), "a program")
        self._operations = <Operation *>self._memory.data
        memset(self._operations, 0, self._count * sizeof(Operation))
        self.names = tuple([operation["name"] for operation in builder.operations])
        self.kinds = tuple([operation["kind"] for operation in builder.operations])
        self.widths = tuple([operation["result"].width if operation["result"] is not None else 0
                             for operation in builder.operations])
        self.windows = tuple(sorted({operation["window"] for operation in builder.operations if operation.get("window")}))
        self.operations = builder.operations
        self._shape.heads, self._shape.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._shape.head_dim, self._shape.layers = config.head_dim, config.num_hidden_layers
        self._shape.context = config.max_position_embeddings
        self._shape.kv_dtype = DTYPES[kv_dtype]
        self._shape.block_bytes = OPS_BLOCK_BYTES(self._shape.kv_dtype, self._shape.head_dim)
        self._shape.page_bytes = 2 * self._shape.layers * self._shape.kv_heads * self._shape.block_bytes
        self.vocab_size = config.vocab_size
        self._angles = {}
        for i, operation in enumerate(builder.operations):
            op = &self._operations[i]
            op.kind = <Kind><int>_KINDS.index(operation["kind"])
            if operation["inputs"]:
                op.source, op.source_width = operation["inputs"][0].offset, operation["inputs"][0].width
            if operation["result"] is not None:
                op.result, op.result_width = operation["result"].offset, operation["result"].width
            op.layer, op.factor = operation.get("layer", 0), operation.get("factor", 0)
            op.function = _GATES[operation["function"]] if op.kind == GATE else 0
            op.column, op.eps = operation.get("column", 0), operation.get("eps", 0)
            op.window = operation.get("window") or 0
            if op.kind in (NORM, ROPE) and operation.get("gain") is not None:
                floats = operation["gain"]
                op.gain = &floats[0]
            if op.kind == ROPE:
                if operation.get("key_gain") is not None:
                    floats = operation["key_gain"]
                    op.key_gain = &floats[0]
                cosine, sine = self._rotation(operation["theta"], config)
                floats = cosine.reshape(-1)
                op.cosine = &floats[0]
                floats = sine.reshape(-1)
                op.sine = &floats[0]
            if op.kind == LINEAR:
                load_weight(&op.job, operation["weight"], operation["takes_floats"])
            elif op.kind == EMBED and isinstance(operation["table"], TableInFile):
                stored = operation["table"]
                op.dtype, op.file, op.offset = DTYPES[stored.dtype], stored.file.fileno(), stored.offset
                op.item_bytes = _NUMPY[stored.dtype]().itemsize
                op.rows, op.row_bytes = stored.shape[0], stored.shape[1] * op.item_bytes
            elif op.kind == HEAD and isinstance(operation["table"], Int8Rows):
                op.dtype, op.rows = OPS_INT8, config.vocab_size
                load_rows(&op.head, operation["table"])
            elif op.kind in (EMBED, HEAD, DENSE):
                stored = checked_matrix(operation["table"], operation["name"], _NUMPY[operation["dtype"]])
                op.dtype = DTYPES[operation["dtype"]]
                op.table = <const uint8_t *><uintptr_t>stored.ctypes.data
                op.rows, op.row_bytes = stored.shape[0], stored.strides[0]

    def work(self, tokens, outputs, attended, read, within=None):
        """Count what the operations of a run do.

        Parameters
        ----------
        tokens, outputs : int
            Of the run.
        attended, read : int
            Positions, summed over the tokens, and over the tiles of tokens that read keys and values together.
        within : dict, optional
            The same two numbers for each window of an attention.

        Returns
        -------
        bytes, macs : ndarray of int64, shape (operations,)
            Bytes of weights, cache and activations that are read, each once a run; and multiply-accumulates.
        """
        cdef Operation *op
        cdef Shape *s = &self._shape
        nbytes, macs = np.zeros(self._count, np.int64), np.zeros(self._count, np.int64)
        for i in range(self._count):
            op = &self._operations[i]
            nbytes[i] = 4 * op.source_width * tokens
            if op.kind == LINEAR:
                nbytes[i] += op.job.panels * op.job.panel_bytes
                macs[i] = op.job.rows * op.job.cols * tokens
            elif op.kind == EMBED:
                nbytes[i] = op.row_bytes * tokens
            elif op.kind == DENSE:
                nbytes[i] += op.rows * op.row_bytes
                macs[i] = op.rows * op.source_width * tokens
            elif op.kind == ATTEND:
                mine, theirs = within[op.window] if op.window else (attended, read)
                nbytes[i] = theirs * 2 * s.kv_heads * s.block_bytes // PAGE_TOKENS
                macs[i] = 2 * mine * s.heads * s.head_dim
            elif op.kind == HEAD and outputs:
                nbytes[i] = op.rows * op.row_bytes
                if op.dtype == OPS_INT8:
                    nbytes[i] = op.head.panels * op.head.tiles * HEAD_TILE_BYTES
                macs[i] = op.rows * op.source_width * outputs
        return nbytes, macs

    cdef bint screens(self, int threads) except? False:
        """Whether its head can leave out what no one will look at; makes it ready."""
        cdef Operation *op = &self._operations[self._count - 1]
        cdef Int8Rows table
        if op.kind != HEAD or op.dtype != OPS_INT8:
            return False
        table = self.operations[self._count - 1]["table"]
        table.measure(threads)
        op.head.reach = table.reach_data
        return True

    def _rotation(self, theta, config):
        """Cosines and sines of the angles by which positions are rotated, (context, head_dim / 2)."""
        if theta not in self._angles:
            frequencies = theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
            angles = np.arange(config.max_position_embeddings)[:, None] * frequencies
            self._angles[theta] = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        return self._angles[theta]

    @property
    def page_bytes(self):
        return self._shape.page_bytes

    @property
    def context(self):
        return self._shape.context


cdef class Execution:
    """The scratch memory of a program, for one run at a time.

    Parameters
    ----------
    program : Program
    max_tokens : int
        The most tokens of a run.

    Attributes
    ----------
    observer : callable or None
        Called after each operation of a run, with its number, what it made (float32, a row a token) and what it read,
        or None where that has no rows of its own; a copy each. If it returns True the run ends there.
    """

    cdef readonly Program program
    cdef readonly Py_ssize_t max_tokens
    cdef Block _scratch, _job_scratch, _starts, _tiles, _strips, _lut_scratch, _parts
    cdef int _lut_threads
    cdef int _is_cancelled
    cdef int64_t _until_ns         # when a step is to be cancelled, or 0
    cdef public object observer

    def __init__(self, Program program not None, max_tokens):
        cdef Py_ssize_t i, most = 0
        self.program = program
        self.max_tokens = operator.index(max_tokens)
        for i in range(program._count):
            if program._operations[i].kind == LINEAR:
                most = max(most, scratch_bytes(&program._operations[i].job, self.max_tokens))
            elif program._operations[i].kind == HEAD and program._operations[i].dtype == OPS_INT8:
                most = max(most, head_scratch_bytes(&program._operations[i].head, self.max_tokens))
        self._scratch = allocate(checked_product(self.max_tokens, program.scratch_token_bytes, "scratch"), "scratch")
        self._job_scratch = allocate(most, "scratch")
        self._lut_threads = thread_count(None)
        self._lut_scratch = allocate(many_scratch_bytes(self._lut_threads), "scratch")
        self._parts = allocate(parts_bytes(&program._shape, self._lut_threads), "scratch")
        self._starts = allocate((MAX_PANEL_UNITS + 1) * sizeof(Py_ssize_t), "scratch")
        self._tiles = allocate((self.max_tokens + 1) * sizeof(int32_t), "scratch")
        self._strips = allocate((self.max_tokens + 1) * sizeof(int32_t), "scratch")

    def cancel(self):
        """Stop the run in progress after its present operation, or else the next run; from any thread.

        That run raises InferenceError. `forget_cancel` takes back what no run has seen.
        """
        raise_flag(&self._is_cancelled)

    def forget_cancel(self):
        """Let the next run be, whatever was cancelled before."""
        self._is_cancelled = 0

    def run(self, ids, positions, sequences, pages, outputs, num_threads=None):
        """Run tokens of any mix of sequences.

        Parameters
        ----------
        ids, positions, sequences : ndarray of int32, shape (tokens,)
            Each token, its place in its sequence, and which of `pages` that is. A sequence's tokens come in the order
            of their positions, and those before them are in the cache or in this run.
        pages : list of ndarray of uint64, shape (n,)
            For each sequence the addresses of its pages.
        outputs : ndarray of int32, shape (n_outputs,)
            The tokens whose logits are wanted.
        num_threads : int, optional

        Returns
        -------
        ndarray of float32, shape (n_outputs, vocab_size), or None
            None where the observer ended the run.

        Raises
        ------
        InferenceError
            If a token or a position is out of range, a number is not finite, or the run was cancelled.
        """
        cdef Program program = self.program
        cdef Run r
        cdef const int32_t[::1] ids_view, positions_view, sequences_view, outputs_view
        cdef const uintptr_t[::1] page_view
        cdef const Py_ssize_t[::1] room_view
        cdef Py_ssize_t tokens = len(ids)
        cdef int64_t entered = now_ns() if _recorders else 0
        self._until_ns = 0
        for name, array in (("ids", ids), ("positions", positions), ("sequences", sequences), ("outputs", outputs)):
            if checked(array, name, np.int32).ndim != 1:
                raise ShapeError.dimensions(name, "(outputs,)" if name == "outputs" else "(tokens,)", array.shape)
            if name != "outputs" and len(array) != tokens:
                raise ShapeError.mismatch(name, (tokens,), array.shape)
        logits = np.empty((len(outputs), program.vocab_size), np.float32)
        if len(ids) > self.max_tokens:
            raise InferenceError.too_many_tokens(len(ids), self.max_tokens)
        if tokens == 0:
            within("an output's token", outputs, 0, "of the tokens given")
            return logits
        tables = np.array([checked(table, "pages", np.uint64).ctypes.data for table in pages], np.uint64)
        rooms = np.array([min(len(table) * PAGE_TOKENS, program.context) for table in pages], np.int64)
        ids_view, positions_view, sequences_view, outputs_view = ids, positions, sequences, outputs
        page_view, room_view = tables, rooms
        cdef float[:, ::1] logits_view = logits
        r.tokens, r.ids, r.positions, r.sequences = tokens, &ids_view[0], &positions_view[0], &sequences_view[0]
        r.n_outputs = len(outputs)
        r.outputs = &outputs_view[0] if r.n_outputs else NULL
        if len(pages) == 0 or is_out_of_range(&r, program.vocab_size, &room_view[0], len(pages)):
            refuse(ids, positions, sequences, rooms, outputs, program.vocab_size)
        r.pages = <const uintptr_t *const *>&page_view[0]
        r.logits, r.leaders = &logits_view[0, 0] if r.n_outputs else NULL, NULL
        if not self._do(&r, thread_count(num_threads), logits, entered):
            return None
        if not np.isfinite(logits.sum(dtype=np.float64)):
            raise InferenceError.not_finite(program.names[program._count - 1])
        return logits

    def step(self, Batch batch not None, num_threads=None, seconds=None):
        """Run the tokens of a batch, whose logits are there afterwards.

        It takes less time than `run`, which makes arrays. Whether the logits are finite is for `Batch.best` to say.

        Parameters
        ----------
        batch : Batch
            Not empty.
        num_threads : int, optional
        seconds : float, optional
            After which it is cancelled, as by `cancel`.

        Raises
        ------
        InferenceError
            As of `run`.
        """
        cdef Run r
        cdef int64_t entered = now_ns() if _recorders else 0
        if batch.tokens > self.max_tokens:
            raise InferenceError.too_many_tokens(batch.tokens, self.max_tokens)
        if batch.vocab_size != self.program.vocab_size:
            raise ShapeError.mismatch("logits", (batch.outputs, self.program.vocab_size),
                                      (batch.outputs, batch.vocab_size))
        batch.fill(&r, self.program._shape.context)
        if r.leaders != NULL and (self.observer is not None or not self.program.screens(thread_count(num_threads))):
            r.leaders = NULL
        self._until_ns = 0 if seconds is None else now_ns() + <int64_t>(1e9 * min(<double>seconds, 1e9))
        self._do(&r, thread_count(num_threads), None if self.observer is None else batch.logits, entered)

    cdef bint _do(self, Run *r, int threads, logits, int64_t entered) except? False:
        """Run what a `Run` describes; False where the observer ended it. With recorders the run was `entered` then."""
        cdef Program program = self.program
        cdef list recorders = _recorders.copy() if entered else None
        cdef int64_t[::1] times_view
        cdef int64_t *times = NULL
        cdef int64_t began = 0, ended = 0
        cdef Py_ssize_t first = 0, failed = -1
        r.shape, r.ops, r.scratch, r.capacity = &program._shape, vector_ops(), self._scratch.data, self.max_tokens
        r.tiles, r.strips = <const int32_t *>self._tiles.data, <const int32_t *>self._strips.data
        r.n_tiles = cut(r, attend_together(r.shape, r.tokens, threads), <int32_t *>self._tiles.data)
        r.n_strips = cut(r, STRIP_TOKENS, <int32_t *>self._strips.data)
        r.starts = <Py_ssize_t *>self._starts.data
        r.lut_scratch, r.lut_threads = self._lut_scratch.data, self._lut_threads
        r.parts, r.parts_threads = <float *>self._parts.data, self._lut_threads
        if recorders:
            taken = np.zeros(program._count + 2, np.int64)
            times_view = taken
            times, began = &times_view[1], now_ns()
        while first < program._count and failed < 0:
            last = program._count if self.observer is None else first + 1
            failed = self._run_operations(r, first, last, threads, times)
            if self.observer is not None and failed < 0 and self.observer(first, *self._seen(first, r.tokens, logits)):
                return False
            first = last
        ended = now_ns() if recorders else 0
        if failed >= 0 and self._is_cancelled:
            self._is_cancelled = 0
            raise InferenceError.cancelled(program.names[failed])
        if failed >= 0 and program._operations[failed].kind == EMBED:
            raise InferenceError.cannot_read(program.names[failed]) from self._status(failed, "the file gave no row")
        if failed >= 0:
            raise InferenceError.not_finite(program.names[failed]) from self._status(failed, "its input is not finite")
        if recorders:
            taken[0], taken[program._count + 1] = began - entered, now_ns() - ended
            places, starts = np.array(<int32_t[:r.tokens]><int32_t *>r.positions), np.frombuffer(self._tiles, np.int32)
            attended, read, within = positions_of(places, starts[: r.n_tiles + 1], program.windows)
            for recorder in recorders:
                recorder(program, entered, taken, r.tokens, r.n_outputs, attended, read, threads, within)
        return True

    def _status(self, index, meaning):
        """What the native code said, as the cause of an error."""
        program = self.program
        kernel = kind = program.kinds[index]
        if kind == "linear":
            kernel = kernel_name(program.operations[index]["weight"].packing)
        elif kind == "head":
            kernel = f"head-{head_kernel_name()}"
        return KernelError.status(kernel, program.names[index], 1, meaning)

    cdef Py_ssize_t _run_operations(self, Run *r, Py_ssize_t first, Py_ssize_t last, int threads,
                                    int64_t *times) noexcept:
        """Returns the operation that failed or before which the run was cancelled, or -1."""
        cdef Program program = self.program
        cdef Py_ssize_t i
        cdef Operation op
        cdef uint8_t *job_scratch = self._job_scratch.data
        cdef int *is_cancelled = &self._is_cancelled
        cdef int64_t until = self._until_ns
        cdef int64_t before = now_ns() if times != NULL else 0, after
        with nogil:
            for i in range(first, last):
                if until != 0 and now_ns() >= until:
                    raise_flag(is_cancelled)
                if is_cancelled[0]:
                    return i
                op = program._operations[i]
                r.now = &op
                if operate(r, job_scratch, threads):
                    return i
                if times != NULL:
                    after = now_ns()
                    times[i] += after - before
                    before = after
        return -1

    def _seen(self, Py_ssize_t index, tokens, logits):
        """What an operation made, and what it read, of the run's tokens."""
        cdef Operation *op = &self.program._operations[index]
        if op.kind == HEAD:
            return logits.copy(), self._rows(op.source, op.source_width, tokens)
        source = self._rows(op.source, op.source_width, tokens) if op.source_width else None
        if op.result_width == 0:  # in place
            return source, None
        made = self._values(index, tokens)
        rows = op.job.rows if op.kind == LINEAR else op.rows if op.kind == DENSE else op.result_width
        return made[:, op.column : op.column + rows], source

    def last_hidden(self, tokens):
        """Copy what the head of the last run multiplies, of all its tokens: the residual stream after the last norm.

        Parameters
        ----------
        tokens : int
            Of the run.

        Returns
        -------
        ndarray of float32, shape (tokens, hidden_size)
        """
        return self._values(self.program._count - 2, tokens)

    def _values(self, Py_ssize_t index, tokens):
        """A copy of what an operation of the last run made, until another one writes there."""
        cdef Operation *op = &self.program._operations[index]
        return self._rows(op.result, op.result_width, tokens)

    def _rows(self, Py_ssize_t offset, Py_ssize_t width, tokens):
        data = np.frombuffer(self._scratch, np.uint8)[offset * self.max_tokens :][: 4 * tokens * width]
        return data.view(np.float32).reshape(tokens, width).copy()
