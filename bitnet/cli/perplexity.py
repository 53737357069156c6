"""Measure how well a model predicts a text.

The loss is that of the whole vocabulary; the context and the stride of the windows are printed with the result.
"""

import argparse
import json

import bitnet
from bitnet.cli.session import add_engine_arguments, counting, engine_config, interruptible, loading, read_text

__all__ = ["add_arguments", "add_text_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bitnet perplexity``.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    """
    parser.add_argument("model", metavar="MODEL", help="a checkpoint: a Hugging Face folder or a GGUF file")
    add_text_arguments(parser)
    parser.set_defaults(run=run, parser=parser)


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the text, and how it is gone through.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    """
    parser.add_argument("file", metavar="FILE", help="a text in UTF-8; - reads it from standard input")
    parser.add_argument("--context", type=int, metavar="N", help="tokens of a window (default: 1024, or the model's)")
    parser.add_argument("--stride", type=int, metavar="N", help="by which it moves (default: half of it)")
    parser.add_argument("--num-threads", type=int, metavar="N", help="(default: what this process may use)")
    add_engine_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def run(args: argparse.Namespace) -> int:
    """Print the perplexity.

    Parameters
    ----------
    args : argparse.Namespace

    Returns
    -------
    int
        0.
    """
    text = read_text(args.file)
    with bitnet.InferenceEngine(engine_config(args, args.num_threads)) as engine:
        with loading(args.quiet) as show:
            model = engine.load_model(args.model, progress=show)
        with counting(args.quiet, "tokens") as count:
            found = interruptible(engine, lambda: bitnet.perplexity(
                engine, model, text, context=args.context, stride=args.stride, progress=count))  # fmt: skip
    if args.json:
        print(json.dumps(found))
        return 0
    print(f"perplexity {found['perplexity']:.4f} ({found['nll']:.5f} nats a token) over {found['tokens']:,} tokens; "
          f"context {found['context']}, stride {found['stride']}")  # fmt: skip
    return 0
