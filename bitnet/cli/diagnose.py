"""Look at what every operation of a model makes; or find the first operation in which two models differ.

The exit code is 1 where an operation makes a number that is not finite, or the two differ.
"""

import argparse

import bitnet
from bitnet import machine
from bitnet.cli.profile import tokens_or_text
from bitnet.cli.session import add_engine_arguments, engine_config, loading

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bitnet diagnose``.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    """
    parser.add_argument(
        "model", nargs="?", metavar="MODEL",
        help="a Hugging Face folder or a GGUF file (default: the model that comes with bitnet)",
    )  # fmt: skip
    parser.add_argument("-p", "--prompt", metavar="PROMPT",
                        help="a text, or token ids with commas (default: 1,2,...,16)")
    parser.add_argument("--compare", metavar="OTHER", help="another checkpoint of the same shape to run side by side")
    parser.add_argument("--compare-isa", metavar="ISA", help="run the second on another instruction set")
    parser.add_argument("--compare-packing", metavar="NAME", help="pack the second in another way")
    parser.add_argument("--compare-threads", type=int, metavar="N", help="run the second on another number of threads")
    parser.add_argument("--tolerance", type=float, default=0.0, metavar="X",
                        help="the relative RMS of the differences that is none (default: 0, every bit counts)")
    parser.add_argument("--num-threads", type=int, metavar="N", help="(default: what this process may use)")
    add_engine_arguments(parser)
    parser.set_defaults(run=run, parser=parser)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run the prompt, once or twice, and print what is found.

    Parameters
    ----------
    args : argparse.Namespace

    Returns
    -------
    int
        1 where something is wrong, else 0.
    """
    variants = [args.compare, args.compare_isa, args.compare_packing, args.compare_threads]
    is_comparison = any(one is not None for one in variants)
    mine = _diagnosed(args, args.model, args.packing, args.num_threads, None, is_comparison)
    if not is_comparison:
        print(mine.table())
        if mine.first_bad is None:
            return 0
        bad = mine.first_bad
        print(f"\n'{bad.name}' ({bad.kind}) is the first operation that makes a number that is not finite: "
              f"{bad.nan} NaN and {bad.inf} infinite of {bad.elements}")  # fmt: skip
        return 1
    other = _diagnosed(
        args, args.compare or args.model, args.compare_packing or args.packing,
        args.compare_threads or args.num_threads, args.compare_isa, True,
    )  # fmt: skip
    differing = [one for one in mine.differences(other) if not one.relative <= args.tolerance]
    if not differing:
        print(f"the {len(mine.operations)} operations make the same numbers")
        return 0
    first = differing[0]
    print(f"'{first.name}' ({first.kind}) is the first of {len(differing)} operations that differ: {first.differing} "
          f"elements, at most by {first.largest:.6g} at {first.index} ({first.mine:.9g} and {first.other:.9g}); "
          f"relative RMS {first.relative:.3g}")  # fmt: skip
    last = differing[-1]
    print(f"the last, '{last.name}', differs by at most {last.largest:.6g}; relative RMS {last.relative:.3g}")
    return 1


def _diagnosed(
    args: argparse.Namespace, path: str, packing: str, num_threads: int | None, isa: str | None, keep: bool
) -> bitnet.Diagnosis:
    before = machine.describe().isa
    if isa is not None:
        machine.select_isa(isa)
    try:
        args.packing = packing
        with bitnet.InferenceEngine(engine_config(args, num_threads)) as engine, loading() as show:
            model = engine.load_model(path, progress=show)
            return bitnet.diagnose(model, tokens_or_text(args.prompt, model), keep=keep)
    finally:
        if isa is not None:
            machine.select_isa(before)
