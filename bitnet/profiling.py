"""Where the time of a model's steps goes: per operation of its program, beside the limits of the machine."""

import contextlib
import dataclasses
import importlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

from bitnet import machine, steps
from bitnet._core import program
from bitnet.errors import ConfigurationError, DeviceError

__all__ = ["OperationProfile", "Profile", "profile"]

LIMIT_BYTES = 256 << 20  # read to measure bandwidth: past any last-level cache of a desktop
REPEATS = 3
OVERHEAD = ("run: checks", "run: results")
RECORDING = "profile: recording"
GROUPINGS = ("operation", "kind", "layer")


@dataclasses.dataclass(frozen=True)
class OperationProfile:
    """What an operation, or a group of them, took.

    Attributes
    ----------
    name, kind : str
        Of the operation, which is named after its weights; of a group what it has in common, and how many kinds it has.
    calls : int
    seconds, share : float
        In all; and of all operations' seconds.
    bytes, macs : int
        Read, and multiply-accumulates done, in all.
    """

    name: str
    kind: str
    calls: int
    seconds: float
    share: float
    bytes: int
    macs: int

    @property
    def bytes_per_s(self) -> float:
        return self.bytes / self.seconds if self.seconds else 0.0

    @property
    def macs_per_s(self) -> float:
        return self.macs / self.seconds if self.seconds else 0.0


@dataclasses.dataclass(frozen=True)
class _Run:
    program: Any
    start_ns: int
    times: Any  # nanoseconds: the checks before, each operation, what is done with the logits
    tokens: int
    outputs: int
    attended: int  # positions, summed over the tokens
    read: int  # positions whose keys and values were read
    threads: int
    within: dict[int, tuple[int, int]]  # the two numbers of positions within a window
    thread: int
    recording_ns: int  # what this record itself took


@dataclasses.dataclass(frozen=True)
class _Step:
    start_ns: int
    spent: dict[str, int]  # nanoseconds: of `bitnet.steps`, but ``enter`` instead of ``run``
    run_ns: int
    thread: int

    @property
    def nanoseconds(self) -> int:
        return sum(self.spent.values()) + self.run_ns


class Profile:
    """What `profile` measured, run by run. It grows while the ``with`` lasts.

    Attributes
    ----------
    runs : int
        Runs of programs: one for each step of a generation, and for each piece of a prompt.
    tokens : int
        That went through them.
    wall_seconds : float
        Of the ``with``, with all that is done between runs: sampling, tokenizing, your own code.
    run_seconds : float
        Of the runs.
    step_seconds : float
        Of the steps of engines: runs, and what is done for them before and after, as sampling.
    """

    def __init__(self) -> None:
        self._runs: list[_Run] = []
        self._steps: list[_Step] = []
        self._last: dict[int, _Run] = {}  # of each thread
        self._started = time.perf_counter()
        self._wall: float | None = None
        self._limits: dict[int, tuple[float, float]] = {}

    def _add(
        self, program: Any, start_ns: int, times: Any, tokens: int, outputs: int, attended: int, read: int,
        threads: int, within: dict[int, tuple[int, int]],
    ) -> None:  # fmt: skip
        recording = max(0, time.perf_counter_ns() - start_ns - int(times.sum()))
        thread = threading.get_native_id()  # small: viewers of traces take 32 bits
        run = _Run(program, start_ns, times, tokens, outputs, attended, read, threads, within, thread, recording)
        self._runs.append(run)
        self._last[thread] = run

    def _add_step(self, start_ns: int, spent: dict[str, int]) -> None:
        run = self._last.pop(threading.get_native_id(), None)
        if run is None or run.start_ns < start_ns:  # its run began before the profile
            return
        inside = int(run.times.sum()) + run.recording_ns
        spent = {**spent, "enter": spent["run"] - inside}
        del spent["run"]
        self._steps.append(_Step(start_ns, spent, inside, run.thread))

    def _end(self) -> None:
        self._wall = time.perf_counter() - self._started

    @property
    def runs(self) -> int:
        return len(self._runs)

    @property
    def tokens(self) -> int:
        return sum(run.tokens for run in self._runs)

    @property
    def wall_seconds(self) -> float:
        return self._wall if self._wall is not None else time.perf_counter() - self._started

    @property
    def run_seconds(self) -> float:
        return sum(int(run.times.sum()) for run in self._runs) / 1e9

    @property
    def step_seconds(self) -> float:
        return sum(step.nanoseconds for step in self._steps) / 1e9

    @property
    def num_threads(self) -> int:
        return max((run.threads for run in self._runs), default=1)

    def operations(self, by: str = "operation") -> list[OperationProfile]:
        """List what was measured, the largest time first: operations, what a run does besides, and what the engine
        does besides for a step (``"engine: choose"`` is sampling), and the recording of all that. Together they are the
        whole of the steps.

        Parameters
        ----------
        by : {"operation", "kind", "layer"}, optional
            What to add up. What belongs to no layer, as the embedding, is a group of its own.

        Returns
        -------
        list of OperationProfile

        Raises
        ------
        ConfigurationError
            If there is no such grouping.
        """
        if by not in GROUPINGS:
            raise ConfigurationError.choice("by", by, GROUPINGS)
        found: dict[str, list[Any]] = {}
        for run in self._runs:
            nbytes, macs = run.program.work(run.tokens, run.outputs, run.attended, run.read, run.within)
            rows = [(OVERHEAD[0], "overhead", run.times[0], 0, 0)]
            rows += zip(run.program.names, run.program.kinds, run.times[1:-1], nbytes, macs, strict=True)
            rows += [(OVERHEAD[1], "overhead", run.times[-1], 0, 0), (RECORDING, "profile", run.recording_ns, 0, 0)]
            _add_up(rows, by, found)
        for step in self._steps:
            rows = [(f"engine: {name}", "engine", ns, 0, 0) for name, ns in step.spent.items()]
            _add_up(rows, by, found)
        total = sum(entry[2] for entry in found.values()) or 1
        rows_found = [
            OperationProfile(key, next(iter(kinds)) if len(kinds) == 1 else f"{len(kinds)} kinds", calls, ns / 1e9,
                             ns / total, nbytes, macs)
            for key, (kinds, calls, ns, nbytes, macs) in found.items()
        ]  # fmt: skip
        return sorted(rows_found, key=lambda row: -row.seconds)

    def limits(self, num_threads: int | None = None) -> tuple[float, float]:
        """Measure, once, what the machine can do.

        Parameters
        ----------
        num_threads : int, optional
            As many as the runs used, if not given.

        Returns
        -------
        bytes_per_s, macs_per_s : float
            Read bandwidth of main memory; and the peak of the multiply instruction, 0 for portable code.
        """
        threads = num_threads or self.num_threads
        if threads not in self._limits:
            buffer = machine.ReadBandwidth(LIMIT_BYTES)
            read = sorted(buffer.read(threads) for _ in range(REPEATS))[REPEATS // 2]
            peak = sorted(machine.multiply_peak(threads) or 0.0 for _ in range(REPEATS))[REPEATS // 2]
            self._limits[threads] = read, peak
        return self._limits[threads]

    def table(self, by: str = "operation", limit: int | None = 30) -> str:
        """Write the times as a table, with the shares of the machine's limits, which are measured for it.

        Parameters
        ----------
        by : {"operation", "kind", "layer"}, optional
        limit : int, optional
            The most rows; None for all.

        Returns
        -------
        str
        """
        rows = self.operations(by)
        if not rows:
            return "no run of a model was measured"
        read, peak = self.limits()
        shown = rows if limit is None else rows[:limit]
        cells = [["time", "share", "calls", "us/call", "MB", "GB/s", "of limit", "GMAC/s", "of limit", "kind", by]]
        cells += [
            [
                f"{row.seconds * 1e3:.2f} ms", f"{row.share:.1%}", str(row.calls),
                f"{row.seconds / row.calls * 1e6:.1f}",
                f"{row.bytes / 1e6:.1f}", f"{row.bytes_per_s / 1e9:.1f}", f"{row.bytes_per_s / read:.0%}",
                f"{row.macs_per_s / 1e9:.1f}", f"{row.macs_per_s / peak:.0%}" if peak else "", row.kind, row.name,
            ]
            for row in shown
        ]  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(cell.ljust(width) if i > 8 else cell.rjust(width)
                           for i, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
                 for line in cells]  # fmt: skip
        if len(shown) < len(rows):
            rest = sum(row.seconds for row in rows[len(shown) :])
            lines.append(f"... and {len(rows) - len(shown)} more, {rest * 1e3:.2f} ms")
        lines.append(
            f"{self.runs} runs of {self.tokens} tokens, {self.run_seconds * 1e3:.2f} ms; {len(self._steps)} steps, "
            f"{self.step_seconds * 1e3:.2f} ms of {self.wall_seconds * 1e3:.2f} ms; {self.num_threads} threads; limits "
            f"{read / 1e9:.1f} GB/s"
            + (f", {peak / 1e9:.0f} GMAC/s" if peak else "")
        )
        return "\n".join(lines)

    def to_chrome_trace(self, path: str | os.PathLike[str]) -> None:
        """Write a file that trace viewers open: ``chrome://tracing``, Perfetto.

        Parameters
        ----------
        path : str
            Where to; a file there is replaced.
        """
        first = min([*(run.start_ns for run in self._runs), *(step.start_ns for step in self._steps)], default=0)
        events = list(self._step_events(first))
        for number, run in enumerate(self._runs):
            where = {"ph": "X", "pid": os.getpid(), "tid": run.thread}
            at = (run.start_ns - first) / 1e3
            arguments = {"tokens": run.tokens, "outputs": run.outputs, "threads": run.threads}
            events.append({**where, "name": f"run {number}", "cat": "run", "ts": at, "dur": int(run.times.sum()) / 1e3,
                           "args": arguments})  # fmt: skip
            nbytes, macs = run.program.work(run.tokens, run.outputs, run.attended, run.read, run.within)
            names = [OVERHEAD[0], *run.program.names, OVERHEAD[1]]
            kinds = ["overhead", *run.program.kinds, "overhead"]
            work = [(0, 0), *zip(nbytes.tolist(), macs.tolist(), strict=True), (0, 0)]
            for name, kind, ns, (some_bytes, some_macs) in zip(names, kinds, run.times.tolist(), work, strict=True):
                events.append({**where, "name": name, "cat": kind, "ts": at, "dur": ns / 1e3,
                               "args": {"bytes": some_bytes, "macs": some_macs}})  # fmt: skip
                at += ns / 1e3
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"traceEvents": events, "displayTimeUnit": "ms"}, file)

    def _step_events(self, first: int) -> Iterator[dict[str, Any]]:
        for number, step in enumerate(self._steps):
            where = {"ph": "X", "pid": os.getpid(), "tid": step.thread, "args": {}}
            at = (step.start_ns - first) / 1e3
            yield {**where, "name": f"step {number}", "cat": "step", "ts": at, "dur": step.nanoseconds / 1e3}
            for name in ("gather", "choose", "hand out"):  # the run is between the first two
                ns = step.spent[name]
                yield {**where, "name": f"engine: {name}", "cat": "engine", "ts": at, "dur": ns / 1e3}
                at += (ns + (step.spent["enter"] + step.run_ns if name == "gather" else 0)) / 1e3

    def plot(self, path: str | os.PathLike[str], by: str = "kind") -> None:
        """Draw the shares as bars into a file, in the format of its suffix; with matplotlib (the extra ``plot``).

        Parameters
        ----------
        path : str
            As ``profile.png`` or ``.svg``.
        by : {"operation", "kind", "layer"}, optional

        Raises
        ------
        DeviceError
            If matplotlib is not installed.
        """
        try:
            figures: Any = importlib.import_module("matplotlib.figure")
        except ImportError as error:
            raise DeviceError.missing_extra("matplotlib", "plot") from error
        rows = self.operations(by)[:40][::-1]
        figure = figures.Figure(figsize=(9, 1.2 + 0.26 * len(rows)), layout="constrained")
        axes = figure.subplots()
        axes.barh([row.name for row in rows], [row.seconds * 1e3 for row in rows])
        axes.set_xlabel("ms")
        axes.set_title(f"{self.runs} runs of {self.tokens} tokens, by {by}")
        figure.savefig(path)


def _add_up(rows: list[tuple[str, str, int, int, int]], by: str, found: dict[str, list[Any]]) -> None:
    for name, kind, ns, some_bytes, some_macs in rows:
        key = {"operation": name, "kind": kind, "layer": _layer_of(name)}[by]
        entry = found.setdefault(key, [set(), 0, 0, 0, 0])
        entry[0].add(kind)
        for i, value in enumerate((1, ns, some_bytes, some_macs), 1):
            entry[i] += int(value)


def _layer_of(name: str) -> str:
    found = re.match(r"(.*?\.\d+)\.", name)
    return found[1] if found else name


@contextlib.contextmanager
def profile() -> Iterator[Profile]:
    """Measure every operation of the models that run within a ``with``, in any thread.

    Times are taken by the native code, one reading of a clock (about 25 ns) an operation. Nothing else changes. Without
    a profile nothing is measured, at one branch an operation.

    Yields
    ------
    Profile

    Examples
    --------
    ::

        with bitnet.profile() as p:
            model.generate("Once upon a time")
        print(p.table(by="kind"))
        p.to_chrome_trace("trace.json")
    """
    found = Profile()
    program.add_recorder(found._add)
    steps.add_recorder(found._add_step)
    try:
        yield found
    finally:
        found._end()
        steps.remove_recorder(found._add_step)
        program.remove_recorder(found._add)
