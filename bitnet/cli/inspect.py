"""Say what a checkpoint has: architecture, tensors, scales, and what is missing.

A checkpoint that cannot be loaded is inspected as well; what stands in the way is told as a problem.
"""

import argparse
import dataclasses
import json
import re
import sys
from typing import Any

import bitnet
from bitnet.cli.session import add_engine_arguments, engine_config, loading

__all__ = ["add_arguments", "run"]

MAX_NAMES = 8  # of tensors that are missing or not used
SHOWN = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "rope_theta", "max_position_embeddings",
         "tie_word_embeddings", "bos_token_id", "eos_token_id")  # fmt: skip
HEADINGS = ("part", "tensors", "dtypes", "parameters", "bytes", "scales")
TENSOR_HEADINGS = ("tensor", "dtype", "shape", "bytes", "kind", "scale")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bitnet inspect``.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    """
    parser.add_argument(
        "model", nargs="?", metavar="CHECKPOINT",
        help="a Hugging Face folder or a GGUF file (default: the model that comes with bitnet)",
    )  # fmt: skip
    parser.add_argument("--tensors", action="store_true", help="list every tensor instead of one line a layer")
    parser.add_argument("--json", action="store_true", help="print JSON, with every tensor")
    parser.add_argument("--verify", action="store_true",
                        help="read all files, and compare them with their checksums (SHA256SUMS, FILE.sha256)")
    parser.add_argument("--memory", action="store_true",
                        help="load the model as the options below say, run a token, and show where its memory is")
    add_engine_arguments(parser.add_argument_group("of --memory"))  # type: ignore[arg-type]  # which takes arguments, too
    parser.set_defaults(run=run, parser=parser)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Print what `bitnet.inspect_checkpoint` finds.

    Parameters
    ----------
    args : argparse.Namespace

    Returns
    -------
    int
        0, also where the checkpoint cannot be loaded; 1 where a file differs from its checksum.
    """
    config = engine_config(args, None)
    if args.memory:
        return _show_memory(args, config)
    if config != bitnet.EngineConfig():
        args.parser.error("how a model is loaded is asked with --memory only")
    found = bitnet.inspect_checkpoint(args.model, verify=args.verify)
    status = int(not all((found["checksums"] or {}).values()))
    if args.json:
        print(json.dumps(found, indent=2))
        return status
    rows = _rows(found)
    indent = max(len(name) for name, _ in rows) + 2
    for name, text in rows:
        print(name.ljust(indent) + text)
    print()
    if args.tensors:
        _print_table(TENSOR_HEADINGS, [_tensor_cells(one) for one in found["tensors"]], left=(0, 1, 2, 4))
    else:
        _print_table(HEADINGS, [_group_cells(*item) for item in _groups(found["tensors"]).items()], left=(0, 2, 5))
    return status


def _show_memory(args: argparse.Namespace, config: bitnet.EngineConfig) -> int:
    with bitnet.InferenceEngine(config) as engine, loading() as show:
        model = engine.load_model(args.model, progress=show)
        engine.infer(model, [1], last_only=True)
        found = engine.memory_report()
    print(json.dumps(dataclasses.asdict(found), indent=2) if args.json else found)
    return 0


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    totals, scales = found["totals"], found["scales"]
    here = {True: "there", False: "none"}
    architectures = found["architectures"] or ["not said"]
    names = architectures if isinstance(architectures, list) else [architectures]
    rows = [
        ("checkpoint", f"{found['path']} ({found['format']})"),
        ("model_type", _shown(found["model_type"] or "not said")),
        ("architectures", ", ".join(map(_shown, names))),
    ]
    rows += [(name, _shown(found["config"][name])) for name in SHOWN if found["config"]]
    kinds = sorted({one["kind"] for one in found["tensors"] if one["kind"] != "ordinary"})
    rows += [
        ("tensors", f"{totals['tensors']:,}"),
        ("bytes", f"{totals['bytes']:,}"),
        ("parameters", f"{totals['parameters']:,}, of which {totals['ternary_parameters']:,} ternary"
                       + (f" ({', '.join(kinds)})" if kinds else "")),
        ("scales", "none stored" if scales is None else f"{scales['count']}: {_span(scales)}"),
        ("tokenizer", here[found["tokenizer"]]),
        ("chat template", here[found["chat_template"]]),
        ("generation config", here[found["generation_config"]]),
        ("missing", _names(found["missing"]) if found["config"] else "unknown"),
        ("not used", _names(found["unused"]) if found["config"] else "unknown"),
    ]  # fmt: skip
    if found["checksums"] is not None:
        agree = [name for name, agrees in found["checksums"].items() if agrees]
        rows.append(("checksums", f"of {len(agree)} files agree: {_names(agree)}" if found["checksums"] else
                     "none are stored, so nothing was compared"))  # fmt: skip
    rows += [("note", _shown(sentence)) for sentence in found["notes"]]
    rows += [("PROBLEM", _shown(sentence)) for sentence in found["problems"]]
    return [*rows, ("can be loaded", "yes" if found["loads"] else "no")]


def _names(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(map(_shown, names[:MAX_NAMES])) + more or "none"


def _span(scales: dict[str, float]) -> str:
    return f"min {scales['min']:.4g}, median {scales['median']:.4g}, max {scales['max']:.4g}"


def _shown(value: Any) -> str:
    """As text on one line: what a file says may hold anything, also what a terminal obeys."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value))


def _groups(tensors: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for one in tensors:
        layer = re.match(r"(.*?\.\d+)\.", one["name"])
        found.setdefault(layer[1] if layer else one["name"], []).append(one)
    return dict(sorted(found.items(), key=lambda item: [(int(part) if part.isdigit() else 0, part)
                                                        for part in item[0].split(".")]))  # fmt: skip


def _group_cells(name: str, tensors: list[dict[str, Any]]) -> list[str]:
    scales = sorted(one["scale"] for one in tensors if one["scale"] is not None)
    span = f"{scales[0]:.4g}..{scales[-1]:.4g}" if scales else ""
    count = sum(one["parameters"] for one in tensors)
    return [_shown(name), str(len(tensors)), ", ".join(sorted({one["dtype"] for one in tensors})), f"{count:,}",
            f"{sum(one['bytes'] for one in tensors):,}", span]  # fmt: skip


def _tensor_cells(one: dict[str, Any]) -> list[str]:
    unused = " (not used)" if one["used"] is False else ""
    return [_shown(one["name"]) + unused, one["dtype"], "x".join(map(str, one["shape"])) or "()", f"{one['bytes']:,}",
            one["kind"], "" if one["scale"] is None else f"{one['scale']:.4g}"]  # fmt: skip


def _print_table(headings: tuple[str, ...], rows: list[list[str]], left: tuple[int, ...]) -> None:
    # By hand, not by a library that fits cells to a terminal: a name is a fact, whatever its length.
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for row in [headings, *rows]:
        cells = [cell.ljust(width) if i in left else cell.rjust(width)
                 for i, (cell, width) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
