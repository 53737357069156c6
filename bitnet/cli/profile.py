"""Show where the time of a model's steps goes, operation by operation.

The prompt runs and some tokens are generated once to warm up, and then again, measured.
"""

import argparse

import bitnet
from bitnet.cli.session import add_engine_arguments, engine_config, interruptible, loading, refused

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bitnet profile``.

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
    parser.add_argument("--max-new-tokens", type=int, default=16, metavar="N", help="(default: 16)")
    parser.add_argument("--by", choices=("operation", "kind", "layer"),
                        help="what to add up (default: kind, and operation)")
    parser.add_argument("--limit", type=int, default=30, metavar="N", help="the most rows of a table (default: 30)")
    parser.add_argument("--chrome-trace", metavar="FILE", help="write a file for chrome://tracing or Perfetto")
    parser.add_argument("--plot", metavar="FILE", help="draw the shares (needs the extra 'plot')")
    parser.add_argument("--num-threads", type=int, metavar="N", help="(default: what this process may use)")
    add_engine_arguments(parser)
    parser.set_defaults(run=run, parser=parser)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Load the model, run it, and print the tables.

    Parameters
    ----------
    args : argparse.Namespace

    Returns
    -------
    int
        0.
    """
    with refused(args):
        config = bitnet.GenerationConfig(max_new_tokens=args.max_new_tokens, eos_token_id=())
    with bitnet.InferenceEngine(engine_config(args, args.num_threads).replace(prefix_cache=False)) as engine:
        with loading() as show:
            model = engine.load_model(args.model, progress=show)
        prompt = tokens_or_text(args.prompt, model)
        interruptible(engine, lambda: engine.generate(model, prompt, config))
        with bitnet.profile() as found:
            interruptible(engine, lambda: engine.generate(model, prompt, config))
    for by in [args.by] if args.by else ["kind", "operation"]:
        print(found.table(by, args.limit), end="\n\n")
    if args.chrome_trace:
        found.to_chrome_trace(args.chrome_trace)
    if args.plot:
        found.plot(args.plot)
    return 0


def tokens_or_text(given: str | None, model: bitnet.Model) -> str | list[int]:
    """Read a prompt of the command line.

    Parameters
    ----------
    given : str or None
        None for sixteen tokens of the vocabulary.
    model : Model

    Returns
    -------
    str or list of int
    """
    if given is None:
        return [1 + i % (model.config.vocab_size - 1) for i in range(16)]
    parts = given.split(",")
    if all(part.strip().isdecimal() and len(part) < 10 for part in parts):
        return [int(part) for part in parts]
    return given
