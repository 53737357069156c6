"""Make a model that can be run of a training run: a Hugging Face folder of packed ternary weights."""

import argparse

from bitnet import train

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bitnet export``.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    """
    parser.add_argument("source", metavar="RUN", help="the folder of a run, whose best model is taken, or a .pt file")
    parser.add_argument("folder", metavar="FOLDER", help="to be made")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16",
                        help="of the embedding and the norms (default: bfloat16)")
    parser.add_argument("--merge-lora", action="store_true",
                        help="quantise adapters into the weights, which changes the function a little")
    parser.set_defaults(run=run)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Export, and say how large it is.

    Parameters
    ----------
    args : argparse.Namespace

    Returns
    -------
    int
        0.
    """
    nbytes = train.export_checkpoint(args.source, args.folder, dtype=args.dtype, merge_lora=args.merge_lora)
    print(f"{args.folder}: {nbytes:,} bytes of weights; try: bitnet generate -m {args.folder} \"Once upon a time\"")
    return 0
