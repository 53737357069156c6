"""Native memory: the pool in which weights, scratch memory and caches live, and what it tells. The face of
``_core/memory.pyx``.

    pool = HybridMemoryPool.instance()
    before = pool.get_stats()
    with pool.track(tracebacks=True) as tracker:
        ...
    print(pool.get_stats() - before)
    print(tracker.report())
"""

from bitnet._core.blocks import MemoryHandle
from bitnet._core.memory import AllocationTracker, HybridMemoryPool
from bitnet._core.reports import BlockStats, Leak, LeakReport, MemoryPressure, MemoryStats, TagStats, system_memory
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
    "MemoryStats",
    "TagStats",
    "system_memory",
]
