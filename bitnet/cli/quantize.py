"""Round a float checkpoint to ternary, and report what that costs.

A model that was not trained for ternary weights loses much of its quality by this. With --text it is said how much.
"""

import argparse
import json

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
    parser.add_argument("--text", metavar="FILE", help="a text on which the result's perplexity is measured")
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
    text = None if args.text is None else read_text(args.text)
    with loading(args.quiet, "quantizing") as show:
        report = bitnet.quantize_checkpoint(args.source, args.target, config, to=args.to, force=args.force,
                                            progress=show)  # fmt: skip
    if args.report:
        with open(args.report, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=2)
    if args.plot:
        bitnet.plot_report(report, args.plot)
    print(f"{'worst weights':<44}{'mse':>12}{'SQNR dB':>10}{'cosine':>9}{'zeros':>8}")
    for row in report[:SHOWN]:
        decibels = "-" if row["sqnr_db"] is None else f"{row['sqnr_db']:.2f}"
        print(f"{row['name']:<44}{row['mse']:>12.4g}{decibels:>10}{row['cosine']:>9.4f}{row['zeros']:>8.1%}")
    print(f"{len(report)} weights, mean cosine {sum(row['cosine'] for row in report) / len(report):.4f}")
    print(HONEST)
    if text is not None:
        _print_perplexity(args, text)
    return 0


def _print_perplexity(args: argparse.Namespace, text: str) -> None:
    with bitnet.InferenceEngine() as engine:
        with loading(args.quiet) as show:
            model = engine.load_model(args.target, progress=show)
        with counting(args.quiet, "tokens") as count:
            found = interruptible(engine, lambda: bitnet.perplexity(engine, model, text, progress=count))
    print(f"perplexity of the result {found['perplexity']:.4f} over {found['tokens']:,} tokens; that of a guess among "
          f"all tokens would be {model.config.vocab_size}")  # fmt: skip
