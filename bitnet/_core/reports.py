"""What the memory pool tells: statistics, leaks, pressure; and what the system says about its memory."""

import contextlib
import dataclasses
import datetime
import linecache
from collections.abc import Mapping
from typing import Any, Self

from bitnet._errors import bytes_text

__all__ = [
    "BlockStats",
    "Leak",
    "LeakReport",
    "MemoryPressure",
    "MemoryStats",
    "TagStats",
    "huge_page_mode",
    "system_memory",
]


def _difference(mine: Any, other: Any) -> Any:
    """Numbers minus numbers, through dataclasses and mappings; of what is no number, the first."""
    if dataclasses.is_dataclass(mine) and not isinstance(mine, type):
        names = [field.name for field in dataclasses.fields(mine)]
        changes = {name: _difference(getattr(mine, name), getattr(other, name)) for name in names}
        return dataclasses.replace(mine, **changes)
    if isinstance(mine, Mapping):
        keys = sorted({*mine, *other})
        found = {key: _difference(mine.get(key, _like(other, key)), other.get(key, _like(mine, key))) for key in keys}
        return {key: value for key, value in found.items() if value not in (0, TagStats(0, 0))}
    return mine - other if isinstance(mine, int | float) else mine


def _like(mapping: Mapping[Any, Any], key: Any) -> Any:
    return TagStats(0, 0) if isinstance(mapping.get(key), TagStats) else 0


@dataclasses.dataclass(frozen=True)
class TagStats:
    """Live blocks of one tag.

    Attributes
    ----------
    bytes, blocks : int
    """

    bytes: int
    blocks: int


@dataclasses.dataclass(frozen=True)
class BlockStats:
    """Blocks of one kind, small or large.

    Attributes
    ----------
    bytes, active : int
        Of live blocks: their bytes, and how many there are.
    allocation_count, deallocation_count : int
    """

    bytes: int
    active: int
    allocation_count: int
    deallocation_count: int


@dataclasses.dataclass(frozen=True)
class MemoryStats:
    """A reading of a pool. Readings subtract: ``after - before`` has the difference of every number.

    Attributes
    ----------
    allocated, peak : int
        Bytes of live blocks, as they were asked for; and the most there have been.
    active : int
        Live blocks.
    allocation_count, deallocation_count, failed_count : int
        Blocks ever allocated and freed, and allocations that raised.
    reserved : int
        Bytes of address space that the pool has from the system; what was never touched takes no memory.
    huge_page_bytes : int
        Of `reserved`, bytes for which the system took the advice to use huge pages; 0 where it gives none.
    fragmentation : float
        The share of `reserved` that is in no live block.
    small_block, large_block : BlockStats
        Blocks that are slots of a slab, and those that are extents of their own.
    size_distribution : dict of int to int
        Live blocks by size: of at most so many bytes, and more than half of that. Small ones by their slots, which are
        up to an eighth larger, and larger still of a block that was resized where it is.
    by_tag : dict of str to TagStats
        Live blocks by what they are for.
    last_updated : datetime.datetime
        When it was read, in UTC; of a difference, the time of the first.
    """

    allocated: int
    peak: int
    active: int
    allocation_count: int
    deallocation_count: int
    failed_count: int
    reserved: int
    huge_page_bytes: int
    fragmentation: float
    small_block: BlockStats
    large_block: BlockStats
    size_distribution: dict[int, int]
    by_tag: dict[str, TagStats]
    last_updated: datetime.datetime

    def __sub__(self, other: "MemoryStats") -> Self:
        if not isinstance(other, MemoryStats):
            return NotImplemented
        found: Self = _difference(self, other)
        return found


@dataclasses.dataclass(frozen=True)
class Leak:
    """A block that is still live.

    Attributes
    ----------
    size : int
        In bytes.
    age_s : float or None
        Seconds since its allocation, within some milliseconds; None where the pool was not tracked then.
    tag : str
    traceback : tuple of str
        Where it was allocated, as lines of a Python traceback, the most recent call last; empty where that was not
        kept.
    """

    size: int
    age_s: float | None
    tag: str
    traceback: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class LeakReport:
    """Blocks that were allocated while a pool was tracked, and are still live. As text it lists them.

    Attributes
    ----------
    leaks : tuple of Leak
        The oldest first.
    count, bytes : int
        How many there are, and their bytes.
    by_tag : dict of str to TagStats
    """

    leaks: tuple[Leak, ...]

    @property
    def count(self) -> int:
        return len(self.leaks)

    @property
    def bytes(self) -> int:
        return sum(leak.size for leak in self.leaks)

    @property
    def by_tag(self) -> dict[str, TagStats]:
        tags = sorted({leak.tag for leak in self.leaks})
        sizes = {tag: [leak.size for leak in self.leaks if leak.tag == tag] for tag in tags}
        return {tag: TagStats(sum(found), len(found)) for tag, found in sizes.items()}

    def __str__(self) -> str:
        if not self.leaks:
            return "no leaks"
        lines = [f"{self.count} live block{'s' * (self.count > 1)}, {bytes_text(self.bytes)}"]
        for leak in self.leaks:
            age = "" if leak.age_s is None else f", {leak.age_s:.3f} s old"
            lines.append(f"  {bytes_text(leak.size)} for {leak.tag}{age}")
            lines += [f"    {line}" for line in leak.traceback]
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class MemoryPressure:
    """What a pressure callback is told.

    Attributes
    ----------
    cause : {"limit", "system", "failure"}
        The pool's limit is near, the machine's or the control group's memory is, or an allocation failed.
    level : float
        The share at which the callback was registered.
    used, total : int
        Bytes in use, and of how many: of the limit, or of the memory of the machine or group.
    needed : int
        Bytes of the allocation that fails unless memory becomes free; 0 for another cause.
    """

    cause: str
    level: float
    used: int
    total: int
    needed: int = 0


def written_frames(frames: tuple[tuple[Any, int], ...]) -> tuple[str, ...]:
    """Write (code, line number) pairs, the innermost first, as a traceback does."""
    lines = []
    for code, number in reversed(frames):
        lines.append(f"{code.co_filename}:{number}, in {code.co_name}")
        if text := linecache.getline(code.co_filename, number).strip():
            lines.append(f"  {text}")
    return tuple(lines)


# ---- the system


def huge_page_mode(
    path: str = "/sys/kernel/mm/transparent_hugepage/enabled", status: str = "/proc/self/status"
) -> str:
    """Read what the system does with memory that would like huge pages.

    Parameters
    ----------
    path, status : str, optional
        Where Linux says so, and where it says what it does for this process.

    Returns
    -------
    str
        ``always``, ``madvise``, ``never``, ``disabled`` (for this process, by ``prctl``) or ``unknown``.
    """
    with contextlib.suppress(OSError), open(status, encoding="ascii", errors="replace") as file:
        if any(line.split() == ["THP_enabled:", "0"] for line in file):
            return "disabled"
    try:
        with open(path, encoding="ascii") as file:
            return file.read().partition("[")[2].partition("]")[0] or "unknown"
    except OSError:
        return "unknown"


def system_memory(
    proc: str = "/proc/self/cgroup", mount: str = "/sys/fs/cgroup", info: str = "/proc/meminfo"
) -> tuple[int, int]:
    """Read how much memory is in use, and of how much: of the machine, or of the control group nearest its limit.

    Parameters
    ----------
    proc, mount, info : str, optional
        Where Linux shows the groups of a process, where they are mounted, and the machine's memory.

    Returns
    -------
    used, total : int
        In bytes; both 0 where the system does not say.
    """
    found = [pair for pair in (_machine_memory(info), *_group_memory(proc, mount)) if pair[1] > 0]
    return max(found, key=lambda pair: pair[0] / pair[1], default=(0, 0))


def _machine_memory(info: str) -> tuple[int, int]:
    try:
        with open(info, encoding="ascii", errors="replace") as file:
            fields = {line.split(":")[0]: int(line.split()[1]) << 10 for line in file if line.count(" kB")}
    except (OSError, ValueError, IndexError):
        return 0, 0
    total = fields.get("MemTotal", 0)
    return total - fields.get("MemAvailable", total), total


def _group_memory(proc: str, mount: str) -> list[tuple[int, int]]:
    """Of each group above this process that has a limit: bytes in use, without the cache of files, and the limit."""
    try:
        with open(proc, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        root = f"{mount}/{controllers}" if controllers else mount
        names = ("memory.usage_in_bytes", "memory.limit_in_bytes") if controllers else ("memory.current", "memory.max")
        parts = [part for part in group.split("/") if part]
        for depth in range(len(parts), -1, -1):
            folder = root + "".join(f"/{part}" for part in parts[:depth])
            used, total = (_number_in(f"{folder}/{name}") for name in names)
            if 0 < total < 1 << 60:  # version 1 writes "no limit" as nearly 2**63
                found.append((max(0, used - _inactive_file_bytes(f"{folder}/memory.stat")), total))
    return found


def _number_in(path: str) -> int:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):  # not here, or "max"
        return 0


def _inactive_file_bytes(path: str) -> int:
    try:
        with open(path, encoding="ascii") as file:
            fields = dict(line.split(maxsplit=1) for line in file)
        return int(fields.get("total_inactive_file", fields.get("inactive_file", 0)))
    except (OSError, ValueError):
        return 0
