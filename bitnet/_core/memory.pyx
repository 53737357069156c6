"""Native memory owned by Python objects.

A `Block` is 64-byte aligned, as vector loads want it. Blocks of 1 MiB and more are mapped on a 2 MiB boundary and
advised to use huge pages: a matrix product from DRAM then spends no time on page-table walks (4 KiB pages cost
a sixth of the bandwidth). Such a block takes up whole huge pages. Every block is counted.
"""

from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport int64_t, uint8_t, uintptr_t
from libc.stdlib cimport free

from bitnet.errors import MemoryError

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **where, size_t alignment, size_t size)

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS
    void *MAP_FAILED

cdef extern from "memory.h":
    int bitnet_advise_huge(void *p, size_t n) noexcept nogil
    void bitnet_count_block(int64_t blocks, int64_t bytes) noexcept nogil
    int64_t bitnet_live_blocks() noexcept nogil
    int64_t bitnet_live_bytes() noexcept nogil
    int64_t bitnet_peak_bytes() noexcept nogil
    int64_t bitnet_total_blocks() noexcept nogil

cdef enum:
    ALIGNMENT = 64
    HUGE_PAGE = 2 << 20
    # From here on a huge page of its own is at least half used.
    LARGE = 1 << 20


cdef class Block:
    """A piece of native memory, freed with this object.

    It has the buffer protocol: ``memoryview(block)`` is writable bytes, and keeps the block alive.

    Attributes
    ----------
    nbytes : int
        Its size in bytes.
    address : int
        Where it begins; a multiple of 64.
    """

    def __cinit__(self):
        self.data = NULL
        self._base = NULL

    def __init__(self):
        raise TypeError("a Block is made by bitnet._core.memory.new_block()")

    def __dealloc__(self):
        if self._base == NULL:
            return
        if self._mapped:
            munmap(self._base, self._mapped)
        else:
            free(self._base)
        bitnet_count_block(-1, -self.nbytes)

    @property
    def address(self):
        return <uintptr_t>self.data

    def __len__(self):
        return self.nbytes

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.nbytes, 0, flags)


cdef Block allocate(Py_ssize_t nbytes, str what):
    cdef Block block = Block.__new__(Block)
    cdef uintptr_t start
    cdef size_t mapped
    cdef void *base = NULL
    if nbytes < 0:
        raise MemoryError.overflow(what, (nbytes,))
    if nbytes < LARGE:
        if posix_memalign(&base, ALIGNMENT, nbytes if nbytes > 0 else 1) != 0:
            raise MemoryError.allocation(nbytes, what)
        block._mapped = 0
        block.data = <uint8_t *>base
    else:
        # One huge page more than asked for, to begin on a boundary; what is never touched costs no memory.
        if nbytes > <Py_ssize_t>(<size_t>-1 >> 1) - 2 * HUGE_PAGE:
            raise MemoryError.allocation(nbytes, what)
        mapped = ((<size_t>nbytes + HUGE_PAGE - 1) & ~<size_t>(HUGE_PAGE - 1)) + HUGE_PAGE
        base = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if base == MAP_FAILED:
            raise MemoryError.allocation(nbytes, what)
        block._mapped = mapped
        start = (<uintptr_t>base + HUGE_PAGE - 1) & ~<uintptr_t>(HUGE_PAGE - 1)
        block.data = <uint8_t *>start
        # Refused where huge pages are off: then the block is merely slower.
        bitnet_advise_huge(block.data, mapped - HUGE_PAGE)
    block._base = base
    block.nbytes = nbytes
    bitnet_count_block(1, nbytes)
    return block


cdef Py_ssize_t checked_product(Py_ssize_t a, Py_ssize_t b, str what) except -1:
    if b > 0 and a > <Py_ssize_t>(<size_t>-1 >> 1) // b:
        raise MemoryError.overflow(what, (a, b))
    return a * b


def new_block(Py_ssize_t nbytes, str what="a block"):
    """Allocate native memory; its bytes are not initialised.

    Parameters
    ----------
    nbytes : int
        Size in bytes.
    what : str, optional
        What it is for; named in the error.

    Returns
    -------
    Block

    Raises
    ------
    bitnet.MemoryError
        If the size is negative, or the operating system refuses.
    """
    return allocate(nbytes, what)


def statistics():
    """Count the native memory of this process.

    Returns
    -------
    dict
        ``live_blocks``, ``live_bytes``, ``peak_bytes`` (of live bytes) and ``total_blocks`` (ever allocated).
    """
    return {
        "live_blocks": bitnet_live_blocks(),
        "live_bytes": bitnet_live_bytes(),
        "peak_bytes": bitnet_peak_bytes(),
        "total_blocks": bitnet_total_blocks(),
    }
