"""Round a float checkpoint to ternary, and report what that costs.

A model that was not trained for ternary weights loses much of its quality by this. With --text it is said how
much, beside what the floats of SRC have.
"""

import argparse
import json
import math
from typing import Any

import bitnet
from bitnet.cli.session import counting, interruptible, loading, read_text, refused

__all__ = ["add_arguments", "run"]

SHOWN = 10  # of the worst weights
HONEST = (
    "A model that was not trained with ternary weights loses much of its quality when they are rounded afterwards: see "
    "the perplexity (--text) before you use it."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bitnet quantize``.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    """
    parser.add_argument("source", metavar="SRC", help="a checkpoint whose projections are floats")
    parser.add_argument("target", metavar="DST", help="what is to be written")
    parser.add_argument("--to", default="bitnet", metavar="FORMAT", choices=("bitnet", "hugging_face", "gguf"),
                        help="bitnet, hugging_face or gguf; the last two hold one scale a weight (default: bitnet)")
    parser.add_argument("--per-row", action="store_true", help="a scale for each row")
    parser.add_argument("--group-size", type=int, metavar="N", help="a scale for each 64 or 128 columns of a row")
    parser.add_argument("--report", metavar="FILE", help="write the errors of all weights there, as JSON")
    parser.add_argument("--plot", metavar="FILE", help="draw them: .png, .svg or .pdf (extra `plot`)")
    parser.add_argument("--calibration", metavar="FILE",
                        help="a text on which the inputs of layers are measured, in the float model")
    parser.add_argument("--text", metavar="FILE",
                        help="a text on which the perplexity is measured, of SRC with its floats and of DST")
    parser.add_argument("--num-threads", type=int, metavar="N", help="(default: what this process may use)")
    parser.add_argument("--force", action="store_true", help="replace DST if it is there")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(run=run, parser=parser)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Quantise, and print the report.

    Parameters
    ----------
    args : argparse.Namespace

    Returns
    -------
    int
        0.
    """
    with refused(args):
        config = bitnet.QuantizationConfig(per_channel=args.per_row, group_size=args.group_size)
        of_target = bitnet.EngineConfig(num_threads=args.num_threads)
    text, calibration = (None if file is None else read_text(file) for file in (args.text, args.calibration))
    with loading(args.quiet, "quantizing") as show:
        report = bitnet.quantize_checkpoint(args.source, args.target, config, to=args.to, force=args.force,
                                            calibration=calibration, num_threads=args.num_threads,
                                            progress=show)  # fmt: skip
    if args.plot:
        bitnet.plot_report(report, args.plot)
    _print_weights(report)
    if calibration is not None:
        _print_inputs(report)
    print(HONEST)
    content: dict[str, Any] = {"weights": report}
    if text is not None:
        before = _perplexity(args, args.source, of_target.replace(weights="float"), text)
        after = _perplexity(args, args.target, of_target, text)
        content["perplexity"] = {"before": before, "after": after}
        _print_perplexity(before, after)
    if args.report:
        with open(args.report, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
    return 0


def _print_weights(report: list[dict[str, Any]]) -> None:
    print(f"{'worst weights':<44}{'mse':>12}{'SQNR dB':>10}{'cosine':>9}{'zeros':>8}")
    for row in report[:SHOWN]:
        print(f"{row['name']:<44}{row['mse']:>12.4g}{_decibels(row['sqnr_db'], 10)}{row['cosine']:>9.4f}"
              f"{row['zeros']:>8.1%}")  # fmt: skip
    print(f"{len(report)} weights, mean cosine {sum(row['cosine'] for row in report) / len(report):.4f}")


def _print_inputs(report: list[dict[str, Any]]) -> None:
    print(f"{'worst inputs, rounded to 8 bits':<44}{'max |x|':>12}{'RMS':>10}{'crest':>9}{'SQNR dB':>10}{'least':>8}")
    rows = [row for row in report if "activations" in row]
    for row in sorted(rows, key=lambda row: row["activations"]["sqnr_db"] or math.inf)[:SHOWN]:
        one = row["activations"]
        print(f"{row['name']:<44}{one['absmax']:>12.4g}{one['rms']:>10.4g}{one['crest']:>9.2f}"
              f"{_decibels(one['sqnr_db'], 10)}{_decibels(one['sqnr_db_min'], 8)}")  # fmt: skip


def _decibels(number: float | None, width: int) -> str:
    return f"{'-':>{width}}" if number is None else f"{number:>{width}.2f}"


def _perplexity(args: argparse.Namespace, path: str, config: bitnet.EngineConfig, text: str) -> dict[str, Any]:
    with bitnet.InferenceEngine(config) as engine:
        with loading(args.quiet) as show:
            model = engine.load_model(path, progress=show)
        with counting(args.quiet, "tokens") as count:
            found = interruptible(engine, lambda: bitnet.perplexity(engine, model, text, progress=count))
    return {**found, "vocab_size": model.config.vocab_size}


def _print_perplexity(before: dict[str, Any], after: dict[str, Any]) -> None:
    print(f"perplexity {before['perplexity']:.4f} with the weights of SRC as they are, {after['perplexity']:.4f} as "
          f"ternary: {after['nll'] - before['nll']:+.4f} nats a token over {after['tokens']:,} tokens (context "
          f"{after['context']}, stride {after['stride']}); a guess among all has {after['vocab_size']}")  # fmt: skip
