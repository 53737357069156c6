"""Pools of native memory.

A `HybridMemoryPool` has two kinds of blocks: small ones are slots of slabs, taken and given back without a lock
(memory.h); large ones, and the slabs, are extents of arenas in 2 MiB huge pages (arena.h). Pages of 4 KiB cost a matrix
product from DRAM a sixth of the bandwidth. The core allocates from the process's pool with `allocate`: a `Block` is
freed with its object. Users get a `MemoryHandle`, which can also be freed earlier.

A pool knows what is live, by tag and size and block by block. While it is tracked, each block also knows when it was
allocated, and, if asked for, by which Python code.
"""

import datetime
import operator
import os
import sys
import threading

cimport cython
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from bitnet._core.blocks cimport BEYOND_LIMIT, DONE, TAGS, Block, MemoryHandle, Pool, Reading

from bitnet._core.pressure import PressureCallbacks
from bitnet._core.reports import BlockStats, Leak, LeakReport, MemoryStats, TagStats, written_frames
from bitnet._core.tracking import AllocationTracker, injected_failure
from bitnet.errors import ConfigurationError, MemoryError

cdef enum:
    ALIGNMENT = 64
    MAX_ALIGNMENT = 2 << 20
    MAX_FRAMES = 32

LEVELS = ("off", "counts", "tracebacks")
"""How much a pool notes of each block: in which order it was allocated; also when; also by which code."""

UNTAGGED = "untagged"
"""The tag of what has none."""

SCRATCH = "scratch"
"""The tag of what the core allocates for the time of its work, where it names no other."""

OTHER = "other"
"""The tag of what came with a new one when there was no room for more tags."""


@cython.final
cdef class HybridMemoryPool(Pool):
    """Native memory: small blocks from slabs, large ones from arenas in huge pages, all counted.

    Parameters
    ----------
    config : MemoryPoolConfig, optional
        Of a pool of its own; the process's pool is `instance`.

    Attributes
    ----------
    limit : int or None
        The most bytes that may be live at once; can be set.
    tracking : {"off", "counts", "tracebacks"}
        What is noted of each block now; can be set. See `track`.
    has_guards : bool
        Whether writes behind a block are found when it is freed.

    Notes
    -----
    Threads may share a pool. It survives a fork: the child has a copy of every block, and goes on by itself. A pool that is
    dropped gives its memory back when its last block is gone.
    """

    cdef readonly dict _tags       # name -> number
    cdef int _level                # the highest of what is set and of what trackers at work want
    cdef int _level_set
    cdef list _levels              # of each tracker at work
    cdef object _callbacks         # None while there are none
    cdef public int64_t _fails_in  # allocations until one is made to fail, or -1
    cdef object __weakref__

    def __cinit__(self, config=None):
        self._tags = {UNTAGGED: 0, OTHER: 1}
        self._levels = []
        self._fails_in = -1
        self._level = self._level_set = _level_of(getattr(config, "tracking", "off"))

    @staticmethod
    def instance():
        """Get the process's pool, in which weights, scratch memory and caches live.

        Returns
        -------
        HybridMemoryPool
            Always the same. ``BITNET_MEMORY_PROFILING`` sets its `tracking` at first (1 means "tracebacks"), and
            ``BITNET_DEBUG=1`` its guards.

        Raises
        ------
        ConfigurationError
            If ``BITNET_MEMORY_PROFILING`` is no such word.
        """
        return _instance()

    @property
    def limit(self):
        return self.get_limit() or None

    @limit.setter
    def limit(self, value):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 62):
            raise ConfigurationError.value("HybridMemoryPool", "limit", value, "a whole number of bytes above 0, or None")
        self.set_limit(value or 0)

    @property
    def tracking(self):
        return LEVELS[self._level]

    @tracking.setter
    def tracking(self, value):
        self._level_set = _level_of(value)
        self._choose_level()

    cdef int _choose_level(self) except -1:
        self._level = max([self._level_set] + self._levels)
        return 0

    # ---- blocks

    def allocate(self, size, alignment=ALIGNMENT, bint zero=False, str tag=None):
        """Take a block.

        Parameters
        ----------
        size : int
            In bytes.
        alignment : int, optional
            The block begins at a multiple of it: a power of two up to 2 MiB.
        zero : bool, optional
            Whether the block is filled with zeros; otherwise its bytes are not initialised.
        tag : str, optional
            What it is for, in statistics and reports. A pool tells 62 tags apart; later ones are counted as "other".

        Returns
        -------
        MemoryHandle

        Raises
        ------
        MemoryError
            If the pool's limit is in the way, or the operating system refuses.
        """
        cdef MemoryHandle handle = MemoryHandle.__new__(MemoryHandle)
        cdef Py_ssize_t multiple
        try:
            multiple = alignment
        except OverflowError:
            multiple = -1
        if multiple < 1 or multiple > MAX_ALIGNMENT or multiple & (multiple - 1):
            raise ConfigurationError.value("HybridMemoryPool.allocate", "alignment", alignment,
                                           "a power of two from 1 to 2097152")
        self.take(handle, _size(size, "a block"), multiple, zero, "a block", 0 if tag is None else self._tag_number(tag))
        return handle

    def deallocate(self, MemoryHandle handle not None):
        """Free a block, as its own `MemoryHandle.free` does.

        Parameters
        ----------
        handle : MemoryHandle
            Of this pool.

        Raises
        ------
        MemoryError
            If it was freed before, or belongs to another pool.
        """
        handle.check("free")
        if not self.owns(handle):
            raise MemoryError.foreign(handle.nbytes)
        handle.free()

    def resize(self, MemoryHandle handle not None, nbytes):
        """Make a block larger or smaller; what fits of its content stays, and so does its alignment.

        Parameters
        ----------
        handle : MemoryHandle
            Of this pool.
        nbytes : int
            Its new size. Bytes beyond the old one are not initialised. A block can always become smaller: where a
            smaller one cannot be had, it stays where it is.

        Raises
        ------
        MemoryError
            If it was freed, has views, belongs to another pool, or the memory cannot be had; the block is then as it
            was.
        """
        cdef Py_ssize_t size = _size(nbytes, "a resized block")
        cdef Block other
        with cython.critical_section(handle):
            self._check_resizable(handle)
            if size >= 0 and self.resize_in_place(handle, size, False):
                return
            other = Block.__new__(Block)
            try:
                self.take(other, size, self.alignment_of(handle), False, "a resized block", self.tag_of(handle))
            except MemoryError:
                self._check_resizable(handle)
                if 0 <= size <= handle.nbytes and self.resize_in_place(handle, size, True):
                    return
                raise
            self._check_resizable(handle)  # again: callbacks have run, and other threads
            memcpy(other.data, handle.data, min(handle.nbytes, size))
            self.exchange(handle, other)

    cdef int _check_resizable(self, MemoryHandle handle) except -1:
        handle.check("resize")
        if not self.owns(handle):
            raise MemoryError.foreign(handle.nbytes)
        if handle._views:
            raise MemoryError.has_views(handle.nbytes, handle._views)
        return 0

    cdef int take(self, Block block, Py_ssize_t nbytes, Py_ssize_t alignment, bint zero, str what, int tag) except -1:
        cdef int status
        if nbytes < 0:
            raise MemoryError.overflow(what, (nbytes,))
        if self._fails_in >= 0:
            self._fails_in -= 1
            if self._fails_in < 0:
                self._fail(nbytes, what, False)
        status = self.try_to_take(block, nbytes, alignment, zero, tag)
        if status != DONE:
            status = self._insist(block, nbytes, alignment, zero, tag, status)
            if status != DONE:
                self._fail(nbytes, what, status == BEYOND_LIMIT)
        self.note(block, _frames() if self._level > 1 else None, self._level > 0)
        if self._callbacks is not None:
            self._callbacks.look(self.used(), self.get_limit(), self.reserved())
        return 0

    cdef int _tag_number(self, str tag) except -1:
        number = self._tags.get(tag)
        if number is None:
            with cython.critical_section(self):  # or two new tags might have one number
                number = self._tags.get(tag)
                if number is None:
                    if len(self._tags) == TAGS:
                        return 1
                    number = self._tags[tag] = len(self._tags)
        return number

    # ---- when memory runs out

    cdef int _insist(self, Block block, Py_ssize_t nbytes, Py_ssize_t alignment, bint zero, int tag, int status) except -1:
        """Try again when unused memory was given back, and when callbacks have freed what they could."""
        if status != BEYOND_LIMIT and self.give_back() > 0:
            status = self.try_to_take(block, nbytes, alignment, zero, tag)
        if status != DONE and self._callbacks is not None:
            for _ in self._callbacks.make_room(nbytes, self.used(), self.get_limit() if status == BEYOND_LIMIT else 0):
                status = self.try_to_take(block, nbytes, alignment, zero, tag)
                if status == DONE:
                    break
        return status

    def _fail(self, Py_ssize_t nbytes, what, is_beyond_limit):
        self.count_failure()
        if is_beyond_limit:
            raise MemoryError.limit(nbytes, what, self.used(), self.get_limit(), self._bytes_by_tag())
        raise MemoryError.allocation(nbytes, what)

    def _bytes_by_tag(self):
        return {tag: self.tag_bytes(number) for tag, number in self._tags.items() if self.tag_bytes(number)}

    def register_pressure_callback(self, level, function):
        """Have a function called when memory becomes scarce.

        Parameters
        ----------
        level : float
            The share, above 0 and at most 1: of the pool's limit, or of the memory of the machine or of this process's
            control group. At the limit's it is called by the allocation that reaches it, and again only after use has
            fallen below. The system is looked at when the pool takes more memory from it.
        function : callable
            Called with a `MemoryPressure`, in the thread that allocates. It may free blocks. If an allocation fails,
            each function is called, by rising level, until it succeeds when tried again. What it raises is logged.

        Returns
        -------
        callable
            Unregisters it.
        """
        if self._callbacks is None:
            self._callbacks = PressureCallbacks()
        return self._callbacks.register(level, function)

    def injected_failure(self, after):
        """Make one allocation fail, to test what becomes of that.

        Parameters
        ----------
        after : int
            How many allocations succeed before it.

        Returns
        -------
        context manager
            Its value is a function that says whether the allocation has come, or did within the ``with``.
        """
        return injected_failure(self, operator.index(after))

    # ---- what is live

    def get_stats(self):
        """Read the pool's counts.

        Returns
        -------
        MemoryStats
        """
        cdef Reading r = self.read()
        tags = {tag: TagStats(self.tag_bytes(number), self.tag_blocks(number))
                for tag, number in self._tags.items() if self.tag_blocks(number)}
        small, large = r.small_allocated - r.small_freed, r.large_allocated - r.large_freed
        return MemoryStats(
            allocated=r.bytes, peak=r.peak, active=small + large,
            allocation_count=r.small_allocated + r.large_allocated, deallocation_count=r.small_freed + r.large_freed,
            failed_count=r.failed, reserved=r.reserved, huge_page_bytes=r.huge,
            fragmentation=1 - <double>r.bytes / r.reserved if r.reserved else 0.0,
            small_block=BlockStats(r.bytes - r.large_bytes, small, r.small_allocated, r.small_freed),
            large_block=BlockStats(r.large_bytes, large, r.large_allocated, r.large_freed),
            size_distribution={1 << i: r.live_by_log2[i] for i in range(63) if r.live_by_log2[i]},
            by_tag=tags, last_updated=datetime.datetime.now(datetime.UTC),
        )

    def track(self, tracebacks=False):
        """Note the blocks that are allocated from now on, to see which of them stay.

        Parameters
        ----------
        tracebacks : bool, optional
            Whether to keep the Python traceback of each allocation too, which costs some microseconds.

        Returns
        -------
        AllocationTracker
            A context manager; its ``report()`` tells, within the ``with`` or after it, which of the blocks allocated
            there are live.
        """
        return AllocationTracker(self, tracebacks)

    def _begin_tracking(self, int level):
        with cython.critical_section(self):
            self._levels.append(level)
            self._choose_level()
        return self.last_number()

    def _end_tracking(self, int level):
        with cython.critical_section(self):
            self._levels.remove(level)  # trackers may end in any order
            self._choose_level()
        return self.last_number()

    def leaks(self, first=0, last=None):
        """List the live blocks, the oldest first.

        Parameters
        ----------
        first, last : int, optional
            Only those whose number, in the order of allocation, is above `first` and at most `last`.

        Returns
        -------
        LeakReport
        """
        names = {number: tag for tag, number in self._tags.items()}
        return LeakReport(tuple([
            Leak(size, seconds if seconds >= 0 else None, names[tag], () if frames is None else written_frames(frames))
            for size, seconds, tag, frames in self.noted(first, self.last_number() if last is None else last)
        ]))

    def trim(self):
        """Give unused memory back to the system.

        Returns
        -------
        int
            How many bytes.
        """
        with nogil:
            given = self.give_back()
        return given

    def reset(self):
        """Give all memory back, and begin to count anew.

        Raises
        ------
        MemoryError
            If blocks are live.
        """
        cdef int64_t live = self.restart()
        if live:
            raise MemoryError.live_blocks(live, self._bytes_by_tag())

    def __repr__(self):
        return f"HybridMemoryPool({self.used()} bytes live, limit {self.limit}, tracking {self.tracking!r})"


cdef tuple _frames():
    """The Python frames above, the innermost first."""
    found, frame = [], sys._getframe(0)
    while frame is not None and len(found) < MAX_FRAMES:
        found.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return tuple(found)


cdef Py_ssize_t _size(nbytes, str what) except? -1:
    try:
        return nbytes
    except OverflowError:
        raise MemoryError.overflow(what, (nbytes,)) from None


def _level_of(word):
    if word not in LEVELS:
        raise ConfigurationError.choice("HybridMemoryPool.tracking", word, LEVELS)
    return LEVELS.index(word)


cdef HybridMemoryPool _process_pool = None
_beginning = threading.RLock()


cdef HybridMemoryPool _instance():
    global _process_pool
    with _beginning:
        if _process_pool is not None:
            return _process_pool
        asked = os.environ.get("BITNET_MEMORY_PROFILING", "")
        level = {"": "off", "0": "off", "1": "tracebacks"}.get(asked, asked)
        if level not in LEVELS:
            raise ConfigurationError.choice("BITNET_MEMORY_PROFILING", asked, ("0", "1", *LEVELS))
        pool = HybridMemoryPool()
        pool.tracking = level
        _process_pool = pool
    return _process_pool


cdef Block allocate(Py_ssize_t nbytes, str what, str tag=SCRATCH):
    cdef Block block = Block.__new__(Block)
    cdef HybridMemoryPool pool = _instance() if _process_pool is None else _process_pool
    pool.take(block, nbytes, ALIGNMENT, False, what, pool._tag_number(tag))
    return block


cdef Py_ssize_t checked_product(Py_ssize_t a, Py_ssize_t b, str what) except -1:
    if b > 0 and a > <Py_ssize_t>(<size_t>-1 >> 1) // b:
        raise MemoryError.overflow(what, (a, b))
    return a * b


def new_block(Py_ssize_t nbytes, str what="a block", str tag=OTHER):
    """Allocate a block of the process's pool. Its bytes are not initialised.

    Parameters
    ----------
    nbytes : int
    what, tag : str, optional
        What it is for, in an error and in statistics.

    Returns
    -------
    Block

    Raises
    ------
    bitnet.MemoryError
        If the size is negative, the pool's limit is in the way, or the operating system refuses.
    """
    return allocate(nbytes, what, tag)


def statistics():
    """Count the native memory of this process.

    Returns
    -------
    dict
        ``live_blocks``, ``live_bytes``, ``peak_bytes`` (of live bytes) and ``total_blocks`` (ever allocated).
    """
    found = _instance().get_stats()
    return {
        "live_blocks": found.active,
        "live_bytes": found.allocated,
        "peak_bytes": found.peak,
        "total_blocks": found.allocation_count,
    }
