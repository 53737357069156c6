"""Say what this machine can do, which kernels are in use, and what is wrong.

The exit code is 1 where something keeps bitnet from working: an instruction set or a number of threads that cannot be
used, or files mixed with those of another distribution.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import textwrap
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from typing import Any

import numpy as np

import bitnet
from bitnet import machine, tuning
from bitnet.memory import system_memory

__all__ = ["add_arguments", "diagnose", "run"]

LIBRARIES = ("tokenizers", "safetensors", "jinja2", "rich")
SECRETS = ("KEY", "TOKEN", "SECRET", "PASSWORD")

# Enough to read past the last-level cache, little enough to be done in a second.
BUFFER_BYTES = 128 << 20
MAX_BUFFER_BYTES = 1 << 30
REPEATS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bitnet doctor``.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    """
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--no-measure", action="store_true", help="do not measure the limits of the machine")
    parser.add_argument("--model", metavar="MODEL", help="a checkpoint: see whether this machine has the memory for it")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what `diagnose` finds.

    Parameters
    ----------
    args : argparse.Namespace

    Returns
    -------
    int
        1 where a problem keeps bitnet from working, else 0.
    """
    found = diagnose(measure=not args.no_measure, model=args.model)
    print(json.dumps(found, indent=2) if args.json else _text(found))
    return 0 if found["works"] else 1


def diagnose(measure: bool = True, model: str | None = None) -> dict[str, Any]:
    """Look at this machine, this environment and this installation.

    Parameters
    ----------
    measure : bool, optional
        Whether to measure read bandwidth and multiply peak too, which takes about a second.
    model : str, optional
        A checkpoint, for which memory is looked at.

    Returns
    -------
    dict
        What JSON can hold. ``machine`` has the fields of `bitnet.machine.Machine`; ``measured`` is None where nothing
        was measured, else ``read_bytes_per_s`` and ``multiply_accumulates_per_s`` by number of threads; ``packings``
        has the packing that ``packing="auto"`` takes for large models, measured now or remembered, with the speeds;
        ``problems`` are dicts of ``sentence`` and ``stops`` (whether it keeps bitnet from working); ``works`` is
        whether none of them does.
    """
    found = machine.describe()
    conflict = machine.name_conflict()
    versions = {"bitnet-runtime": bitnet.__version__, "numpy": np.__version__, **{n: _version(n) for n in LIBRARIES}}
    problems = [
        *({"sentence": f"{sentence}; change or unset the variable", "stops": True} for sentence in found.problems),
        *([{"sentence": conflict, "stops": True}] if conflict else []),
        *({"sentence": sentence, "stops": True} for sentence in _mismatches()),
        *({"sentence": sentence, "stops": False} for sentence in _advice(found, versions)),
        *({"sentence": sentence, "stops": False} for sentence in (_memory_advice(model) if model else [])),
    ]
    return {
        "versions": versions,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "machine": asdict(found),
        "cpus_of_system": os.cpu_count(),
        "isa_source": "BITNET_ISA" if os.environ.get("BITNET_ISA") else "CPU",
        "num_threads_source": _threads_source(found),
        "environment": _environment(),
        "name_conflict": conflict,
        "measured": _measured(found) if measure and found.isa else None,
        "packings": [asdict(choice) for choice in _packings(found, measure)],
        "problems": problems,
        "works": not any(problem["stops"] for problem in problems),
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _environment() -> dict[str, str]:
    names = sorted(name for name in os.environ if name.startswith("BITNET_") or name == "OMP_NUM_THREADS")
    return {name: "(set)" if any(word in name for word in SECRETS) else os.environ[name] for name in names}


def _threads_source(found: machine.Machine) -> str:
    by_itself = "quota of the control group" if found.available_cpus < found.cpus else "CPUs of this process"
    return found.num_threads_variable or by_itself


def _advice(found: machine.Machine, versions: dict[str, str | None]) -> list[str]:
    """Sentences about what works, but could work better."""
    advice = []
    if found.huge_pages == "never":
        advice.append(
            "the system gives no huge pages ('never'), so reading large weights is slower than it could be; "
            "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
        )
    if found.huge_pages == "disabled":
        advice.append(
            "huge pages are disabled for this process (PR_SET_THP_DISABLE, which it has from the one that started it), "
            "so reading large weights is slower than it could be; start it in another way"
        )
    if found.isas == ("portable",):
        advice.append(
            "this CPU has none of the features that the kernels are written for, so products run on portable code, "
            "which is much slower; use a CPU with AVX2 or NEON"
        )
    elif found.isa and found.isa != found.isas[0] and os.environ.get("BITNET_ISA"):
        advice.append(f"BITNET_ISA asks for '{found.isa}', and this CPU can run '{found.isas[0]}'; unset it for speed")
    if found.num_threads is not None and found.num_threads > found.available_cpus:
        advice.append(
            f"{_threads_source(found)} asks for {found.num_threads} threads, and this process may use "
            f"{_count(found.available_cpus, 'CPU')}; more threads than CPUs slow every product, so lower it to "
            f"{found.available_cpus}"
        )
    if machine.core_build()[1]:
        advice.append("the core was built with BITNET_DEBUG=1, so everything is several times slower; build it without")
    if stale := machine.stale_modules():
        advice.append(f"compiled modules are older than their sources: {', '.join(stale)}; run: pip install -e .")
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        names = " ".join(missing)
        advice.append(f"not installed, although bitnet-runtime requires it: {names}; run: pip install {names}")
    return advice


def _mismatches() -> list[str]:
    """Sentences about compiled code that is not of these sources, and about variables that say nothing."""
    built_for, _ = machine.core_build()
    found = []
    if built_for != bitnet.__version__:
        found.append(f"the compiled core was built for version {built_for}, and the package is {bitnet.__version__}; "
                     "run: pip install --force-reinstall bitnet-runtime (in a checkout: pip install -e .)")  # fmt: skip
    profiling = os.environ.get("BITNET_MEMORY_PROFILING", "")
    if profiling not in ("", "0", "1", "off", "counts", "tracebacks"):
        found.append(f"BITNET_MEMORY_PROFILING is {profiling!r}; it must be one of 0, 1, off, counts, tracebacks; "
                     "change or unset the variable")  # fmt: skip
    return found


def _memory_advice(path: str) -> list[str]:
    """What a model needs against what is free, in a sentence where that is too little."""
    found = bitnet.inspect_checkpoint(path)
    config, used, total = found["config"], *system_memory()
    if not config:
        return [f"what '{path}' needs is not known, because it cannot be loaded: {found['problems'][0]}"]
    if not total:
        return []
    width = config["head_dim"] or config["hidden_size"] // config["num_attention_heads"]
    weights = found["totals"]["ternary_parameters"] // 4
    head = config["vocab_size"] * config["hidden_size"]
    heads = config["num_key_value_heads"] or config["num_attention_heads"]
    context = config["max_position_embeddings"]
    cache = 2 * 2 * config["num_hidden_layers"] * heads * width * context
    need, free = weights + head + cache, max(0, total - used)
    if need <= free:
        return []
    parts = f"weights {_size(weights)}, head {_size(head)}, keys and values of {context} tokens {_size(cache)}"
    enough = weights + head <= free
    remedy = (
        "end other programs, or keep texts short: the cache grows with them" if enough
        else "end other programs, use packing 't5' (1.6 bits a weight instead of 2), or a machine with more memory"
    )  # fmt: skip
    return [f"'{path}' needs {_size(need)} ({parts}), and {_size(free)} of {_size(total)} are free; {remedy}"]


def _size(nbytes: int) -> str:
    return f"{nbytes / (1 << 30):.2f} GiB" if nbytes >= 1 << 30 else f"{nbytes / (1 << 20):.1f} MiB"


def _measured(found: machine.Machine) -> dict[str, Any]:
    counts = sorted({1, found.num_threads or 1})
    buffer = machine.ReadBandwidth(min(max(BUFFER_BYTES, 4 * found.last_level_cache_bytes), MAX_BUFFER_BYTES))
    instruction = machine.multiply_instruction()

    def median(function: Callable[[int], float | None]) -> dict[str, float]:
        return {str(n): statistics.median(function(n) or 0.0 for _ in range(REPEATS)) for n in counts}

    return {
        "read_buffer_bytes": buffer.nbytes,
        "read_bytes_per_s": median(buffer.read),
        "multiply_instruction": instruction,
        "multiply_accumulates_per_s": median(machine.multiply_peak) if instruction else {},
    }


def _packings(found: machine.Machine, measure: bool) -> list[tuning.PackingChoice]:
    if measure and found.isa and found.num_threads:
        return [tuning.fastest_packing(found.num_threads, measure=True)]
    return tuning.remembered_choices()


# ---- as text


def _text(found: dict[str, Any]) -> str:
    rows = list(_rows(found))
    indent = max(len(name) for name, _ in rows) + 2
    # In a pipe a line is a fact, whatever its length.
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    width = max(60, shutil.get_terminal_size().columns) if is_terminal else sys.maxsize
    lines = [
        textwrap.fill(text, width, initial_indent=name.ljust(indent), subsequent_indent=" " * indent,
                      break_on_hyphens=False, break_long_words=False)
        for name, text in rows
    ]  # fmt: skip
    return "\n".join(lines)


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    here = found["machine"]
    origin = "forced by BITNET_ISA" if found["isa_source"] == "BITNET_ISA" else "the largest possible"
    rows = [
        ("CPU", here["cpu"]),
        ("architecture", here["architecture"]),
        ("system", here["system"]),
        ("Python", found["python"]),
        ("versions", ", ".join(f"{name} {version or 'missing'}" for name, version in found["versions"].items())),
        ("CPU features", ", ".join(here["features"]) or "none that a kernel uses"),
        ("possible ISAs", ", ".join(here["isas"])),
        ("ISA in use", f"{here['isa']} ({origin})" if here["isa"] else "none: BITNET_ISA asks for another one"),
        ("kernels", ", ".join(f"{name}: {kernel}" for name, kernel in here["kernels"].items()) or "none"),
        ("CPUs", f"{here['cpus']} of {found['cpus_of_system']} may be used (affinity); control-group quota: "
                 + ("none" if here["cgroup_quota"] is None else f"{here['cgroup_quota']:g}")),
        ("threads", f"{here['num_threads'] or 'no such number'} (from: {found['num_threads_source']}; "
                    "the argument num_threads comes first)"),
        ("last-level cache", f"{here['last_level_cache_bytes'] / (1 << 20):g} MiB"),
        ("huge pages", here["huge_pages"]),
        ("environment", ", ".join(f"{k}={v!a}" for k, v in found["environment"].items()) or "nothing set"),
        ("name conflict", "yes, see below" if found["name_conflict"] else "none"),
        *_measured_rows(found["measured"]),
        *_packing_rows(found["packings"]),
    ]  # fmt: skip
    rows += [("ERROR" if one["stops"] else "advice", one["sentence"]) for one in found["problems"]]
    return rows if found["problems"] else [*rows, ("problems", "none")]


def _measured_rows(measured: dict[str, Any] | None) -> list[tuple[str, str]]:
    if measured is None:
        return [("limits", "not measured")]

    def by_threads(values: dict[str, float], unit: str) -> str:
        return ", ".join(f"{value / 1e9:.1f} {unit} on {_count(int(n), 'thread')}" for n, value in values.items())

    peak = by_threads(measured["multiply_accumulates_per_s"], "GMAC/s")
    instruction = measured["multiply_instruction"]
    return [
        ("read bandwidth", by_threads(measured["read_bytes_per_s"], "GB/s")),
        ("multiply peak", f"{peak} ({instruction})" if peak else "none for portable code"),
    ]


def _packing_rows(choices: list[dict[str, Any]]) -> list[tuple[str, str]]:
    if not choices:
        return [("packing 'auto'", "not measured yet: the first large model that is loaded does it")]
    return [
        (
            "packing 'auto'",
            f"'{one['packing']}' for large models on {_count(one['num_threads'], 'thread')}: "
            + ", ".join(f"{name} {speed / 1e9:.0f} G weights/s" for name, speed in one["weights_per_s"].items())
            + f" (measured {one['measured']})",
        )
        for one in choices
    ]


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
