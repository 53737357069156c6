"""Continue a text, token by token, or answer a message.

The text goes to standard output as it comes; speeds go to standard error.
"""

import argparse
import sys

import bitnet
from bitnet.cli.options import add_generation_arguments, generation_grammar, generation_settings, speeds
from bitnet.cli.session import add_engine_arguments, engine_config, interruptible, loading, refused

__all__ = ["add_arguments", "run"]

def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bitnet generate``.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    """
    parser.add_argument("prompt", metavar="PROMPT", help="the text to continue; - reads it from standard input")
    parser.add_argument("-m", "--model", metavar="CHECKPOINT",
                        help="a Hugging Face folder or a GGUF file (default: the model that comes with bitnet)")
    parser.add_argument("--chat", action="store_true", help="the prompt is a message: use the chat template")
    add_generation_arguments(parser)
    parser.add_argument("--num-threads", type=int, metavar="N", help="(default: what this process may use)")
    add_engine_arguments(parser)
    parser.add_argument("--quiet", action="store_true", help="print the text and nothing else")
    parser.set_defaults(run=run, parser=parser)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Load the model, and print what it says.

    Parameters
    ----------
    args : argparse.Namespace

    Returns
    -------
    int
        0.
    """
    settings = generation_settings(args)
    with refused(args):
        bitnet.GenerationConfig(**{"do_sample": False, **settings})  # what can never be used is refused before loading
        grammar = generation_grammar(args)
    prompt = sys.stdin.read().removesuffix("\n") if args.prompt == "-" else args.prompt
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a character that a terminal does not know is no reason to stop
    with bitnet.InferenceEngine(engine_config(args, args.num_threads)) as engine:
        with loading(args.quiet) as show:
            model = engine.load_model(args.model, progress=show)
        if args.chat:
            prompt = model.chat_prompt([{"role": "user", "content": prompt}])
        with refused(args):
            config = model.generation_config.replace(**settings)
        stream = engine.stream(model, prompt, config, grammar=grammar)
        try:
            interruptible(engine, lambda: _print_pieces(stream))
        finally:
            text = stream.completion.text
            if text and not text.endswith("\n"):
                print()
        sys.stdout.flush()
        if not args.quiet:
            print(speeds(stream.completion), file=sys.stderr)
    return 0


def _print_pieces(stream: bitnet.Stream) -> None:
    for piece in stream:
        if piece.text:
            print(piece.text, end="", flush=True)
