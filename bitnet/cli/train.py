"""Train a ternary model on text files, or go on with a run.

Settings come from a TOML file, from flags, or both; flags win. A run is a folder: `last.pt` to go on from, `best.pt`
with the lowest validation loss, `tokenizer.json`, `log.jsonl` and the loss curve. Ctrl-C ends it after the step under
way, and `--resume` goes on from there. `bitnet export` makes a model of it.
"""

import argparse
import contextlib
import dataclasses
import inspect
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from bitnet import train
from bitnet.cli.session import refused
from bitnet.errors import BitNetError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bitnet train``: one for each field of `TrainConfig`.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    """
    parser.add_argument("config", nargs="?", metavar="FILE", help="a TOML file of settings")
    parser.add_argument("--resume", action="store_true", help="go on where the run in --output stopped")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    explained = _explained()
    fields = parser.add_argument_group("settings")
    for field in dataclasses.fields(train.TrainConfig):
        flag, kind = "--" + field.name.replace("_", "-"), str(field.type)
        default = "" if field.default in (None, ()) else f" (default: {_plain(field.default)})"
        options: dict[str, Any] = {"dest": f"set_{field.name}", "default": None}
        if "bool" in kind:
            options["action"] = argparse.BooleanOptionalAction
        else:
            number = int if "int" in kind else float if "float" in kind else str
            options |= {"type": number, "metavar": {int: "N", float: "X", str: "TEXT"}[number]}
            options |= {"nargs": "+"} if "tuple" in kind else {}
        fields.add_argument(flag, help=(explained[field.name] + default).replace("%", "%%"), **options)
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Train, and show how far it is.

    Parameters
    ----------
    args : argparse.Namespace

    Returns
    -------
    int
        0; 130 when Ctrl-C ended it.
    """
    given = {name.removeprefix("set_"): value for name, value in vars(args).items()
             if name.startswith("set_") and value is not None}  # fmt: skip
    with refused(args):
        config = train.TrainConfig.from_toml(args.config, **given) if args.config else train.TrainConfig(**given)
        if not config.data:
            args.parser.error("give text files to train on: --data FILE ...")
    with _shown(args.quiet) as report:
        trainer = train.Trainer(config, resume=args.resume, report=report)
        with _stopped_by_signals(trainer) as caught:
            trainer.train()
    print(f"{trainer.step} steps, {trainer.tokens:,} tokens in {trainer.elapsed / 60:.1f} min; the run is in "
          f"'{config.output}'", file=sys.stderr)  # fmt: skip
    try:
        train.plot_losses(config.output, os.path.join(config.output, "loss.svg"))
    except BitNetError as error:
        print(f"no loss curve: {error}", file=sys.stderr)
    return 130 if caught else 0


def _explained() -> dict[str, str]:
    """What the docstring of `TrainConfig` says of each field."""
    text = inspect.cleandoc(train.TrainConfig.__doc__ or "").partition("Parameters\n----------\n")[2]
    found = {}
    for names, said in re.findall(r"(?m)^(\w[\w, ]*) : .*\n((?:    .*\n?)+)", text):
        for name in names.split(", "):
            found[name] = " ".join(said.split()).removesuffix(".")
    return found


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


@contextlib.contextmanager
def _shown(is_quiet: bool) -> Iterator[Callable[[dict[str, Any]], None] | None]:
    """A bar on a terminal, and a line for each evaluation."""
    if is_quiet:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False, markup=False)
    columns = (TextColumn("step {task.fields[step]}"), BarColumn(), TextColumn("{task.percentage:.0f}%"),
               TextColumn("loss {task.fields[loss]}  {task.fields[speed]} tokens/s"),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0, step=0, loss="", speed="")

        def report(line: dict[str, Any]) -> None:
            if line["event"] == "progress":
                bar.update(task, completed=line["done"], step=line["step"], loss=f"{line['loss']:.3f}",
                           speed=f"{line['tokens_per_s']:,.0f}")  # fmt: skip
            elif line["event"] == "start":
                console.print(f"{line['parameters']:,} parameters; at step {line['step']}")
            elif line["event"] == "evaluate":
                losses = f"{line['loss']:.4f} nats a token, {line['bits_per_character']:.4f} bits a character"
                console.print(f"step {line['step']}: validation {losses}" + " (best)" * line["is_best"])
                for text in line["samples"].values():
                    console.print("    " + " ".join(text.split()))
            elif line["event"] == "early stop":
                console.print(f"step {line['step']}: nothing gets better, so this is the end")

        yield report


@contextlib.contextmanager
def _stopped_by_signals(trainer: Any) -> Iterator[list[int]]:
    """Let the first Ctrl-C, or a SIGTERM, end the run in order; the second Ctrl-C ends it at once."""
    caught: list[int] = []

    def handle(number: int, frame: Any) -> None:
        caught.append(number)
        trainer.stop()
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
