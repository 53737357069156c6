"""Write a checkpoint in another format: this package's own, GGUF, or Hugging Face's packed one.

What is written appears when it is whole; an error, or Ctrl-C, leaves nothing of it.
"""

import argparse

import bitnet
from bitnet.cli.session import loading, refused

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bitnet convert``.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    """
    parser.add_argument("source", metavar="SRC", help="a checkpoint: a Hugging Face folder or a GGUF file")
    parser.add_argument("target", metavar="DST", help="the folder, or the .gguf file, to be written")
    parser.add_argument("--to", metavar="FORMAT", choices=("bitnet", "hugging_face", "gguf"),
                        help="bitnet (weights as kernels read them, opened at once), hugging_face (for Transformers) "
                             "or gguf (default: gguf if DST ends so, else bitnet)")
    parser.add_argument("--gguf-type", default="I2_S", metavar="TYPE", choices=("I2_S", "TQ1_0", "TQ2_0"),
                        help="of ternary weights in a GGUF file: I2_S, TQ1_0 or TQ2_0 (default: I2_S)")
    parser.add_argument("--packing", default="auto", metavar="NAME",
                        help="in a bitnet folder: auto (the best for this machine), i2 or t5 (default: auto)")
    parser.add_argument("--round-scales", action="store_true", help="let TQ1_0 and TQ2_0 round scales to float16")
    parser.add_argument("--force", action="store_true", help="replace DST if it is there")
    parser.add_argument("--hidden-act", default="auto", metavar="NAME", help="the gate's function, as of `generate`")
    parser.add_argument("--i2s-layout", default="auto", metavar="NAME", help="of SRC: auto, x86, arm or rows4")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.set_defaults(run=run, parser=parser)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Convert, and print what was written.

    Parameters
    ----------
    args : argparse.Namespace

    Returns
    -------
    int
        0.
    """
    to = args.to or ("gguf" if args.target.endswith(".gguf") else "bitnet")
    with refused(args), loading(args.quiet, "converting") as show:
        found = bitnet.convert(
            args.source, args.target, to=to, gguf_type=args.gguf_type, packing=args.packing, force=args.force,
            round_scales=args.round_scales, hidden_act=args.hidden_act, i2s_layout=args.i2s_layout, progress=show,
        )  # fmt: skip
    if not args.quiet:
        for note in found["notes"]:
            print(f"note: {note}")
        for name, digest in found["sha256"].items():
            print(f"{digest}  {name}")
        print(f"{found['path']}: {found['bytes']:,} bytes")
    return 0
