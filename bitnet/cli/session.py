"""What the commands that run a model share: loading it with progress, and stopping it by Ctrl-C."""

import argparse
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import bitnet
from bitnet.errors import BitNetError, ConfigurationError, ModelLoadError

__all__ = ["add_engine_arguments", "counting", "engine_config", "interruptible", "loading", "peak_rss_bytes",
           "read_text", "refused"]  # fmt: skip

T = TypeVar("T")

SHOW_S = 0.1  # between two lines of progress


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the fields of `EngineConfig` that choose how a checkpoint is read, and how weights and cache are stored.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    """
    parser.add_argument("--packing", default="auto", metavar="NAME", help="auto, i2 or t5 (default: auto)")
    parser.add_argument("--kv-dtype", default="float16", metavar="NAME",
                        help="float16, float32 or int8 (default: float16)")
    parser.add_argument("--head-dtype", default="int8", metavar="NAME",
                        help="int8, float16, bfloat16 or float32 (default: int8)")  # fmt: skip
    parser.add_argument("--load", default="mmap", metavar="NAME", help="of a converted checkpoint: mmap, opened at "
                        "once and shared between processes, or copy, which generates faster (default: mmap)")
    parser.add_argument("--activations", default="auto", metavar="NAME",
                        help="what weights multiply: auto, int8, or float32 for activations as they are")
    parser.add_argument("--weights", default="ternary", metavar="NAME",
                        help="what weights stored as floats become: ternary, or float for what they are, which is slow")
    parser.add_argument("--hidden-act", default="auto", metavar="NAME",
                        help="the gate's function, where a GGUF file means another than its architecture: relu2, silu")
    parser.add_argument("--i2s-layout", default="auto", metavar="NAME",
                        help="of I2_S weights in a GGUF file: auto, x86, arm or rows4 (default: auto)")  # fmt: skip


def engine_config(args: argparse.Namespace, num_threads: int | None) -> bitnet.EngineConfig:
    """Make the configuration that the arguments ask for; what cannot be used is a usage error.

    Parameters
    ----------
    args : argparse.Namespace
    num_threads : int or None

    Returns
    -------
    EngineConfig
    """
    with refused(args):
        return bitnet.EngineConfig(
            num_threads=num_threads, packing=args.packing, kv_dtype=args.kv_dtype, head_dtype=args.head_dtype,
            load=args.load,
            activations=args.activations, weights=args.weights, hidden_act=args.hidden_act, i2s_layout=args.i2s_layout,
        )  # fmt: skip


@contextlib.contextmanager
def refused(args: argparse.Namespace) -> Iterator[None]:
    """Make a usage error of a `ConfigurationError`.

    Parameters
    ----------
    args : argparse.Namespace
    """
    try:
        yield
    except ConfigurationError as error:
        args.parser.error(str(error))


@contextlib.contextmanager
def loading(is_quiet: bool = False, what: str = "loading") -> Iterator[Callable[[int, int, str], None]]:
    """Show on standard error how far loading is, while that is a terminal.

    Parameters
    ----------
    is_quiet : bool, optional
    what : str, optional
        What is being done.

    Yields
    ------
    callable
        To be called with bytes done, bytes in all, and a name.
    """
    is_shown = not is_quiet and sys.stderr is not None and sys.stderr.isatty()
    next_s = 0.0

    def show(done: int, total: int, name: str) -> None:
        nonlocal next_s
        if is_shown and time.monotonic() >= next_s:
            next_s = time.monotonic() + SHOW_S
            print(f"\r\x1b[K{what} {done / max(total, 1):4.0%} {ascii(name)[1:-1][:60]}", end="", file=sys.stderr,
                  flush=True)  # fmt: skip

    try:
        yield show
    finally:
        if is_shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def counting(is_quiet: bool, what: str) -> Iterator[Callable[[int, int], None]]:
    """Show on standard error how many of something are done, while that is a terminal.

    Parameters
    ----------
    is_quiet : bool
    what : str
        What is counted.

    Yields
    ------
    callable
        To be called with how many are done, and how many there are.
    """
    with loading(is_quiet, what) as show:
        yield lambda done, total: show(done, total, f"{done:,} of {total:,}")


def read_text(path: str) -> str:
    """Read a text in UTF-8.

    Parameters
    ----------
    path : str
        - is standard input.

    Returns
    -------
    str
    """
    try:
        if path == "-":
            return sys.stdin.read()
        with open(path, encoding="utf-8", newline="") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError.unreadable(path, getattr(error, "strerror", None) or str(error)) from error


def interruptible(engine: bitnet.InferenceEngine, function: Callable[[], T]) -> T:
    """Call a function that runs `engine`, so that Ctrl-C ends it within one operation.

    Python hears of a signal only between its own instructions, and a run is native code; so the run has a thread of
    its own, and this one listens.

    Parameters
    ----------
    engine : InferenceEngine
    function : callable

    Returns
    -------
    object
        What `function` returns; what it raises is raised here.
    """
    outcome: list[Any] = []
    problem: list[BaseException] = []

    def work() -> None:
        begun.set()
        try:
            outcome.append(function())
        except BaseException as error:
            problem.append(error)
        finally:
            finished.set()

    # Not by joining the thread: in Python 3.11 and 3.12 an interrupted join takes a living thread for a dead one.
    begun, finished = threading.Event(), threading.Event()
    try:
        threading.Thread(target=work, daemon=True).start()
        finished.wait()
    except KeyboardInterrupt:
        # It may come while the thread is started, before or after there is one.
        if begun.wait(1):
            engine.cancel()
            finished.wait()
        if problem and not isinstance(problem[0], BitNetError):
            raise problem[0] from None
        raise
    if problem:
        raise problem[0]
    result: T = outcome[0]
    return result


def peak_rss_bytes() -> int:
    """Find the most memory that this process has had.

    Returns
    -------
    int
        0 where the system does not say.
    """
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii", errors="replace") as file:
        # Not getrusage: after exec its value begins with that of the process before.
        found = [int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM:")]
        if found:
            return found[0]
    with contextlib.suppress(ImportError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return 0
