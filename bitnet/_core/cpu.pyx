"""What this CPU and this operating system can run, and which instruction set is in use.

The choice is made once, at its first use, so that ``import bitnet`` works even where ``BITNET_ISA`` asks for the
impossible, and `bitnet doctor` can say so.
"""

import contextlib
import glob
import os
import platform

from libc.stdint cimport uint32_t

from bitnet.errors import ConfigurationError

cdef extern from "kernels/cpu.h":
    uint32_t bitnet_cpu_features() noexcept nogil
    uint32_t CPU_AVX2, CPU_AVX512VNNI, CPU_AVX512VBMI, CPU_AVXVNNI, CPU_NEON, CPU_NEONDOT

cdef extern from *:
    const char *BITNET_VERSION  # of setup.py

BUILD_VERSION = BITNET_VERSION.decode()
"""The version of the package that the core was built for."""

FEATURES = {
    "avx2": CPU_AVX2,
    "avx512vnni": CPU_AVX512VNNI,
    "avx512vbmi": CPU_AVX512VBMI,
    "avxvnni": CPU_AVXVNNI,
    "neon": CPU_NEON,
    "neondot": CPU_NEONDOT,
}
"""Every feature a kernel can need, by name, as a bit."""

ISAS = {
    "avx512vbmi": CPU_AVX2 | CPU_AVX512VNNI | CPU_AVX512VBMI,
    "avx512vnni": CPU_AVX2 | CPU_AVX512VNNI,
    "avxvnni": CPU_AVX2 | CPU_AVXVNNI,
    "avx2": CPU_AVX2,
    "neondot": CPU_NEON | CPU_NEONDOT,
    "neon": CPU_NEON,
    "portable": 0,
}
"""Every instruction set by name, the larger first: the features it consists of."""

cdef uint32_t _present = bitnet_cpu_features()
cdef uint32_t _allowed = 0
cdef bint _is_chosen = False


cdef uint32_t allowed_features() except? 0:
    if not _is_chosen:
        _select("BITNET_ISA", os.environ.get("BITNET_ISA", "") or None)
    return _allowed


def features():
    """Name the features that this CPU has and this operating system supports.

    Returns
    -------
    tuple of str
        Keys of `FEATURES`.
    """
    return tuple(name for name, bit in FEATURES.items() if _present & bit)


def possible_isas():
    """Name the instruction sets that can be selected here.

    Returns
    -------
    tuple of str
        Keys of `ISAS`, the larger first; ``"portable"`` is always the last.
    """
    return tuple(name for name, needs in ISAS.items() if needs & _present == needs)


def isa():
    """Name the instruction set in use.

    Returns
    -------
    str
        The one selected; else the one ``BITNET_ISA`` names; else the largest possible.

    Raises
    ------
    ConfigurationError
        If ``BITNET_ISA`` names one that cannot run here.
    """
    cdef uint32_t allowed = allowed_features()
    return next(name for name, needs in ISAS.items() if needs == allowed)


def select_isa(name):
    """Use one instruction set from now on: kernels that need more are passed over.

    Parameters
    ----------
    name : str or None
        A key of `ISAS`; None for the largest possible.

    Raises
    ------
    ConfigurationError
        If this CPU cannot run it; what is in use stays.

    Notes
    -----
    Not to be called while another thread computes: it may use either set. Results are the same bits on each.
    """
    _select("isa", name)


def _select(source, name):
    global _allowed, _is_chosen
    possible = possible_isas()
    if name is None:
        name = possible[0]
    if name not in possible:
        raise ConfigurationError.isa(source, name, possible, tuple(ISAS))
    _allowed = ISAS[name]
    _is_chosen = True


def last_level_cache_bytes():
    """Read the size of the largest cache.

    Returns
    -------
    int
        Bytes; 32 MiB where the operating system does not tell.
    """
    sizes = []
    for path in glob.glob("/sys/devices/system/cpu/cpu0/cache/index*/size"):
        with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as file:
            sizes.append(int(file.read().strip().removesuffix("K")) << 10)
    return max(sizes, default=32 << 20)


def brand():
    """Name the CPU as its maker does.

    Returns
    -------
    str
    """
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith(("model name", "Hardware")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
