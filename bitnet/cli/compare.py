"""Measure how far two models are apart on a text: KL divergence, agreement, and where they first differ."""

import argparse
import json

import bitnet
from bitnet.cli.perplexity import add_text_arguments
from bitnet.cli.session import counting, engine_config, interruptible, loading, read_text

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bitnet compare``.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    """
    parser.add_argument("first", metavar="A", help="a checkpoint: a Hugging Face folder or a GGUF file")
    parser.add_argument("second", metavar="B", help="another one with the same vocabulary")
    add_text_arguments(parser)
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Print how far they are apart.

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
        models = []
        for path in (args.first, args.second):
            with loading(args.quiet) as show:
                models.append(engine.load_model(path, progress=show))
        with counting(args.quiet, "tokens") as count:
            how = {"context": args.context, "stride": args.stride, "progress": count}
            found = interruptible(engine, lambda: bitnet.compare(engine, models[0], models[1], text, **how))
    if args.json:
        print(json.dumps(found))
        return 0
    where, nll = found["first_difference"], found["nll"]
    rows = [
        ("KL divergence", f"mean {found['kl_mean']:.6g}, max {found['kl_max']:.6g} nats"),
        ("same most likely token", f"{found['top1_agreement']:.4%} of {found['tokens']:,} positions"),
        ("first difference", "none" if where is None else
         f"position {where['position']}: token {where['tokens'][0]}, and {where['tokens'][1]}"),
        ("largest difference", f"{found['max_logit_difference']:.6g} of a logit"),
        ("nats a token", f"{nll[0]:.5f}, and {nll[1]:.5f}"),
        ("windows", f"context {found['context']}, stride {found['stride']}"),
    ]  # fmt: skip
    for name, value in rows:
        print(f"{name:<24}{value}")
    return 0
