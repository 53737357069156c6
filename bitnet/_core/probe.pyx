"""The limits of this machine, measured: what a benchmark or `bitnet doctor` holds a kernel against."""

import time

import numpy as np

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from bitnet._core.cpu cimport allowed_features
from bitnet._core.memory cimport Block, allocate
from bitnet._core.threads cimport run, thread_count

cdef extern from "kernels/probe.h":
    ctypedef struct bitnet_probe:
        const char *isa
        uint32_t needs
        const char *instruction
        uint64_t (*read)(const uint8_t *data, Py_ssize_t n) noexcept nogil
        int64_t (*multiply)(int64_t rounds) noexcept nogil
    const bitnet_probe PROBES[]

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
    """

    cdef Block block
    cdef Py_ssize_t units

    def __init__(self, Py_ssize_t nbytes=1 << 30):
        self.units = max(<Py_ssize_t>1, (nbytes + READ_UNIT - 1) // READ_UNIT)
        self.block = allocate(self.units * READ_UNIT, "a bandwidth probe", "probe")
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
        return self.block.nbytes / (time.perf_counter() - start)


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


def multiply_instruction():
    """Name what `multiply_peak` repeats.

    Returns
    -------
    str
        Empty for the portable instruction set.
    """
    return _probe().instruction.decode()
