"""What the commands that generate share: the options that choose tokens, and how fast it went."""

import argparse
from typing import Any

import bitnet
from bitnet.cli.session import read_text

__all__ = ["add_generation_arguments", "generation_grammar", "generation_settings", "speeds"]

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")
"""Options that ask for drawing: without `--do-sample` they would mean nothing."""


def add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the fields of `GenerationConfig`.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    """
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
    parser.add_argument("--typical-p", type=float, metavar="X",
                        help="draw from tokens whose surprise is as expected; implies --do-sample")
    parser.add_argument("--repetition-penalty", type=float, metavar="X", help="above 1 to avoid what has occurred")
    parser.add_argument("--frequency-penalty", type=float, metavar="X", help="for each time that a token came")
    parser.add_argument("--presence-penalty", type=float, metavar="X", help="for a token that was there")
    parser.add_argument("--no-repeat-ngram-size", type=int, metavar="N", help="so many tokens in a row come only once")
    parser.add_argument("--prompt-lookup", type=int, dest="prompt_lookup_num_tokens", metavar="N",
                        help="guess so many tokens at once from the text so far: the same answer, faster for edits")
    parser.add_argument("--seed", type=int, metavar="N", help="of the drawing")
    parser.add_argument("--stop", action="append", dest="stop_strings", metavar="TEXT",
                        help="ends the text where it appears; repeatable")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--json-schema", metavar="FILE", help="the answer is JSON of this schema (extra grammar)")
    group.add_argument("--regex", metavar="TEXT", help="the answer is what this matches (extra grammar)")
    group.add_argument("--grammar", metavar="FILE",
                       help="the answer is of this grammar, in llguidance's Lark (extra grammar)")  # fmt: skip


def generation_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Read what the command line says about choosing tokens; the rest is the model's to say.

    Parameters
    ----------
    args : argparse.Namespace

    Returns
    -------
    dict
        Fields of `GenerationConfig`.
    """
    names = ("max_new_tokens", "min_new_tokens", "repetition_penalty", "frequency_penalty", "presence_penalty",
             "no_repeat_ngram_size", "prompt_lookup_num_tokens", "seed", "stop_strings", *SAMPLING)
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


def generation_grammar(args: argparse.Namespace) -> bitnet.Grammar | None:
    """Make the grammar that the command line asks for.

    Parameters
    ----------
    args : argparse.Namespace

    Returns
    -------
    Grammar or None
    """
    if args.regex is not None:
        return bitnet.Grammar.regex(args.regex)
    if args.json_schema is not None:
        return bitnet.Grammar.json_schema(read_text(args.json_schema))
    return None if args.grammar is None else bitnet.Grammar.lark(read_text(args.grammar))


def speeds(done: bitnet.Completion) -> str:
    """Write how fast an answer came.

    Parameters
    ----------
    done : Completion

    Returns
    -------
    str
        A line.
    """
    # The first token came with the prompt; one that ended the text took a step, too.
    steps = len(done.tokens) - 1 + (done.finish_reason == "eos")

    def speed(tokens: int, seconds: float) -> str:
        return f", {tokens / seconds:.1f} tokens/s" if tokens > 0 and seconds > 0 else ""

    return (
        f"prompt: {done.prompt_tokens} tokens{speed(done.prompt_tokens, done.prompt_s)}; first token after "
        f"{done.first_token_s:.2f} s; generated: {len(done.tokens)} tokens{speed(steps, done.generate_s)}; "
        f"ended by: {done.finish_reason}"
    )
