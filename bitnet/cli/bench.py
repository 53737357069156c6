"""Measure ternary products against read bandwidth, multiply peak and NumPy.

A product is compared with NumPy, bit for bit, before it is timed. Its limits are taken in turn with it, round by round,
on as many threads: neighbours on a shared machine then slow both. One token is bound by reading the weights, many
tokens by multiplying.
"""

import argparse
import contextlib
import itertools
import json
import math
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import bitnet
from bitnet import TernaryWeight, machine

__all__ = ["Result", "add_arguments", "run_kernels"]

# Of BitNet-b1.58-2B-4T: the query and output projections, gate and up, down.
SHAPES = ((2560, 2560), (6912, 2560), (2560, 6912))
TOKENS = (1, 8, 128)

# A round is long enough for the clock and for a neighbour's interruption to be a small part of it.
ROUND_S, QUICK_ROUND_S = 0.02, 0.005
ROUNDS, FEWEST_ROUNDS = 13, 3
MAX_MATRICES = 4096

HEADINGS = ("shape", "packing", "kernel", "threads", "tokens", "time", "min..max", "GB/s", "of read", "GMAC/s",
            "of peak")  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What was measured of one product.

    Attributes
    ----------
    shape : tuple of int
        (rows, cols) of the weight.
    packing, kernel, isa : str
        The kernel is that of the packing where `isa` is selected. NumPy's product has packing ``"float32"``, kernel
        ``"NumPy @"`` and no `isa`.
    threads : int or None
        None for NumPy, whose BLAS chooses.
    tokens : int
    correct : bool
        Whether the product is, bit for bit, the one that NumPy computes; where not, a kernel was not timed.
    weight_bytes : int
        Bytes of one packed matrix.
    matrices : int
        How many distinct ones were read in turn.
    products_per_round : int
    seconds : list of float
        Of one product, by round.
    read_bytes_per_s, multiply_accumulates_per_s : list of float
        The limits, by round; empty where they were not measured.
    """

    shape: tuple[int, int]
    packing: str
    kernel: str
    isa: str | None
    threads: int | None
    tokens: int
    correct: bool
    weight_bytes: int
    matrices: int
    products_per_round: int
    seconds: list[float]
    read_bytes_per_s: list[float]
    multiply_accumulates_per_s: list[float]

    def figures(self) -> dict[str, float | None]:
        """Compute what the table shows.

        Returns
        -------
        dict
            Medians over the rounds; a share is that of the limit of its round. None where there is none.
        """
        work = math.prod(self.shape) * self.tokens
        reads = [self.weight_bytes / s / limit for s, limit in zip(self.seconds, self.read_bytes_per_s, strict=False)]
        macs = [work / s / limit for s, limit in zip(self.seconds, self.multiply_accumulates_per_s, strict=False)]
        median = statistics.median(self.seconds) if self.seconds else None
        return {
            "median_s": median,
            "weight_bytes_per_s": self.weight_bytes / median if median else None,
            "share_of_read_bandwidth": statistics.median(reads) if reads else None,
            "multiply_accumulates_per_s": work / median if median else None,
            "share_of_multiply_peak": statistics.median(macs) if macs else None,
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bitnet bench kernels``.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    """
    parser.add_argument("--shape", action="append", metavar="ROWSxCOLS",
                        help="of the weight; repeatable (default: the three of BitNet-b1.58-2B-4T)")
    parser.add_argument("--packing", action="append", metavar="NAME", help="repeatable (default: every packing)")
    parser.add_argument("--threads", action="append", type=int, metavar="N", help="repeatable (default: 1 and all)")
    parser.add_argument("--tokens", action="append", type=int, metavar="N", help="repeatable (default: 1, 8, 128)")
    parser.add_argument("--isa", action="append", metavar="NAME",
                        help="instruction set; repeatable (default: the one in use)")
    parser.add_argument("--working-set-mb", type=int, default=256, metavar="N",
                        help="MiB of weights in rotation, at least twice the last-level cache (default: 256)")
    parser.add_argument("--quick", action="store_true", help="one shape and short rounds: a few seconds")
    parser.add_argument("--json", metavar="FILE", help="write every measurement and the machine to a file")
    parser.set_defaults(run=run_kernels, parser=parser)  # fmt: skip


def run_kernels(args: argparse.Namespace) -> int:
    """Measure, and print the table.

    Parameters
    ----------
    args : argparse.Namespace

    Returns
    -------
    int
        1 where a product is not what NumPy computes, else 0.
    """
    before = machine.describe().isa
    try:
        return _run_kernels(_Plan(args))
    finally:
        if args.isa:
            machine.select_isa(before)


class _Plan:
    """The checked arguments."""

    def __init__(self, args: argparse.Namespace) -> None:
        refuse = args.parser.error
        possible = machine.possible_isas()
        for name in args.isa or ():
            if name not in possible:
                refuse(f"--isa is '{name}'; this CPU can run {', '.join(possible)}")
        if args.isa:
            machine.select_isa(args.isa[0])
        known = [name for name in machine.kernels() if name != "quant"]
        self.packings = _once(args.packing) or known
        for name in self.packings:
            if name not in known:
                refuse(f"--packing is '{name}'; it must be one of {', '.join(known)}")
        shapes = []
        for text in args.shape or ():
            parts = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", text)
            if parts is None:
                refuse(f"--shape is '{text}'; it must be ROWSxCOLS, as 6912x2560")
            else:
                shapes.append((int(parts[1]), int(parts[2])))
        self.shapes = _once(shapes) or (SHAPES[:1] if args.quick else SHAPES)
        for option in ("threads", "tokens"):
            if min(getattr(args, option) or [1]) < 1:
                refuse(f"--{option} is {min(getattr(args, option))}; it must be at least 1")
        if args.working_set_mb < 1:
            refuse(f"--working-set-mb is {args.working_set_mb}; it must be at least 1")
        self.isas = _once(args.isa) or [machine.describe().isa]
        self.threads = _once(args.threads) or sorted({1, machine.default_num_threads()})
        self.tokens = _once(args.tokens) or TOKENS
        self.working_set = max(args.working_set_mb << 20, 2 * machine.describe().last_level_cache_bytes)
        self.round_s = QUICK_ROUND_S if args.quick else ROUND_S
        self.rounds = FEWEST_ROUNDS if args.quick else ROUNDS
        self.json = args.json

    @property
    def count(self) -> int:
        """How many results there will be."""
        products = len(self.packings) * len(self.isas) * len(self.threads) * len(self.tokens)
        return len(self.shapes) * (products + len({min(self.tokens), max(self.tokens)}))


def _once(values: Any) -> list[Any]:
    return list(dict.fromkeys(values or ()))


def _run_kernels(plan: _Plan) -> int:
    if plan.json:
        with open(plan.json, "a", encoding="utf-8"):
            pass  # a file that cannot be written is told now, not after all the work
    print(f"Every product is compared with NumPy, then timed; {plan.working_set >> 20} MiB of weights in rotation.",
          flush=True)  # fmt: skip
    with _progress(plan.count) as show:
        results = list(_measure(plan, show))
    _print_table(results, len(plan.isas) > 1)
    _print_notes(plan, results)
    if plan.json:
        with open(plan.json, "w", encoding="utf-8") as file:
            json.dump(_described(plan, results), file, indent=1)
            file.write("\n")
    wrong = [result for result in results if not result.correct]
    for result in wrong:
        rows, cols = result.shape
        where = f"{rows}x{cols}, {_count(result.tokens, 'token')}, {_count(result.threads or 0, 'thread')}"
        print(f"bitnet: {result.packing} on {result.kernel} computes wrong numbers ({where}); do not use it, and "
              "please report it", file=sys.stderr)  # fmt: skip
    return 1 if wrong else 0


def _described(plan: _Plan, results: list[Result]) -> dict[str, Any]:
    return {
        "machine": asdict(machine.describe()),
        "versions": {"bitnet-runtime": bitnet.__version__, "numpy": np.__version__,
                     "python": platform.python_version()},
        "multiply_instructions": _instructions(plan),
        "working_set_bytes": plan.working_set,
        "results": [asdict(result) | {"figures": result.figures()} for result in results],
    }  # fmt: skip


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """A line on standard error while it is a terminal. No thread draws it: that would be measured too."""
    count = itertools.count(1)
    is_shown = sys.stderr is not None and sys.stderr.isatty()

    def show(what: str) -> None:
        if is_shown:
            print(f"\r\x1b[K[{next(count)}/{total}] {what}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if is_shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


# ---- measuring


def _measure(plan: _Plan, show: Callable[[str], None]) -> Iterator[Result]:
    buffer = machine.ReadBandwidth(plan.working_set)
    rng = np.random.default_rng(0)
    for rows, cols in plan.shapes:
        x = rng.integers(-128, 128, (max(plan.tokens), cols)).astype(np.int8)
        most = min(MAX_MATRICES, plan.working_set * 5 // (rows * cols) + 1)  # 5 weights a byte is the densest
        # Each matrix is this one from another row on: all are distinct, and none takes time to draw.
        codes = rng.integers(-1, 2, (rows + most, cols), dtype=np.int8)
        expected = _product(codes[:rows], x)
        for packing in plan.packings:
            weights = _rotation(codes, rows, packing, plan)
            for isa, threads, tokens in itertools.product(plan.isas, plan.threads, plan.tokens):
                show(f"{rows}x{cols} {packing} {isa}, {_count(threads, 'thread')}, {_count(tokens, 'token')}")
                machine.select_isa(isa)
                yield _ternary(plan, buffer, weights, x[:tokens], expected[:tokens], isa, threads)
            del weights
        for tokens in sorted({min(plan.tokens), max(plan.tokens)}):
            show(f"{rows}x{cols} NumPy float32, {_count(tokens, 'token')}")
            yield _float32(plan, codes, x[:tokens], expected[:tokens])


def _product(codes: npt.NDArray[np.int8], x: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
    """The integers, by NumPy. In float64 every partial sum is a whole number below 2**53: exact in any order of adding,
    and BLAS is a hundred times as fast as NumPy's own loop over integers."""
    out = np.empty((len(x), len(codes)), np.int32)
    inputs = x.T.astype(np.float64)
    step = max(1, (1 << 24) // x.shape[1])
    for first in range(0, len(codes), step):
        out[:, first : first + step] = (codes[first : first + step].astype(np.float64) @ inputs).T
    return out


def _rotation(codes: npt.NDArray[np.int8], rows: int, packing: str, plan: _Plan) -> list[TernaryWeight]:
    weights: list[TernaryWeight] = []
    room = plan.working_set
    while room > 0 and len(weights) < MAX_MATRICES:
        matrix = codes[len(weights) : len(weights) + rows]
        weights.append(TernaryWeight.from_codes(matrix, 1.0, packing, num_threads=plan.threads[-1]))
        room -= weights[-1].nbytes
    return weights


def _ternary(
    plan: _Plan,
    buffer: machine.ReadBandwidth,
    weights: list[TernaryWeight],
    x: npt.NDArray[np.int8],
    expected: npt.NDArray[np.int32],
    isa: str,
    threads: int,
) -> Result:
    out = np.full(expected.shape, np.iinfo(np.int32).min, np.int32)
    weights[0].matmul_int(x, out=out, num_threads=threads)
    correct = np.array_equal(out, expected)
    reads: list[float] = []
    peaks: list[float] = []
    turn = itertools.cycle(weights)

    def products(count: int) -> float:
        start = time.perf_counter()
        for weight in itertools.islice(turn, count):
            weight.matmul_int(x, out=out, num_threads=threads)
        return (time.perf_counter() - start) / count

    def limits() -> None:
        reads.append(buffer.read(threads))
        peak = machine.multiply_peak(threads)
        if peak is not None:
            peaks.append(peak)

    count, seconds = _rounds(plan, products, limits, len(weights)) if correct else (0, [])
    packing = weights[0].packing
    return Result(weights[0].shape, packing, machine.kernels()[packing], isa, threads, len(x), correct,
                  weights[0].nbytes, len(weights), count, seconds, reads, peaks)  # fmt: skip


def _float32(
    plan: _Plan, codes: npt.NDArray[np.int8], x: npt.NDArray[np.int8], expected: npt.NDArray[np.int32]
) -> Result:
    rows, cols = expected.shape[1], x.shape[1]
    weight_bytes = 4 * rows * cols
    matrices = min(len(codes) - rows, -(-plan.working_set // weight_bytes))
    weights = np.empty((matrices, rows, cols), np.float32)
    for first, weight in enumerate(weights):
        weight[:] = codes[first : first + rows]
    inputs = x.T.astype(np.float32)
    out = np.empty((rows, len(x)), np.float32)
    turn = itertools.cycle(weights)

    def products(count: int) -> float:
        start = time.perf_counter()
        for weight in itertools.islice(turn, count):
            np.matmul(weight, inputs, out=out)
        return (time.perf_counter() - start) / count

    products(1)
    # Below 2**24 float32 holds every partial sum, so that even this floor can be held to the integers.
    correct = cols > (1 << 24) // 128 or np.array_equal(out.T, expected)
    count, seconds = _rounds(plan, products, lambda: None, matrices)
    return Result((rows, cols), "float32", "NumPy @", None, None, len(x), correct, weight_bytes, matrices, count,
                  seconds, [], [])  # fmt: skip


def _rounds(
    plan: _Plan, products: Callable[[int], float], limits: Callable[[], None], most: int
) -> tuple[int, list[float]]:
    """Time products and take limits in turn; return how many products a round has, and the seconds of one."""
    once = products(1)
    count = max(1, min(most, round(plan.round_s / once)))
    rounds = max(FEWEST_ROUNDS, min(plan.rounds, int(plan.rounds * plan.round_s / (count * once))))
    seconds = []
    for _ in range(rounds):
        limits()
        seconds.append(products(count))
    return count, seconds


# ---- printing


def _print_table(results: list[Result], with_isa: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    # As Markdown, to be pasted whole; never cut to the width of the terminal.
    table = Table(box=box.MARKDOWN)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in HEADINGS[:3] else "right", no_wrap=True)
    for result in results:
        table.add_row(*_cells(result, with_isa))
    Console(file=sys.stdout, width=240, markup=False, highlight=False).print(table)


def _cells(result: Result, with_isa: bool) -> list[str]:
    rows, cols = result.shape
    kernel = f"{result.kernel} ({result.isa})" if with_isa and result.isa else result.kernel
    cells = [f"{rows}x{cols}", result.packing, kernel, str(result.threads or "BLAS"), str(result.tokens)]
    if not result.correct:
        return [*cells, "WRONG", *[""] * 5]
    figures = result.figures()
    unit, name = (1e-3, "ms") if statistics.median(result.seconds) >= 1e-3 else (1e-6, "us")

    def number(value: float | None, scale: float = 1.0) -> str:
        return "" if value is None else _digits(value / scale)

    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.0%}"

    return [
        *cells,
        f"{number(figures['median_s'], unit)} {name}",
        f"{number(min(result.seconds), unit)}..{number(max(result.seconds), unit)}",
        number(figures["weight_bytes_per_s"], 1e9),
        share(figures["share_of_read_bandwidth"]),
        number(figures["multiply_accumulates_per_s"], 1e9),
        share(figures["share_of_multiply_peak"]),
    ]


def _digits(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def _print_notes(plan: _Plan, results: list[Result]) -> None:
    print("time: of one product, the median of the rounds. GB/s: of packed weights. of read, of peak: shares of the")
    print("read bandwidth and the multiply peak, taken in each round on as many threads. BLAS: NumPy chooses how many.")
    for threads in plan.threads:
        reads = [value for one in results if one.threads == threads for value in one.read_bytes_per_s]
        if reads:
            print(f"read bandwidth, {_count(threads, 'thread')}: {_digits(statistics.median(reads) / 1e9)} "
                  "GB/s")  # fmt: skip
    for isa, instruction in _instructions(plan).items():
        for threads in plan.threads if instruction else ():
            peaks = [value for one in results if (one.isa, one.threads) == (isa, threads)
                     for value in one.multiply_accumulates_per_s]  # fmt: skip
            if peaks:
                print(f"multiply peak, {isa}, {_count(threads, 'thread')}: "
                      f"{_digits(statistics.median(peaks) / 1e9)} GMAC/s ({instruction})")  # fmt: skip
    for rows, cols in plan.shapes:
        taken = min(one.matrices * one.weight_bytes for one in results if one.shape == (rows, cols))
        if taken < plan.working_set:
            print(f"{rows}x{cols}: {MAX_MATRICES} matrices take only {taken / (1 << 20):.1f} MiB, so a cache may hold "
                  "them")  # fmt: skip
    found = machine.describe()
    quota = "" if found.cgroup_quota is None else f", quota {found.cgroup_quota:g} CPUs"
    print(f"machine: {found.cpu}, {_count(found.cpus, 'CPU')}{quota}, ISA {'/'.join(plan.isas)}, "
          f"{_count(found.num_threads, 'thread') if found.num_threads else 'no usable number of threads'} by default, "
          f"{found.last_level_cache_bytes >> 20} MiB last-level cache, huge pages {found.huge_pages}, {found.system}, "
          f"Python {platform.python_version()}, NumPy {np.__version__}, bitnet {bitnet.__version__}")  # fmt: skip


def _instructions(plan: _Plan) -> dict[str, str]:
    found = {}
    for isa in plan.isas:
        machine.select_isa(isa)
        found[isa] = machine.multiply_instruction()
    return found


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
