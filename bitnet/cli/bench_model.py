"""Measure how fast a model reads a prompt and generates, in llama-bench's columns.

``ppN`` reads a prompt of N tokens, ``tgN`` generates N tokens after one. ``@ dN`` is after N tokens that are in the
cache already, ``x N`` in N sequences together. Limits of the machine are taken in turn with the tests, on as many
threads: generating is bound by reading the weights and the cache, reading a prompt by multiplying.
"""

import argparse
import csv
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import asdict
from typing import Any

import numpy as np

import bitnet
from bitnet import machine
from bitnet.cli.bench_measure import PAGE_TOKENS, Result, Test, head_bytes, measure, parameters, ternary_parameters
from bitnet.cli.session import add_engine_arguments, engine_config, loading, refused

__all__ = ["add_arguments", "run"]

HEADINGS = ("model", "size", "params", "backend", "threads", "test", "t/s", "GB/s", "of read", "GMAC/s", "of peak")
MIB = 1 << 20


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
    parser.add_argument("-d", "--n-depth", type=int, action="append", metavar="N",
                        help=f"tokens in the cache before, for prompts a multiple of {PAGE_TOKENS}; repeatable "
                             "(default: 0)")
    parser.add_argument("-np", "--parallel", type=int, action="append", metavar="N",
                        help="sequences that generate together; repeatable (default: 1)")
    parser.add_argument("-b", "--batch-size", type=int, default=256, metavar="N",
                        help="the most tokens of a step (default: 256)")
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
    for option, least in (("n_prompt", 0), ("n_gen", 0), ("n_depth", 0), ("parallel", 1), ("threads", 1)):
        if min(getattr(args, option) or [least]) < least:
            refuse(f"--{option.replace('_', '-')} is {min(getattr(args, option))}; it must be at least {least}")
    if args.repeats < 1:
        refuse(f"--repeats is {args.repeats}; it must be at least 1")
    tests = _tests(args)
    if not tests:
        refuse("--n-prompt and --n-gen are both 0; there is nothing to measure")
    if wrong := [test for test in tests if test.n_prompt and test.n_depth % PAGE_TOKENS]:
        refuse(f"--n-depth is {wrong[0].n_depth}; before a prompt it must be a multiple of {PAGE_TOKENS}, the tokens "
               "of a page of the cache")  # fmt: skip
    threads = _once(args.threads or [machine.default_num_threads()])
    with refused(args):
        batch = {"max_batch_size": max(test.n_parallel for test in tests), "max_batch_tokens": args.batch_size}
        config = engine_config(args, threads[0]).replace(**batch)
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
    limit = model.config.max_position_embeddings
    for test in tests:
        if test.context > limit:
            refuse(f"{test.name} is longer than the context of {limit} tokens")
    results, peak_rss = measure(model, config, tests, threads, args.repeats)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # of an ASCII terminal, which has no plus-minus
    name = args.shape or (os.path.basename(os.path.abspath(args.model)) if args.model else "bundled")
    facts = _facts(name, model, load_s, peak_rss)
    {"md": _print_table, "csv": _print_csv, "json": _print_json}[args.output](facts, results)
    return 0


def _once(values: list[int]) -> list[int]:
    return list(dict.fromkeys(values))


def _tests(args: argparse.Namespace) -> list[Test]:
    depths, together = _once(args.n_depth or [0]), _once(args.parallel or [1])
    prompts = [Test(n, 0, depth) for n in _once(args.n_prompt or [512]) if n for depth in depths]
    return prompts + [
        Test(0, n, depth, count) for n in _once(args.n_gen or [128]) if n for depth in depths for count in together
    ]


# ---- printing


def _facts(name: str, model: bitnet.Model, load_s: float, peak_rss: int) -> dict[str, Any]:
    chosen = model.engine_config
    return {
        "model": name,
        "model_type": model.config.model_type,
        "weight_bytes": model.weight_bytes,
        "head_bytes": head_bytes(model),
        "parameters": parameters(model),
        "ternary_parameters": ternary_parameters(model.config),
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
    for result in results:
        if result.joules_per_token is not None:
            print(f"energy, {result.test.name}, {result.threads} thread{'s' * (result.threads > 1)}: "
                  f"{result.joules_per_token:.3f} J a token, of the whole processor")  # fmt: skip
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

    seconds = statistics.median(result.seconds)
    return [
        facts["model"],
        f"{(facts['weight_bytes'] + facts['head_bytes']) / MIB:.2f} MiB",
        f"{facts['parameters'] / 1e9:.2f} B" if facts["parameters"] >= 1e9 else f"{facts['parameters'] / 1e6:.2f} M",
        "CPU",
        str(result.threads),
        result.test.name,
        f"{result.mean:.2f} ± {result.deviation:.2f}",
        f"{result.nbytes / seconds / 1e9:.1f}" if result.read_share else "",
        share(result.read_share),
        f"{result.work / seconds / 1e9:.0f}" if result.peak_share else "",
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
            "n_prompt": one.test.n_prompt, "n_gen": one.test.n_gen, "n_depth": one.test.n_depth,
            "n_parallel": one.test.n_parallel, "test": one.test.name,
            "avg_ns": round(statistics.fmean(one.seconds) * 1e9),
            "stddev_ns": round(statistics.stdev(one.seconds) * 1e9) if len(one.seconds) > 1 else 0,
            "avg_ts": one.mean, "stddev_ts": one.deviation, "read_share": one.read_share,
            "peak_share": one.peak_share, "joules_per_token": one.joules_per_token,
            "peak_rss_bytes": facts["peak_rss_bytes"],
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


