"""Measure how fast a model reads a prompt and generates, in llama-bench's columns.

``ppN`` reads a prompt of N tokens, ``tgN`` generates N tokens after one. Limits of the machine are taken in turn with
the tests, on as many threads: generating is bound by reading the weights, reading a prompt by multiplying.
"""

import argparse
import csv
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import bitnet
from bitnet import machine
from bitnet.cli.session import add_engine_arguments, engine_config, interruptible, loading, peak_rss_bytes, refused

__all__ = ["Result", "add_arguments", "run"]

HEADINGS = ("model", "size", "params", "backend", "threads", "test", "t/s", "of read", "of peak")
# At least twice the last-level cache, as for the kernels; enough to read past it.
BUFFER_BYTES = 128 << 20
LIMIT_TRIES = 5
MIB = 1 << 20
HEAD_ITEM_BYTES = {"int8": 1, "float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Result:
    """What was measured of one test on one number of threads.

    Attributes
    ----------
    test : str
        As ``"pp512"`` or ``"tg128"``.
    n_prompt, n_gen : int
        Tokens of the prompt, or tokens generated; the other is 0.
    threads : int
    seconds : list of float
        Of each repeat.
    read_bytes_per_s, multiply_accumulates_per_s : list of float
        The limits, measured before each repeat; empty where there is none.
    read_share, peak_share : float or None
        Of generating, the share of the read bandwidth; of reading a prompt, that of the multiply peak.
    """

    test: str
    n_prompt: int
    n_gen: int
    threads: int
    seconds: list[float]
    read_bytes_per_s: list[float]
    multiply_accumulates_per_s: list[float]
    read_share: float | None
    peak_share: float | None

    @property
    def tokens_per_s(self) -> list[float]:
        """The speed of each repeat."""
        return [(self.n_prompt + self.n_gen) / s for s in self.seconds]

    @property
    def mean(self) -> float:
        """The mean speed, in tokens a second."""
        return statistics.fmean(self.tokens_per_s)

    @property
    def deviation(self) -> float:
        """The standard deviation of the speed; 0 for one repeat."""
        return statistics.stdev(self.tokens_per_s) if len(self.seconds) > 1 else 0.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bitnet bench``.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    """
    parser.add_argument("model", nargs="?", metavar="FOLDER", help="a checkpoint in the Hugging Face format (default: "
                        "the model that comes with bitnet); or the word 'kernels': see its help")
    parser.add_argument("--shape", metavar="NAME",
                        help="instead of a checkpoint, random weights of a real model's shape: 2b4t, 0.7b, 3b or 8b")
    parser.add_argument("-p", "--n-prompt", type=int, action="append", metavar="N",
                        help="tokens of a prompt, 0 for no such test; repeatable (default: 512)")
    parser.add_argument("-n", "--n-gen", type=int, action="append", metavar="N",
                        help="tokens to generate, 0 for no such test; repeatable (default: 128)")
    parser.add_argument("-r", "--repeats", type=int, default=5, metavar="N", help="of each test (default: 5)")
    parser.add_argument("-t", "--threads", type=int, action="append", metavar="N",
                        help="repeatable (default: what this process may use)")
    parser.add_argument("-o", "--output", choices=("md", "csv", "json"), default="md", help="(default: md)")
    add_engine_arguments(parser)
    parser.set_defaults(run=run, parser=parser)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Measure, and print.

    Parameters
    ----------
    args : argparse.Namespace

    Returns
    -------
    int
        0.
    """
    refuse = args.parser.error
    if args.model is not None and args.shape is not None:
        refuse("give either a FOLDER or --shape")
    for option, least in (("n_prompt", 0), ("n_gen", 0), ("threads", 1)):
        if min(getattr(args, option) or [least]) < least:
            refuse(f"--{option.replace('_', '-')} is {min(getattr(args, option))}; it must be at least {least}")
    if args.repeats < 1:
        refuse(f"--repeats is {args.repeats}; it must be at least 1")
    # A test is (tokens of a prompt, tokens to generate).
    tests = [(n, 0) for n in _once(args.n_prompt or [512]) if n] + [(0, n) for n in _once(args.n_gen or [128]) if n]
    if not tests:
        refuse("--n-prompt and --n-gen are both 0; there is nothing to measure")
    threads = _once(args.threads or [machine.default_num_threads()])
    config = engine_config(args, threads[0]).replace(prefix_cache=False)
    for count in threads[1:]:
        engine_config(args, count)
    start = time.perf_counter()
    with loading() as show:
        if args.shape is None:
            with bitnet.InferenceEngine(config) as engine:
                model = engine.load_model(args.model, progress=show)
        else:
            with refused(args):
                model = bitnet.random_model(args.shape, config, progress=show)
    load_s = time.perf_counter() - start
    for n_prompt, n_gen in tests:
        # A generated token needs one before it, and the last one is not run.
        if max(n_prompt, n_gen + 2) > model.config.max_position_embeddings:
            limit = model.config.max_position_embeddings
            refuse(f"{_name(n_prompt, n_gen)} is longer than the context of {limit} tokens")
    results, peak_rss = _measure(model, config, tests, threads, args.repeats)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # of an ASCII terminal, which has no plus-minus
    name = args.shape or (os.path.basename(os.path.abspath(args.model)) if args.model else "bundled")
    facts = _facts(name, model, load_s, peak_rss)
    {"md": _print_table, "csv": _print_csv, "json": _print_json}[args.output](facts, results)
    return 0


def _once(values: list[int]) -> list[int]:
    return list(dict.fromkeys(values))


def _name(n_prompt: int, n_gen: int) -> str:
    return f"pp{n_prompt}" if n_prompt else f"tg{n_gen}"


# ---- measuring


def _measure(
    model: bitnet.Model, config: bitnet.EngineConfig, tests: list[tuple[int, int]], threads: list[int], repeats: int
) -> tuple[list[Result], int]:
    """The results, and the most memory that loading and each test took."""
    # First everything once, without the limits: their buffer is no memory that the model needs.
    for count in threads:
        with bitnet.InferenceEngine(config.replace(num_threads=count)) as engine:
            for n_prompt, n_gen in tests:
                _time(engine, model, n_prompt, min(n_gen, 2))
    peak_rss = peak_rss_bytes()
    buffer = machine.ReadBandwidth(max(BUFFER_BYTES, 2 * machine.describe().last_level_cache_bytes))
    results = []
    for count in threads:
        with bitnet.InferenceEngine(config.replace(num_threads=count)) as engine:
            for n_prompt, n_gen in tests:
                _time(engine, model, n_prompt, min(n_gen, 2))
                seconds, reads, peaks = [], [], []
                for _ in range(repeats):
                    # The best of a few, as each takes milliseconds: a limit that a neighbour lowered is none.
                    reads.append(max(buffer.read(count) for _ in range(LIMIT_TRIES)))
                    peaks.append(max(machine.multiply_peak(count) or 0.0 for _ in range(LIMIT_TRIES)))
                    seconds.append(_time(engine, model, n_prompt, n_gen))
                results.append(_result(model, n_prompt, n_gen, count, seconds, reads, [p for p in peaks if p]))
    return results, peak_rss


def _time(engine: bitnet.InferenceEngine, model: bitnet.Model, n_prompt: int, n_gen: int) -> float:
    """Seconds of one test."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, model.config.vocab_size, max(n_prompt, 1)).tolist()
    if n_prompt:
        start = time.perf_counter()
        interruptible(engine, lambda: engine.infer(model, tokens, last_only=True))
        return time.perf_counter() - start
    # The first token comes with the prompt; each of the others is one step, with the choice of the most likely.
    endless = bitnet.GenerationConfig(max_new_tokens=n_gen + 1, eos_token_id=[])
    done = interruptible(engine, lambda: engine.generate(model, tokens, endless))
    return float(done.generate_s)


def _result(
    model: bitnet.Model,
    n_prompt: int,
    n_gen: int,
    threads: int,
    seconds: list[float],
    reads: list[float],
    peaks: list[float],
) -> Result:
    nbytes, work = model.weight_bytes + _head_bytes(model), _ternary_parameters(model.config)
    read_share = peak_share = None
    if n_gen:
        read_share = statistics.median(nbytes * n_gen / s / limit for s, limit in zip(seconds, reads, strict=True))
    elif peaks:
        peak_share = statistics.median(work * n_prompt / s / limit for s, limit in zip(seconds, peaks, strict=True))
    return Result(_name(n_prompt, n_gen), n_prompt, n_gen, threads, seconds, reads, peaks, read_share, peak_share)


def _ternary_parameters(config: bitnet.ModelConfig) -> int:
    width, kv_heads = config.head_dim or 0, config.num_key_value_heads or 0  # stored as numbers, never as None
    queries, keys = config.num_attention_heads * width, kv_heads * width
    layer = config.hidden_size * (2 * queries + 2 * keys + 3 * config.intermediate_size)
    return int(config.num_hidden_layers * layer)


def _head_bytes(model: bitnet.Model) -> int:
    dtype, config = model.engine_config.head_dtype, model.config
    scales = 4 * config.vocab_size if dtype == "int8" else 0
    return int(config.vocab_size * config.hidden_size * HEAD_ITEM_BYTES[dtype] + scales)


def _parameters(model: bitnet.Model) -> int:
    """All of them, those of norms by what the program computes."""
    config, program = model.config, model.program
    tables = 1 if config.tie_word_embeddings else 2
    norms = sum(width for kind, width in zip(program.kinds, program.widths, strict=True) if kind == "rms_norm")
    return int(_ternary_parameters(config) + tables * config.vocab_size * config.hidden_size + norms)


# ---- printing


def _facts(name: str, model: bitnet.Model, load_s: float, peak_rss: int) -> dict[str, Any]:
    chosen = model.engine_config
    return {
        "model": name,
        "model_type": model.config.model_type,
        "weight_bytes": model.weight_bytes,
        "head_bytes": _head_bytes(model),
        "parameters": _parameters(model),
        "ternary_parameters": _ternary_parameters(model.config),
        "packing": chosen.packing,
        "kv_dtype": chosen.kv_dtype,
        "head_dtype": chosen.head_dtype,
        "load_s": load_s,
        "peak_rss_bytes": peak_rss,
        "multiply_instruction": machine.multiply_instruction(),
    }


def _print_table(facts: dict[str, Any], results: list[Result]) -> None:
    rows = [_cells(facts, result) for result in results]
    widths = [max(map(len, column)) for column in zip(HEADINGS, *rows, strict=True)]
    lines = [HEADINGS, ["-" * (width - 1) + ":" if i > 2 else "-" * width for i, width in enumerate(widths)], *rows]
    for line in lines:
        cells = zip(line, widths, strict=True)
        print("|", " | ".join(cell.rjust(w) if i > 2 else cell.ljust(w) for i, (cell, w) in enumerate(cells)), "|")
    print()
    bits = 8 * facts["weight_bytes"] / facts["ternary_parameters"]
    print(f"size: packed weights (packing {facts['packing']}, {bits:.2f} bits a weight) and output head "
          f"({facts['head_dtype']}), which each generated token reads; the cache is {facts['kv_dtype']}")
    for result in {result.threads: result for result in results}.values():
        peaks = result.multiply_accumulates_per_s
        peak = f", multiply peak {statistics.median(peaks) / 1e9:.0f} GMAC/s ({facts['multiply_instruction']})"
        print(f"limits, {result.threads} thread{'s' * (result.threads > 1)}: read bandwidth "
              f"{statistics.median(result.read_bytes_per_s) / 1e9:.1f} GB/s{peak if peaks else ''}")
    needed = facts["weight_bytes"] + facts["head_bytes"]
    print(f"loaded in {facts['load_s']:.1f} s; peak RSS {facts['peak_rss_bytes'] / MIB:,.0f} MiB, which is "
          f"{(facts['peak_rss_bytes'] - needed) / MIB:,.0f} MiB beyond the size")
    found = machine.describe()
    print(f"machine: {found.cpu}, {found.cpus} CPUs, ISA {found.isa}, {found.last_level_cache_bytes >> 20} MiB "
          f"last-level cache, huge pages {found.huge_pages}, {found.system}, Python {platform.python_version()}, "
          f"NumPy {np.__version__}, bitnet {bitnet.__version__}")  # fmt: skip


def _cells(facts: dict[str, Any], result: Result) -> list[str]:
    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.0%}"

    return [
        facts["model"],
        f"{(facts['weight_bytes'] + facts['head_bytes']) / MIB:.2f} MiB",
        f"{facts['parameters'] / 1e9:.2f} B" if facts["parameters"] >= 1e9 else f"{facts['parameters'] / 1e6:.2f} M",
        "CPU",
        str(result.threads),
        result.test,
        f"{result.mean:.2f} ± {result.deviation:.2f}",
        share(result.read_share),
        share(result.peak_share),
    ]


def _records(facts: dict[str, Any], results: list[Result]) -> list[dict[str, Any]]:
    """Flat records, by llama-bench's names where it has one."""
    found = machine.describe()
    return [
        {
            "model_filename": facts["model"], "model_type": facts["model_type"],
            "model_size": facts["weight_bytes"] + facts["head_bytes"], "model_n_params": facts["parameters"],
            "backends": "CPU", "cpu_info": found.cpu, "isa": found.isa, "n_threads": one.threads,
            "packing": facts["packing"], "type_kv": facts["kv_dtype"], "type_head": facts["head_dtype"],
            "n_prompt": one.n_prompt, "n_gen": one.n_gen, "test": one.test,
            "avg_ns": round(statistics.fmean(one.seconds) * 1e9),
            "stddev_ns": round(statistics.stdev(one.seconds) * 1e9) if len(one.seconds) > 1 else 0,
            "avg_ts": one.mean, "stddev_ts": one.deviation, "read_share": one.read_share,
            "peak_share": one.peak_share, "peak_rss_bytes": facts["peak_rss_bytes"],
        }
        for one in results
    ]  # fmt: skip


def _print_csv(facts: dict[str, Any], results: list[Result]) -> None:
    records = _records(facts, results)
    writer = csv.DictWriter(sys.stdout, records[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)


def _print_json(facts: dict[str, Any], results: list[Result]) -> None:
    records = [
        record | {"samples_s": one.seconds, "samples_ts": one.tokens_per_s, "read_bytes_per_s": one.read_bytes_per_s,
                  "multiply_accumulates_per_s": one.multiply_accumulates_per_s}
        for record, one in zip(_records(facts, results), results, strict=True)
    ]  # fmt: skip
    versions = {"bitnet-runtime": bitnet.__version__, "numpy": np.__version__, "python": platform.python_version()}
    json.dump({"machine": asdict(machine.describe()), "versions": versions, **facts, "results": records}, sys.stdout,
              indent=1)  # fmt: skip
    print()


