"""Which packing is the faster on this machine: measured once, and remembered in the user's cache folder."""

import contextlib
import json
import logging
import operator
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from bitnet._core import cpu, matmul, threads
from bitnet._core import packing as packings
from bitnet._core.memory import new_block
from bitnet.errors import ConfigurationError

__all__ = ["PackingChoice", "choose_packing", "fastest_packing", "measure_packings", "remembered_choices"]

_log = logging.getLogger(__name__)

# A weight of BitNet-b1.58-2B-4T's width. So many rows that they are read from memory, not from a cache.
COLS = 2560
PATTERN_ROWS = 1024
LEAST_BYTES = 64 << 20
ROUNDS = 9


@dataclass(frozen=True)
class PackingChoice:
    """What was measured on this machine.

    Attributes
    ----------
    packing : str
        The one that multiplies one token faster; of two within 3 %, the one that takes less memory.
    weights_per_s : dict of str to float
        Of each packing, with weights from memory.
    num_threads : int
    kernels : list of str
        That were measured.
    cpu : str
    measured : str
        When, in UTC, as ISO 8601 writes it.
    """

    packing: str
    weights_per_s: dict[str, float]
    num_threads: int
    kernels: list[str]
    cpu: str
    measured: str


def choose_packing(
    shape: tuple[int, ...], group_size: int | None = None, num_threads: SupportsIndex | None = None
) -> str:
    """Choose a packing for one weight, or all weights of a model, on this machine.

    Parameters
    ----------
    shape : tuple of int
    group_size : int, optional
        Columns that share a scale.
    num_threads : int, optional
        Threads that will use it.

    Returns
    -------
    str
        Of a weight larger than the last-level cache, which is read from memory for each token, `fastest_packing`. Else
        ``"i2"``, which takes fewer instructions, and can have groups.
    """
    rows, cols = shape if len(shape) == 2 else (0, 0)
    is_streamed = rows * cols // 4 > cpu.last_level_cache_bytes()
    if group_size is not None or not is_streamed:
        return "i2"
    return fastest_packing(num_threads).packing


def fastest_packing(num_threads: SupportsIndex | None = None, measure: bool = False) -> PackingChoice:
    """Look the answer up, or measure it: half a second, once for a machine, its kernels and a number of threads.

    Parameters
    ----------
    num_threads : int, optional
        By default those that products take by default.
    measure : bool, optional
        Whether to measure again.

    Returns
    -------
    PackingChoice

    Raises
    ------
    ConfigurationError
        If `num_threads` is no whole number.
    """
    try:
        count = threads.default_num_threads() if num_threads is None else operator.index(num_threads)
    except TypeError:
        raise ConfigurationError.thread_count("num_threads", num_threads, threads.MAX_THREADS) from None
    names = [packings.kernel_name(name) for name in packings.PACKINGS]
    key = " ".join([cpu.BUILD_VERSION, *names, f"threads={count}", cpu.brand()])
    found = None if measure else _KNOWN.get(key) or _choices_of(_remembered()).get(key)
    if found is None:
        found = measure_packings(count)
        _log.debug("measured, for packing='auto': %s", found)
        _remember(key, found)
    _KNOWN[key] = found
    return found


def measure_packings(num_threads: int) -> PackingChoice:
    """Time the product of one token with each packing, in turn, its weights from memory.

    Parameters
    ----------
    num_threads : int

    Returns
    -------
    PackingChoice
    """
    rng = np.random.default_rng(0)
    codes = rng.integers(-1, 2, (PATTERN_ROWS, COLS), dtype=np.int8)
    x = rng.integers(-127, 128, (1, COLS), dtype=np.int8)
    patterns = {name: packings.pack_codes(codes, 1.0, name, None, num_threads) for name in packings.PACKINGS}
    smallest = min(pattern.nbytes for pattern in patterns.values())
    copies = -(-max(LEAST_BYTES, 2 * cpu.last_level_cache_bytes()) // smallest)
    weights = {name: _repeated(pattern, copies) for name, pattern in patterns.items()}
    y = np.empty((1, copies * PATTERN_ROWS), np.int32)
    seconds: dict[str, list[float]] = {name: [] for name in weights}
    for _ in range(ROUNDS + 1):  # the first one warms up
        for name, weight in weights.items():
            start = time.perf_counter()
            matmul.matmul_int(weight, x, y, num_threads=num_threads)
            seconds[name].append(time.perf_counter() - start)
    # The best, not the median: the answer is kept, and must not be that of a minute in which others used the machine.
    speeds = {name: y.size * COLS / min(times[1:]) for name, times in seconds.items()}
    best = max(speeds.values())
    good = [name for name, speed in speeds.items() if speed >= 0.97 * best]
    return PackingChoice(
        packing=min(good, key=lambda name: patterns[name].nbytes),
        weights_per_s=speeds,
        num_threads=num_threads,
        kernels=[packings.kernel_name(name) for name in weights],
        cpu=cpu.brand(),
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _repeated(pattern: packings.PackedWeight, copies: int) -> packings.PackedWeight:
    """A weight whose panels are those of another one, again and again, in memory of the pool."""
    block = new_block(copies * pattern.nbytes, "weights to measure with", "scratch")
    data = np.frombuffer(memoryview(block), np.uint8)
    data.reshape(copies, -1)[:] = pattern.packed_bytes
    return packings.view_packed_bytes(data, copies * PATTERN_ROWS, COLS, pattern.scale, pattern.packing)


# ---- what is remembered

_KNOWN: dict[str, PackingChoice] = {}


def _cache_file() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "bitnet" / "packing.json"


def remembered_choices() -> list[PackingChoice]:
    """List what has been measured on this machine, for all numbers of threads.

    Returns
    -------
    list of PackingChoice
    """
    return [one for one in _choices_of(_remembered()).values() if one.cpu == cpu.brand()]


def _remembered() -> dict[str, Any]:
    try:
        found = json.loads(_cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # none yet, damaged, or no home: then it is measured
        return {}
    return found if isinstance(found, dict) else {}


def _choices_of(found: dict[str, Any]) -> dict[str, PackingChoice]:
    """Those that are whole; a file that somebody edited is no reason not to load a model."""
    choices = {}
    for key, fields in found.items():
        with contextlib.suppress(TypeError):
            choice = PackingChoice(**fields)
            if choice.packing in packings.PACKINGS and isinstance(choice.weights_per_s, dict):
                choices[key] = choice
    return choices


def _remember(key: str, choice: PackingChoice) -> None:
    """Where nothing can be written it is measured again in the next process."""
    with contextlib.suppress(OSError, RuntimeError):
        path = _cache_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({**_remembered(), key: asdict(choice)}, file, indent=1)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
