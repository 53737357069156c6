"""What the pool costs: allocations against malloc and NumPy, tracking against none, huge pages against small."""

import itertools
import statistics
import time

import numpy as np
import pytest

import bitnet
from bitnet import machine
from bitnet._core import probe

PAIRS = 200_000
SIZES = (64, 1000, 4096, 100_000, 2 << 20)
READ_BYTES = 1 << 30


def python_pairs(call, count=PAIRS // 4):
    """Seconds a pair of an allocation from Python and its end."""
    loop = itertools.repeat(None, count)
    start = time.perf_counter()
    for _ in loop:
        call()
    return (time.perf_counter() - start) / count


def in_turn(functions, rounds=9):
    """The median seconds of each function, called in turn; and the median ratio of each to the last."""
    taken = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            taken[name].append(function())
    *_, last = taken
    ratios = {name: statistics.median(a / b for a, b in zip(values, taken[last], strict=True))
              for name, values in taken.items()}  # fmt: skip
    return {name: (statistics.median(values), ratios[name]) for name, values in taken.items()}


def tell_all(tell, group, found, last):
    for name, (seconds, ratio) in found.items():
        tell(group, {"what": name, "ns": f"{seconds * 1e9:.0f}", f"of {last}": f"{ratio:.2f}"})


@pytest.mark.parametrize("nbytes", SIZES)
def test_pairs_from_cython(benchmark, tell, nbytes):
    """Target: a small pair below 100 ns."""
    count = PAIRS if nbytes <= 4096 else PAIRS // 20
    functions = {
        "pool": lambda: probe.block_pairs(nbytes, count),
        "malloc": lambda: probe.malloc_pairs(nbytes, count),
    }
    benchmark.pedantic(lambda: probe.block_pairs(nbytes, 100), rounds=1)
    if not benchmark.disabled:
        tell_all(tell, f"allocate and free {nbytes} bytes, from Cython", in_turn(functions), "malloc")


@pytest.mark.parametrize("nbytes", SIZES)
def test_pairs_from_python(benchmark, tell, nbytes):
    """Target: no slower than np.empty."""
    pool = bitnet.HybridMemoryPool()
    functions = {
        "pool.allocate": lambda: python_pairs(lambda: pool.allocate(nbytes)),
        "np.empty": lambda: python_pairs(lambda: np.empty(nbytes, np.uint8)),
    }
    benchmark.pedantic(lambda: pool.allocate(nbytes), rounds=1)
    if not benchmark.disabled:
        tell_all(tell, f"allocate and free {nbytes} bytes, from Python", in_turn(functions), "np.empty")


def test_tracking(benchmark, tell):
    """Target: with counts within 10 % of off. Blocks that live, so that the allocation counts, and then their end."""
    levels = ("tracebacks", "counts", "off")
    pools = {level: bitnet.HybridMemoryPool(bitnet.MemoryPoolConfig(tracking=level)) for level in levels}

    def run(pool):
        kept = [None] * 10_000
        allocate = pool.allocate
        start = time.perf_counter()
        for i in range(len(kept)):
            kept[i] = allocate(256)
        return (time.perf_counter() - start) / len(kept)

    benchmark.pedantic(lambda: run(pools["off"]), rounds=1)
    if not benchmark.disabled:
        # Tracebacks by themselves: they leave the caches full of something else.
        for level in ("counts", "tracebacks"):
            pair = {one: lambda pool=pools[one]: run(pool) for one in (level, "off")}
            tell_all(tell, f"allocate 256 bytes from Python, tracking {level}", in_turn(pair, rounds=21), "off")


def test_reading_huge_pages(benchmark, tell):
    """1 GiB in 2 MiB pages against 4 KiB pages, read in turn."""
    buffers = {}
    for name, is_huge in (("2 MiB pages", True), ("4 KiB pages", False)):
        pool = bitnet.HybridMemoryPool(bitnet.MemoryPoolConfig(huge_pages=is_huge))
        buffers[name] = machine.ReadBandwidth(block=pool.allocate(8 << 20 if benchmark.disabled else READ_BYTES))
    benchmark.pedantic(lambda: buffers["2 MiB pages"].read(1), rounds=1)
    if benchmark.disabled:
        return
    for threads in sorted({1, machine.default_num_threads()}):
        found = in_turn({name: lambda b=b, n=threads: READ_BYTES / b.read(n) for name, b in buffers.items()}, rounds=9)
        for name, (seconds, ratio) in found.items():
            columns = {"threads": threads, "pages": name, "GB/s": f"{READ_BYTES / seconds / 1e9:.1f}",
                       "of the time with 4 KiB": f"{ratio:.2f}"}  # fmt: skip
            tell("read 1 GiB", columns)
