"""Native memory: the pool in which weights, scratch memory and caches live, and what it tells. The face of
``_core/memory.pyx``.

    pool = HybridMemoryPool.instance()
    before = pool.get_stats()
    with pool.track(tracebacks=True) as tracker:
        ...
    print(pool.get_stats() - before)
    print(tracker.report())
"""

import ctypes
import dataclasses

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
    "system_memory",
]

KNOWN = ("weights", "head", "kv", "scratch")


@dataclasses.dataclass(frozen=True)
class MemoryReport:
    """Where the memory of this process is, in bytes. As text it is a table.

    Attributes
    ----------
    weights, head, kv, scratch : int
        Of the process's pool: packed weights, output heads, pages of keys and values (also those that wait for the next
        sequence), and scratch memory.
    other : int
        Of the pool: all else.
    unused : int
        Of the pool: in no block, and perhaps never touched; `HybridMemoryPool.trim` gives it back.
    rss : int
        What the process has in main memory, 0 where the system does not say.
    mapped_files : int
        Of `rss`: pages of files, as checkpoints and libraries, which the system can drop.
    outside : int
        Of `rss`: what is neither files nor in the pool, which is Python, NumPy and other libraries. Memory of the pool
        that was never touched is in no main memory, so this is a lower bound.
    """

    weights: int
    head: int
    kv: int
    scratch: int
    other: int
    unused: int
    rss: int
    mapped_files: int
    outside: int

    def __str__(self) -> str:
        rows = [(name, getattr(self, name)) for name in (*KNOWN, "other", "unused", "outside", "mapped_files", "rss")]
        share = max(self.rss, 1)
        return "\n".join(
            f"{name.replace('_', ' '):<13}{bytes_text(value):>10}"
            + (f"{value / share:>8.1%}" if name not in ("unused", "rss") else "")
            for name, value in rows
        )


def memory_report(pool: HybridMemoryPool | None = None, status: str = "/proc/self/status") -> MemoryReport:
    """Say where the memory of this process is.

    Parameters
    ----------
    pool : HybridMemoryPool, optional
        The process's, if not given.
    status : str, optional
        Where Linux tells of a process's memory.

    Returns
    -------
    MemoryReport
    """
    stats = (pool or HybridMemoryPool.instance()).get_stats()
    tags = {name: tag.bytes for name, tag in stats.by_tag.items()}
    known = {name: tags.get(name, 0) for name in KNOWN}
    fields: dict[str, int] = {}
    try:
        with open(status, encoding="ascii", errors="replace") as file:
            fields = {line.split(":")[0]: int(line.split()[1]) << 10 for line in file if line.endswith(" kB\n")}
    except OSError:
        pass
    files = fields.get("RssFile", 0) + fields.get("RssShmem", 0)
    rss = fields.get("VmRSS", 0)
    return MemoryReport(
        **known, other=stats.allocated - sum(known.values()), unused=stats.reserved - stats.allocated, rss=rss,
        mapped_files=files, outside=max(0, rss - files - stats.allocated),
    )  # fmt: skip


def give_back_unused() -> None:
    """Give memory that nothing uses back to the system: of the pool, and what Python and NumPy have freed.

    The C library keeps tens of megabytes after large arrays; only glibc can be asked for them.
    """
    HybridMemoryPool.instance().trim()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
