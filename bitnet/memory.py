"""Native memory: the pool in which weights, scratch memory and caches live, and what it tells. The face of
``_core/memory.pyx``.

    pool = HybridMemoryPool.instance()
    before = pool.get_stats()
    with pool.track(tracebacks=True) as tracker:
        ...
    print(pool.get_stats() - before)
    print(tracker.report())
"""

import contextlib
import ctypes
import dataclasses
import mmap
import os
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from bitnet._core.blocks import MemoryHandle
from bitnet._core.memory import HybridMemoryPool
from bitnet._core.reports import BlockStats, Leak, LeakReport, MemoryPressure, MemoryStats, TagStats, system_memory
from bitnet._core.tracking import AllocationTracker
from bitnet._errors import bytes_text
from bitnet.config import MemoryPoolConfig

__all__ = [
    "AllocationTracker",
    "BlockStats",
    "HybridMemoryPool",
    "Leak",
    "LeakReport",
    "MemoryHandle",
    "MemoryPoolConfig",
    "MemoryPressure",
    "MemoryReport",
    "MemoryStats",
    "TagStats",
    "give_back_unused",
    "memory_report",
    "note_mapped",
    "system_memory",
]

KNOWN = ("weights", "head", "kv", "scratch")
PAGE = mmap.PAGESIZE
IS_PRESENT = np.uint64(1 << 63)  # of a page's entry in Linux's pagemap
ENTRIES = 1 << 16  # of it, read at once

_mapped: list[tuple[weakref.ref[npt.NDArray[Any]], str]] = []


def note_mapped(data: npt.NDArray[Any], tag: str) -> None:
    """Have a report count what stays in a mapped file, as long as the array lives.

    Parameters
    ----------
    data : ndarray
        A view of the mapping.
    tag : str
        What it is for.
    """
    _mapped[:] = [(one, name) for one, name in _mapped if one() is not None]
    _mapped.append((weakref.ref(data), tag))


@dataclasses.dataclass(frozen=True)
class MemoryReport:
    """Where the memory of this process is, in bytes. As text it is a table.

    Attributes
    ----------
    weights, head : int
        Packed weights and output heads: of the process's pool, and where they are used in a mapped file.
    kv, scratch : int
        Of the pool: pages of keys and values (also those that wait for the next sequence), and scratch memory.
    other : int
        Of the pool: all else.
    unused : int
        Of the pool: in no block, and perhaps never touched; `HybridMemoryPool.trim` gives it back.
    resident : dict of str to int
        What is in main memory: of each of the above; of other mapped ``files``, as libraries; and of what is
        ``outside``: Python, NumPy and other libraries. They sum to `rss`. Where the system does not tell of single
        pages, those of the above count as if all were there.
    rss : int
        What the process has in main memory; 0 where the system does not say, and `resident` is empty.
    mapped : int
        Of `weights` and `head`: what is in mapped files, which processes share.
    huge_pages : int
        Of `rss`: what really is in huge pages. (`MemoryStats.huge_page_bytes` says for what they were asked.)
    """

    weights: int
    head: int
    kv: int
    scratch: int
    other: int
    unused: int
    resident: dict[str, int]
    rss: int
    mapped: int
    huge_pages: int

    def __str__(self) -> str:
        rows = [("", "size", "in memory", "of rss")]
        for name in (*KNOWN, "other", "unused", "outside", "files"):
            here = self.resident.get(name)
            size = bytes_text(getattr(self, name)) if hasattr(self, name) else ""
            share = f"{here / self.rss:.1%}" if here is not None and self.rss else ""
            rows.append((name, size, "" if here is None else bytes_text(here), share))
        rows.append(("rss", "", bytes_text(self.rss), f"{bytes_text(self.huge_pages)} in huge pages"))
        return "\n".join(f"{name:<9}{size:>10}{here:>12}  {share:>6}".rstrip() for name, size, here, share in rows)


class _Pages:
    """Which pages of this process are in main memory, as Linux says."""

    def __init__(self, path: str) -> None:
        self._file: int | None = None
        with contextlib.suppress(OSError):
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)

    def resident(self, address: int, nbytes: int) -> int:
        first, end = address // PAGE, -(-(address + nbytes) // PAGE)
        if self._file is None or not nbytes:
            return nbytes
        count = 0
        for start in range(first, end, ENTRIES):
            entries = os.pread(self._file, 8 * (min(start + ENTRIES, end) - start), 8 * start)
            if not entries:
                return nbytes
            count += int(np.count_nonzero(np.frombuffer(entries, np.uint64) & IS_PRESENT))
        return min(nbytes, count * PAGE)


def memory_report(pool: HybridMemoryPool | None = None, proc: str = "/proc/self") -> MemoryReport:
    """Say where the memory of this process is.

    Parameters
    ----------
    pool : HybridMemoryPool, optional
        The process's, if not given.
    proc : str, optional
        Where Linux tells of a process.

    Returns
    -------
    MemoryReport
    """
    pool = pool or HybridMemoryPool.instance()
    stats, names = pool.get_stats(), {number: tag for tag, number in pool._tags.items()}
    sizes, here = dict.fromkeys((*KNOWN, "other"), 0), dict.fromkeys((*KNOWN, "other"), 0)
    for tag, found in stats.by_tag.items():
        sizes[tag if tag in KNOWN else "other"] += found.bytes
    here |= sizes  # of slots of slabs; large blocks are looked at one by one
    pages = _Pages(f"{proc}/pagemap")
    try:
        for number, address, nbytes in pool._large_blocks().tolist():
            name = names[number] if names[number] in KNOWN else "other"
            here[name] -= nbytes - pages.resident(address, nbytes)
        in_pool = sum(pages.resident(address, nbytes) for address, nbytes in pool._arenas().tolist())
        here = {name: max(0, value) for name, value in here.items()}
        here["unused"] = max(0, in_pool - sum(here.values()))
        mapped = in_files = 0
        for data, tag in [(one(), tag) for one, tag in _mapped]:
            if data is not None:
                some = pages.resident(data.ctypes.data, data.nbytes)
                mapped, in_files = mapped + data.nbytes, in_files + some
                sizes[tag], here[tag] = sizes[tag] + data.nbytes, here[tag] + some
    finally:
        pages.close()
    told = _told(f"{proc}/smaps_rollup") or _told(f"{proc}/status")
    rss = told.get("Rss", told.get("VmRSS", 0))
    of_files = rss - told["Anonymous"] if "Anonymous" in told else told.get("RssFile", 0) + told.get("RssShmem", 0)
    here["files"] = max(0, of_files - in_files)
    here["outside"] = rss - sum(here.values())
    return MemoryReport(**sizes, unused=stats.reserved - stats.allocated, resident=here if rss else {}, rss=rss,
                        mapped=mapped, huge_pages=told.get("AnonHugePages", 0))  # fmt: skip


def _told(path: str) -> dict[str, int]:
    """What a file of Linux says in kB, in bytes."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return {line.split(":")[0]: int(line.split()[1]) << 10 for line in file if line.endswith(" kB\n")}
    except OSError:
        return {}


def give_back_unused() -> None:
    """Give memory that nothing uses back to the system: of the pool, and what Python and NumPy have freed.

    The C library keeps tens of megabytes after large arrays; only glibc can be asked for them.
    """
    HybridMemoryPool.instance().trim()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
