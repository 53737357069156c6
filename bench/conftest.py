"""Fixtures, and the table at the end. `bench/README.md` says what the columns mean.

A limit (read bandwidth, multiply peak) is taken before every round of what it is the limit of, on the same threads:
neighbours on a shared machine then slow both.
"""

import gc
import statistics
import subprocess

import pytest

from bitnet import machine

ROWS = []


@pytest.fixture(scope="session", autouse=True)
def quiet():
    """No garbage collection while a clock runs."""
    gc.collect()
    gc.freeze()
    gc.disable()


@pytest.fixture(scope="session")
def bandwidth():
    """The read bandwidth of DRAM, in bytes per second, when called with a number of threads."""
    buffer = machine.ReadBandwidth(1 << 29)
    return buffer.read


@pytest.fixture
def isa(request):
    """Selects an instruction set for one benchmark."""
    name = getattr(request, "param", None)
    machine.select_isa(name)
    yield name or machine.describe().isa
    machine.select_isa(None)


@pytest.fixture
def measure(benchmark, request):
    """Time a function against its limits, taken in turn with it.

    ``columns`` describe the function in the table, ``figures`` makes more columns of its median seconds. ``limits`` is
    a dict of a name to a function that returns the seconds the work would take at that limit, now. The ratio of the
    largest limit to the time, by round, is the share of the limit that was reached. A call does ``per_call`` things.
    """

    def run(function, *, group, columns, figures=None, limits=None, rounds=9, per_call=1):
        limits = limits or {}
        taken = {name: [] for name in limits}

        def take():
            for name, limit in limits.items():
                taken[name].append(limit())

        function()
        benchmark.group = group
        benchmark.pedantic(function, setup=take, rounds=rounds, iterations=1)
        if benchmark.disabled:
            return
        seconds = benchmark.stats.stats.data
        if limits:
            bounds = [max(values) for values in zip(*taken.values(), strict=True)]
            shares = [bound / second for bound, second in zip(bounds, seconds, strict=True)]
            benchmark.extra_info["share of limit"] = statistics.median(shares)
            columns = columns | {"limit": max(taken, key=lambda name: statistics.median(taken[name])),
                                 "of limit": f"{statistics.median(shares):.2f}"}
        median = statistics.median(seconds)
        quarter = statistics.quantiles(seconds, n=4)
        columns = columns | {
            "time": f"{median / per_call * 1e6:.1f} us",
            "spread": f"{(quarter[2] - quarter[0]) / median:.0%}",
        }
        if figures is not None:
            columns = columns | figures(median)
        benchmark.extra_info.update(columns)
        benchmark.extra_info["correct"] = True
        ROWS.append((group, columns))

    return run


@pytest.fixture
def tell(benchmark):
    """Put a row into the table at the end: its group, and its columns."""

    def put(group, columns):
        benchmark.extra_info.setdefault("rows", []).append(columns)
        ROWS.append((group, columns))

    return put


def pytest_terminal_summary(terminalreporter):
    groups = {}
    for group, columns in ROWS:
        groups.setdefault(group, []).append(columns)
    for group, rows in groups.items():
        names = list(dict.fromkeys(name for columns in rows for name in columns))
        table = [names] + [[str(columns.get(name, "")) for name in names] for columns in rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(names))]
        terminalreporter.write_line(f"\n{group}")
        for row in table:
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            terminalreporter.write_line("  " + line.rstrip())
    found = machine.describe()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    terminalreporter.write_line(
        f"\n{found.cpu}, {found.cpus} CPUs, {found.isa}, {found.last_level_cache_bytes >> 20} MiB last-level cache, "
        f"huge pages {found.huge_pages}, {found.system}, commit {commit.stdout.strip() or 'unknown'}"
    )
