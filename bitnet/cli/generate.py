"""Continue a text, token by token, or answer a message.

The text goes to standard output as it comes; speeds go to standard error.
"""

import argparse
import sys
from typing import Any

import bitnet
from bitnet.cli.session import add_engine_arguments, engine_config, interruptible, loading, refused

__all__ = ["add_arguments", "run"]

SAMPLING = ("temperature", "top_k", "top_p", "min_p")
"""Options that ask for drawing: without `--do-sample` they would mean nothing."""


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
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="the most tokens to generate")
    parser.add_argument("--min-new-tokens", type=int, metavar="N", help="how many before anything may end the text")
    parser.add_argument("--do-sample", action="store_true", help="draw tokens instead of taking the most likely")
    parser.add_argument("--temperature", type=float, metavar="X",
                        help="divides the logits; implies --do-sample, but 0 takes the most likely")
    parser.add_argument("--top-k", type=int, metavar="N", help="draw from so many tokens; implies --do-sample")
    parser.add_argument("--top-p", type=float, metavar="X",
                        help="draw from tokens that together are so likely; implies --do-sample")
    parser.add_argument("--min-p", type=float, metavar="X",
                        help="draw from tokens so likely next to the first; implies --do-sample")
    parser.add_argument("--repetition-penalty", type=float, metavar="X", help="above 1 to avoid what has occurred")
    parser.add_argument("--seed", type=int, metavar="N", help="of the drawing")
    parser.add_argument("--stop", action="append", dest="stop_strings", metavar="TEXT",
                        help="ends the text where it appears; repeatable")
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
    settings = _settings(args)
    with refused(args):
        bitnet.GenerationConfig(**{"do_sample": False, **settings})  # what can never be used is refused before loading
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
        stream = engine.stream(model, prompt, config)
        try:
            interruptible(engine, lambda: _print_pieces(stream))
        finally:
            text = stream.completion.text
            if text and not text.endswith("\n"):
                print()
        sys.stdout.flush()
        if not args.quiet:
            print(_speeds(stream.completion), file=sys.stderr)
    return 0


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line says about choosing tokens; the rest is the model's to say."""
    names = ("max_new_tokens", "min_new_tokens", "repetition_penalty", "seed", "stop_strings", *SAMPLING)
    fields: dict[str, Any] = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if fields.get("temperature") == 0:
        others = [f"--{name.replace('_', '-')}" for name in SAMPLING[1:] if name in fields]
        if args.do_sample or others:
            args.parser.error(f"--temperature 0 takes the most likely token, and {(others or ['--do-sample'])[0]} "
                              "asks for drawing; give one of them")  # fmt: skip
        del fields["temperature"]
        fields["do_sample"] = False
    elif args.do_sample or any(name in fields for name in SAMPLING):
        fields["do_sample"] = True
    return fields


def _print_pieces(stream: bitnet.Stream) -> None:
    for piece in stream:
        if piece.text:
            print(piece.text, end="", flush=True)


def _speeds(done: bitnet.Completion) -> str:
    # The first token came with the prompt; one that ended the text took a step, too.
    steps = len(done.tokens) - 1 + (done.finish_reason == "eos")

    def speed(tokens: int, seconds: float) -> str:
        return f", {tokens / seconds:.1f} tokens/s" if tokens > 0 and seconds > 0 else ""

    return (
        f"prompt: {done.prompt_tokens} tokens{speed(done.prompt_tokens, done.prompt_s)}; first token after "
        f"{done.first_token_s:.2f} s; generated: {len(done.tokens)} tokens{speed(steps, done.generate_s)}; "
        f"ended by: {done.finish_reason}"
    )
