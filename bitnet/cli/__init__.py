"""The command line. A subcommand is a module here and a line in `COMMANDS`; it uses public names only.

The module has a docstring, whose first line is its help, ``add_arguments(parser)``, which sets the default ``run``,
and that function: from the parsed arguments to the exit code.
"""

import argparse
import contextlib
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import TextIO

import bitnet
from bitnet.errors import BitNetError

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "batch": "bitnet.cli.batch",
    "bench": "bitnet.cli.bench_model",
    "bench kernels": "bitnet.cli.bench",
    "chat": "bitnet.cli.chat",
    "compare": "bitnet.cli.compare",
    "convert": "bitnet.cli.convert",
    "diagnose": "bitnet.cli.diagnose",
    "doctor": "bitnet.cli.doctor",
    "export": "bitnet.cli.export",
    "generate": "bitnet.cli.generate",
    "inspect": "bitnet.cli.inspect",
    "perplexity": "bitnet.cli.perplexity",
    "profile": "bitnet.cli.profile",
    "quantize": "bitnet.cli.quantize",
    "serve": "bitnet.cli.serve",
    "train": "bitnet.cli.train",
}
"""Every subcommand, one or two words, and its module."""

# As a shell reports a program that a signal ended: 128 and the signal's number, SIGINT's 2 and SIGPIPE's 13.
INTERRUPTED, PIPE_CLOSED = 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments, without the program's name; by default those of this process.

    Returns
    -------
    int
        0: done. 1: an error, told in one line on standard error. 2: arguments that cannot be used. 130: stopped by
        Ctrl-C. 141: the reader of a pipe has gone.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return _run(arguments)


def _run(arguments: list[str]) -> int:
    try:
        arguments = _joined(arguments)
        args = _parser(next((one for one in arguments if not one.startswith("-")), None)).parse_args(arguments)
        code: int = args.run(args)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except SystemExit as ending:  # argparse ends so, with 0 after --help and --version
        return ending.code if isinstance(ending.code, int) else 2
    except KeyboardInterrupt:
        _complain("stopped")
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return PIPE_CLOSED
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        elif isinstance(error, BitNetError):
            _complain(str(error))
        else:
            _complain(f"{type(error).__name__}: {error} (--debug shows where)")
        if isinstance(error, OSError):
            _drop_output()
        return 1


def _parser(wanted: str | None) -> argparse.ArgumentParser:
    """Of the wanted command, or of all: to import one is much faster."""
    parser = argparse.ArgumentParser(
        prog="bitnet",
        description="Run, train and inspect BitNet b1.58 models on ordinary CPUs.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"bitnet {bitnet.__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in [wanted] if wanted in COMMANDS else COMMANDS:
        command = importlib.import_module(COMMANDS[name])
        summary = (command.__doc__ or "").partition("\n")[0]
        added = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        added.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.add_arguments(added)
    return parser


def _joined(arguments: list[str]) -> list[str]:
    """The arguments, with a subcommand of two words as one."""
    first = next((i for i, one in enumerate(arguments) if not one.startswith("-")), 0)
    words = " ".join(arguments[first : first + 2])
    return [*arguments[:first], words, *arguments[first + 2 :]] if words in COMMANDS else arguments


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _complain(f"{'note' if category is UserWarning else category.__name__}: {message}")


def _complain(sentence: str) -> None:
    # One line: what a message quotes may have several.
    print("bitnet:", " ".join(sentence.split()), file=sys.stderr)


def _drop_output() -> None:
    """Leave nothing that Python could fail to write when it ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
