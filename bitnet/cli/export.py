"""Make a model that can be run of a training run: ternary weights, packed, in the format asked for."""

import argparse
import os
import tempfile

import bitnet
from bitnet import train

__all__ = ["add_arguments", "run"]

FORMATS = ("hugging_face", "bitnet", "gguf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bitnet export``.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    """
    parser.add_argument("source", metavar="RUN", help="the folder of a run, whose best model is taken, or a .pt file")
    parser.add_argument("target", metavar="TARGET", help="the folder, or the .gguf file, to be made")
    parser.add_argument("--to", choices=FORMATS, default=FORMATS[0],
                        help=f"of TARGET, as of `bitnet convert` (default: {FORMATS[0]})")
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
    options = {"dtype": args.dtype, "merge_lora": args.merge_lora}
    if args.to == FORMATS[0]:
        train.export_checkpoint(args.source, args.target, **options)
    else:
        with tempfile.TemporaryDirectory() as folder:
            packed = os.path.join(folder, os.path.basename(os.path.abspath(args.target)))
            train.export_checkpoint(args.source, packed, **options)
            bitnet.convert(packed, args.target, to=args.to)
    print(f"{args.target} is written; try: bitnet generate -m {args.target} \"Once upon a time\"")
    return 0
