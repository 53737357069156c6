"""The limits of this machine, measured: what a benchmark or `bitnet doctor` holds a kernel against."""

import time

import numpy as np

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from bitnet._core.cpu cimport allowed_features
from bitnet._core.memory cimport Block, allocate
from bitnet._core.threads cimport run, thread_count

from bitnet.errors import ShapeError

cdef extern from "kernels/probe.h":
    ctypedef struct bitnet_probe:
        const char *isa
        uint32_t needs
        const char *instruction
        uint64_t (*read)(const uint8_t *data, Py_ssize_t n) noexcept nogil
        int64_t (*multiply)(int64_t rounds) noexcept nogil
    const bitnet_probe PROBES[]

cdef extern from *:
    """
    #include <stdlib.h>
    /* Called through pointers that may change: a pair that nobody sees, the compiler would leave out. */
    static void *(*volatile bitnet_take)(size_t) = malloc;
    static void (*volatile bitnet_give)(void *) = free;
    """
    void *bitnet_take(size_t n) noexcept
    void bitnet_give(void *p) noexcept

cdef enum:
    READ_UNIT = 1 << 20
    MULTIPLY_ROUNDS = 20000
    MULTIPLY_UNITS = 64


cdef const bitnet_probe *_probe() except NULL:
    cdef uint32_t allowed = allowed_features()
    cdef const bitnet_probe *probe = PROBES
    while probe.needs & allowed != probe.needs:
        probe += 1
    return probe


cdef struct ReadJob:
    const bitnet_probe *probe
    const uint8_t *data
    uint64_t *seen


cdef void _read_unit(void *data, Py_ssize_t unit, int member) noexcept nogil:
    cdef ReadJob *job = <ReadJob *>data
    job.seen[unit] = job.probe.read(job.data + unit * READ_UNIT, READ_UNIT)


cdef struct MultiplyJob:
    const bitnet_probe *probe
    int64_t done[MULTIPLY_UNITS]


cdef void _multiply_unit(void *data, Py_ssize_t unit, int member) noexcept nogil:
    cdef MultiplyJob *job = <MultiplyJob *>data
    job.done[unit] = job.probe.multiply(MULTIPLY_ROUNDS)


cdef class ReadBandwidth:
    """A buffer in huge pages, and how fast it can be read.

    Parameters
    ----------
    nbytes : int, optional
        Size in bytes, rounded up to whole MiB. Larger than the last-level cache, it measures DRAM.
    block : Block, optional
        Memory to use instead, as a `MemoryHandle`: of at least a MiB, and of it whole MiB.
    """

    cdef Block block
    cdef Py_ssize_t units

    def __init__(self, Py_ssize_t nbytes=1 << 30, Block block=None):
        self.units = max(<Py_ssize_t>1, (nbytes + READ_UNIT - 1) // READ_UNIT)
        if block is not None:
            self.units = block.nbytes // READ_UNIT
        if self.units == 0:
            raise ShapeError.too_small("the block to read", block.nbytes, READ_UNIT, "bytes")
        self.block = allocate(self.units * READ_UNIT, "a bandwidth probe", "probe") if block is None else block
        np.frombuffer(self.block, np.uint8).fill(1)

    @property
    def nbytes(self):
        return self.block.nbytes

    def read(self, num_threads=None):
        """Read all of it once.

        Parameters
        ----------
        num_threads : int, optional

        Returns
        -------
        float
            Bytes per second.
        """
        seen = np.empty(self.units, np.uint64)
        cdef uint64_t[::1] view = seen
        cdef int threads = thread_count(num_threads)
        cdef ReadJob job
        job.probe, job.data, job.seen = _probe(), self.block.data, &view[0]
        start = time.perf_counter()
        with nogil:
            run(_read_unit, &job, self.units, threads)
        return self.units * READ_UNIT / (time.perf_counter() - start)


def multiply_peak(num_threads=None):
    """Repeat the kernels' multiply instruction in registers.

    Parameters
    ----------
    num_threads : int, optional

    Returns
    -------
    float or None
        8-bit multiply-accumulates per second, of all threads together; None where the instruction set in use is the
        portable one, which has none.
    """
    cdef int threads = thread_count(num_threads)
    cdef MultiplyJob job
    job.probe = _probe()
    if job.probe.multiply == NULL:
        return None
    start = time.perf_counter()
    with nogil:
        run(_multiply_unit, &job, MULTIPLY_UNITS, threads)
    seconds = time.perf_counter() - start
    return sum([job.done[unit] for unit in range(MULTIPLY_UNITS)]) / seconds


def block_pairs(Py_ssize_t nbytes, Py_ssize_t count):
    """Allocate and free a block of the process's pool, as the core does, to measure it.

    Parameters
    ----------
    nbytes, count : int
        Its size, and how often.

    Returns
    -------
    float
        Seconds a pair.
    """
    cdef Py_ssize_t i
    start = time.perf_counter()
    for i in range(count):
        allocate(nbytes, "a probe", "probe")
    return (time.perf_counter() - start) / count


def malloc_pairs(size_t nbytes, Py_ssize_t count):
    """Allocate and free with the C library, to measure it.

    Parameters
    ----------
    nbytes, count : int
        Its size, and how often.

    Returns
    -------
    float
        Seconds a pair.
    """
    cdef Py_ssize_t i
    start = time.perf_counter()
    for i in range(count):
        bitnet_give(bitnet_take(nbytes))
    return (time.perf_counter() - start) / count


def multiply_instruction():
    """Name what `multiply_peak` repeats.

    Returns
    -------
    str
        Empty for the portable instruction set.
    """
    return _probe().instruction.decode()
