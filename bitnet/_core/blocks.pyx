"""Blocks of native memory as Python objects, and the pools of memory.h behind them.

Only this module knows what memory.h keeps in a block or a pool; to others a block has `Block.data`, and a pool is a
pointer. `bitnet._core.memory` has the pools that Python sees.
"""

import operator
import os

import numpy as np

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.ref cimport Py_XDECREF, Py_XINCREF, PyObject
from libc.stdint cimport int64_t, uint8_t, uint64_t, uintptr_t
from libc.string cimport memcpy

from bitnet._core.reports import huge_page_mode
from bitnet.errors import ConfigurationError, MemoryError, ShapeError

cdef extern from "arena.h":
    pass

cdef extern from "slab.h":
    pass

cdef extern from "memory.h":
    int BITNET_IS_DEBUG, BITNET_DONE

    ctypedef struct bitnet_node:
        bitnet_node *previous
        bitnet_node *next

    ctypedef struct bitnet_tag:
        int64_t bytes
        int64_t blocks

    ctypedef struct bitnet_extent:
        size_t length

    ctypedef struct bitnet_pool:
        int64_t bytes
        int64_t limit
        int64_t failed
        int has_guards
        bitnet_node live
        uint64_t tracked
        bitnet_tag *tags

    ctypedef struct bitnet_block:
        uint8_t *data
        size_t size
        size_t alignment
        bitnet_pool *pool
        bitnet_extent *extent
        int tag

    ctypedef struct bitnet_reading:
        int64_t bytes, peak, failed, small_allocated, small_freed, large_allocated, large_freed, large_bytes
        int64_t reserved, huge
        int64_t live_by_log2[64]

    bitnet_pool *bitnet_new_pool(size_t threshold, int64_t limit, int wants_huge_pages, int has_guards) noexcept nogil
    void bitnet_release_pool(bitnet_pool *pool) noexcept nogil
    int64_t bitnet_reset_pool(bitnet_pool *pool) noexcept nogil
    size_t bitnet_trim_pool(bitnet_pool *pool) noexcept nogil
    int bitnet_allocate(bitnet_pool *pool, size_t size, size_t alignment, int tag, int is_zeroed,
                        bitnet_block *block) noexcept nogil
    void bitnet_free(bitnet_block *block) noexcept nogil
    int bitnet_resize_in_place(bitnet_block *block, size_t size, int may_waste) noexcept nogil
    ptrdiff_t bitnet_damaged_guard(const bitnet_block *block) noexcept nogil
    uint64_t bitnet_track(bitnet_pool *pool, bitnet_node *node) noexcept nogil
    void bitnet_untrack(bitnet_pool *pool, bitnet_node *node) noexcept nogil
    void bitnet_lock_live(bitnet_pool *pool) noexcept nogil
    void bitnet_unlock_live(bitnet_pool *pool) noexcept nogil
    int64_t bitnet_coarse_ns() noexcept nogil
    void bitnet_read_pool(bitnet_pool *pool, bitnet_reading *reading) noexcept nogil
    int64_t bitnet_reserved(bitnet_pool *pool) noexcept nogil
    size_t bitnet_list_arenas(bitnet_pool *pool, uintptr_t *ranges, size_t most) noexcept nogil
    int bitnet_prepare_fork() noexcept nogil

if bitnet_prepare_fork() != 0:
    raise ImportError("pthread_atfork failed: no memory is left")

IS_DEBUG = bool(BITNET_IS_DEBUG)
"""Whether the core was built with BITNET_DEBUG=1."""


cdef enum:
    SPARE = 64                     # rows of a list, for what comes while it is made


cdef struct State:
    bitnet_node node               # first: a pool's list of live blocks goes from node to node
    PyObject *frames               # of the Block, which has a reference
    int64_t since_ns
    uint64_t number                # in the order of allocation
    bitnet_block block

assert sizeof(State) <= 14 * sizeof(uint64_t)


cdef struct Noted:
    Py_ssize_t size
    int64_t since_ns
    int tag
    PyObject *frames


cdef inline State *_state(Block block) noexcept:
    return <State *>block._state


@cython.freelist(64)
@cython.no_gc  # it refers to code objects at most, which refer to no block
cdef class Block:
    """A piece of native memory, freed with this object.

    It has the buffer protocol: ``memoryview(block)`` is writable bytes, and keeps the block alive.

    Attributes
    ----------
    nbytes : int
        Its size in bytes.
    address : int
        Where it begins; a multiple of 64, or of the alignment that was asked for.
    """

    def __init__(self):
        raise TypeError("a Block is made by bitnet._core.memory.new_block()")

    def __dealloc__(self):
        if self.data != NULL:
            _release(self)

    @property
    def address(self):
        return <uintptr_t>self.data

    def __len__(self):
        return self.nbytes

    def __getbuffer__(self, Py_buffer *view, int flags):
        with cython.critical_section(self):
            if self._is_freed or self.data == NULL:
                raise MemoryError.freed("read", self.nbytes)
            PyBuffer_FillInfo(view, self, self.data, self.nbytes, 0, flags)
            self._views += 1

    def __releasebuffer__(self, Py_buffer *view):
        with cython.critical_section(self):
            self._views -= 1
            if self._is_freed and self._views == 0:
                _release(self)


cdef int _release(Block block) except -1:
    cdef State *state = _state(block)
    cdef ptrdiff_t at = bitnet_damaged_guard(&state.block)
    if state.node.next != NULL:
        bitnet_untrack(state.block.pool, &state.node)
    block.data = NULL
    bitnet_free(&state.block)
    if at >= 0:
        raise MemoryError.corrupted(block.nbytes, at)
    return 0


@cython.final
cdef class MemoryHandle(Block):
    """A block of a pool, for users: made by `HybridMemoryPool.allocate`, and freed by `free`, at the end of a ``with``, or
    with this object.

    It has the buffer protocol. Views, as those of `numpy`, keep the memory alive: after `free` the handle itself cannot
    be used, and the memory goes back when the last view is gone.

    Attributes
    ----------
    nbytes : int
        Its size in bytes.
    address : int
        Where it begins.
    is_freed : bool
    """

    def __init__(self):
        raise TypeError("a MemoryHandle is made by HybridMemoryPool.allocate()")

    @property
    def address(self):
        self.check("use")
        return <uintptr_t>self.data

    @property
    def is_freed(self):
        return self._is_freed

    cdef int check(self, str action) except -1:
        if self._is_freed or self.data == NULL:  # or it was never given any: made by `__new__`
            raise MemoryError.freed(action, self.nbytes)
        return 0

    def free(self):
        """Give the memory back.

        Raises
        ------
        MemoryError
            If that was done before, or, in a pool with guards, if something was written behind the block.
        """
        with cython.critical_section(self):
            self.check("free")
            self._is_freed = True
            if self._views == 0:
                _release(self)

    def numpy(self, dtype=np.uint8, shape=None):
        """Look at the memory as an array, without a copy.

        Parameters
        ----------
        dtype : dtype, optional
        shape : tuple of int, optional
            As many elements as fit, if not given.

        Returns
        -------
        ndarray
            It keeps the memory alive.

        Raises
        ------
        ShapeError
            If the block is too small for it.
        ConfigurationError
            If elements have no size, or are references to Python objects.
        """
        self.check("read")
        dtype = np.dtype(dtype)
        if dtype.itemsize == 0 or dtype.hasobject:
            raise ConfigurationError.value("MemoryHandle.numpy", "dtype", dtype, "of numbers, which have a size")
        if shape is None:
            count = self.nbytes // dtype.itemsize
            shape = (count,)
        else:
            shape = (shape,) if isinstance(shape, int) else tuple(shape)
            count = 1
            for n in shape:
                if operator.index(n) < 0:
                    raise ConfigurationError.value("MemoryHandle.numpy", "shape", shape, "of numbers from 0 on")
                count *= operator.index(n)
        if count * dtype.itemsize > self.nbytes:
            raise ShapeError.too_large(f"the size of {shape} x {dtype}", count * dtype.itemsize, self.nbytes, "bytes")
        if count == 0:
            return np.empty(shape, dtype)
        return np.frombuffer(memoryview(self), dtype, count).reshape(shape)

    def __enter__(self):
        self.check("enter")
        return self

    def __exit__(self, *_):
        if not self._is_freed:
            self.free()

    def __repr__(self):
        state = "freed" if self._is_freed else f"at {<uintptr_t>self.data:#x}"
        return f"MemoryHandle({self.nbytes} bytes, {state})"


cdef class Pool:
    """What owns blocks: a pool of memory.h, without names and reports. `HybridMemoryPool` is the one to use.

    It lives until this object and all its blocks are gone.

    Parameters
    ----------
    config : MemoryPoolConfig, optional
    """

    def __cinit__(self, config=None):
        names = ("threshold", "limit", "huge_pages", "guards", "tracking")
        if config is not None and not all([hasattr(config, name) for name in names]):
            raise ConfigurationError.value("HybridMemoryPool", "config", config, "a MemoryPoolConfig or None")
        guards = getattr(config, "guards", None)
        if guards is None:
            guards = IS_DEBUG or os.environ.get("BITNET_DEBUG", "") not in ("", "0")
        wants_huge_pages = getattr(config, "huge_pages", True) and huge_page_mode() not in ("never", "disabled")
        self.pool = bitnet_new_pool(getattr(config, "threshold", 1 << 20), getattr(config, "limit", None) or 0,
                                    wants_huge_pages, guards)
        if self.pool == NULL:
            raise MemoryError.allocation(sizeof(bitnet_pool), "a memory pool")

    def __dealloc__(self):
        if self.pool != NULL:
            bitnet_release_pool(<bitnet_pool *>self.pool)

    cdef int try_to_take(self, Block block, Py_ssize_t nbytes, Py_ssize_t alignment, bint zero, int tag) noexcept:
        cdef State *state = _state(block)
        cdef int status = bitnet_allocate(<bitnet_pool *>self.pool, nbytes, alignment, tag, zero, &state.block)
        if status == BITNET_DONE:
            block.data, block.nbytes = state.block.data, nbytes
        return status

    cdef bint resize_in_place(self, Block block, Py_ssize_t nbytes, bint may_waste) noexcept:
        if not bitnet_resize_in_place(&_state(block).block, nbytes, may_waste):
            return False
        block.nbytes = nbytes
        return True

    cdef void exchange(self, Block one, Block other) noexcept:
        """Give each the memory of the other."""
        cdef bitnet_block block
        bitnet_lock_live(<bitnet_pool *>self.pool)
        block = _state(one).block
        _state(one).block, _state(other).block = _state(other).block, block
        one.data, other.data = other.data, one.data
        one.nbytes, other.nbytes = other.nbytes, one.nbytes
        bitnet_unlock_live(<bitnet_pool *>self.pool)

    cdef void note(self, Block block, frames, bint has_clock) noexcept:
        """Put a block into the list of live ones, and remember as which it was allocated, when, and by what."""
        cdef State *state = _state(block)
        block.frames = frames
        state.frames = <PyObject *>frames
        state.since_ns = bitnet_coarse_ns() if has_clock else 0
        state.number = bitnet_track(<bitnet_pool *>self.pool, &state.node)

    cdef uint64_t last_number(self) noexcept:
        return (<bitnet_pool *>self.pool).tracked

    cdef list noted(self, uint64_t first, uint64_t last):
        """(bytes, age in seconds or -1, tag, frames or None) of the live blocks with numbers above `first` up to `last`."""
        cdef bitnet_pool *pool = <bitnet_pool *>self.pool
        cdef bitnet_node *node
        cdef State *state
        cdef Py_ssize_t most = 0, count = 0, i
        cdef int64_t now = bitnet_coarse_ns()
        bitnet_lock_live(pool)
        node = pool.live.next
        while node != &pool.live:
            node, most = node.next, most + 1
        bitnet_unlock_live(pool)
        cdef bytearray room = bytearray(most * sizeof(Noted))  # later blocks have numbers above `last`
        cdef Noted *notes = <Noted *><char *>room
        # Copies, and not the blocks: one of them may be on its way out, and what is made of them below may have Python
        # collect garbage, which waits for the list.
        bitnet_lock_live(pool)
        node = pool.live.next
        while node != &pool.live and count < most:
            state = <State *>node
            if first < state.number <= last:
                notes[count].size, notes[count].tag = state.block.size, state.block.tag
                notes[count].since_ns, notes[count].frames = state.since_ns, state.frames
                Py_XINCREF(state.frames)
                count += 1
            node = node.next
        bitnet_unlock_live(pool)
        found = []
        for i in range(count):
            seconds = (now - notes[i].since_ns) / 1e9 if notes[i].since_ns else -1.0
            frames = <object>notes[i].frames
            Py_XDECREF(notes[i].frames)
            found.append((notes[i].size, seconds, notes[i].tag, frames))
        return found

    def _large_blocks(self):
        """Where the live blocks are that are no slots of slabs: (tag's number, address, bytes), an array of uint64."""
        cdef bitnet_pool *pool = <bitnet_pool *>self.pool
        cdef bitnet_node *node
        cdef bitnet_block *block
        cdef bitnet_reading r
        bitnet_read_pool(pool, &r)
        found = np.empty((r.large_allocated - r.large_freed + SPARE, 3), np.uint64)
        cdef uint64_t[:, ::1] rows = found
        cdef Py_ssize_t count = 0
        bitnet_lock_live(pool)
        node = pool.live.next
        while node != &pool.live and count < rows.shape[0]:
            block = &(<State *>node).block
            if block.extent != NULL:
                rows[count, 0], rows[count, 1] = block.tag, <uintptr_t>block.data
                rows[count, 2] = block.extent.length
                count += 1
            node = node.next
        bitnet_unlock_live(pool)
        return found[:count]

    def _arenas(self):
        """What the pool has from the system: (address, bytes), an array of uint64."""
        found = np.empty((bitnet_list_arenas(<bitnet_pool *>self.pool, NULL, 0) + SPARE, 2), np.uint64)
        cdef uint64_t[:, ::1] rows = found
        cdef size_t count = bitnet_list_arenas(<bitnet_pool *>self.pool, <uintptr_t *>&rows[0, 0], rows.shape[0])
        return found[:min(<Py_ssize_t>count, <Py_ssize_t>len(found))]

    cdef int tag_of(self, Block block) noexcept:
        return _state(block).block.tag

    cdef Py_ssize_t alignment_of(self, Block block) noexcept:
        return _state(block).block.alignment

    cdef bint owns(self, Block block) noexcept:
        return _state(block).block.pool == <bitnet_pool *>self.pool

    cdef Reading read(self) noexcept:
        cdef bitnet_reading r
        cdef Reading found
        bitnet_read_pool(<bitnet_pool *>self.pool, &r)
        found.bytes, found.peak, found.failed, found.reserved, found.huge = r.bytes, r.peak, r.failed, r.reserved, r.huge
        found.small_allocated, found.small_freed = r.small_allocated, r.small_freed
        found.large_allocated, found.large_freed, found.large_bytes = r.large_allocated, r.large_freed, r.large_bytes
        memcpy(found.live_by_log2, r.live_by_log2, sizeof(found.live_by_log2))
        return found

    cdef int64_t used(self) noexcept:
        return (<bitnet_pool *>self.pool).bytes

    cdef int64_t reserved(self) noexcept:
        return bitnet_reserved(<bitnet_pool *>self.pool)

    cdef int64_t get_limit(self) noexcept:
        return (<bitnet_pool *>self.pool).limit

    cdef void set_limit(self, int64_t limit) noexcept:
        (<bitnet_pool *>self.pool).limit = limit

    cdef void count_failure(self) noexcept:
        (<bitnet_pool *>self.pool).failed += 1

    cdef int64_t tag_bytes(self, int tag) noexcept:
        return (<bitnet_pool *>self.pool).tags[tag].bytes

    cdef int64_t tag_blocks(self, int tag) noexcept:
        return (<bitnet_pool *>self.pool).tags[tag].blocks

    @property
    def has_guards(self):
        return bool((<bitnet_pool *>self.pool).has_guards)

    cdef size_t give_back(self) noexcept nogil:
        return bitnet_trim_pool(<bitnet_pool *>self.pool)

    cdef int64_t restart(self) noexcept nogil:
        return bitnet_reset_pool(<bitnet_pool *>self.pool)
