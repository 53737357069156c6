"""Instruments to see what goes on: debug mode, logging, traces, and times of operations.

All are quiet until asked: by `debug`, or from outside by ``BITNET_DEBUG=1`` (debug mode for the whole process) and
``BITNET_LOG=debug`` or ``trace`` (messages on standard error). Messages go through the standard `logging`; loggers are
named as the modules are, below ``"bitnet"``.
"""

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from bitnet._core.program import add_recorder, remove_recorder
from bitnet.errors import ConfigurationError
from bitnet.memory import HybridMemoryPool

__all__ = ["TRACE", "debug", "debug_trace", "is_debugging", "time_operation"]

TRACE = 5
"""The level of `logging` below DEBUG, for messages of every operation."""

SLOW_S = 0.010  # the guide's threshold: longer than any operation of a model that answers as one reads

R = TypeVar("R")

_root = logging.getLogger("bitnet")
_log = logging.getLogger(__name__)
_depth = 0  # of `debug`, and of BITNET_DEBUG
_levels: list[int] = []  # of each `debug` at work, after the one before them all


def is_debugging() -> bool:
    """Say whether debug mode is on.

    Returns
    -------
    bool
    """
    return _depth > 0


@contextlib.contextmanager
def debug(level: int | str = logging.DEBUG) -> Iterator[None]:
    """Have debug mode within a ``with``.

    `debug_trace` speaks, messages of `level` and above reach standard error (``"trace"`` tells every operation of every
    run), and the process's memory pool notes tracebacks of what is allocated. Afterwards all is as before. For the
    whole process, not for one thread.

    Parameters
    ----------
    level : int or str, optional
        Of `logging`: ``"debug"``, ``"trace"``, or a number.

    Yields
    ------
    None

    Raises
    ------
    ConfigurationError
        If there is no such level.
    """
    global _depth
    number = _level_of("level", level) if isinstance(level, str) else level
    _write(1)
    if not _levels:
        _levels.append(_root.level)
    _levels.append(number)
    _root.setLevel(number)
    _depth += 1
    _trace_operations(number <= TRACE)
    try:
        with HybridMemoryPool.instance().track(tracebacks=True):
            yield
    finally:
        _trace_operations(-(number <= TRACE))
        _depth -= 1
        _levels.reverse()
        _levels.remove(number)  # the last such one: two threads may end in any order
        _levels.reverse()
        _root.setLevel(_levels[-1])
        if len(_levels) == 1:
            _levels.clear()
        _write(-1)


def debug_trace(message: str, *args: Any, **data: Any) -> None:
    """Tell something while debugging; otherwise nothing is formatted or computed.

    Parameters
    ----------
    message : str
        With places for `args`, as ``%s``.
    *args
        A callable among them is called, and its result written, only while debugging: what costs time to find out.
    **data
        Facts to add, by name; the same holds for callables.
    """
    if not _depth:
        return
    values = tuple(value() if callable(value) else value for value in args)
    facts = ", ".join(f"{name}={value() if callable(value) else value!r}" for name, value in data.items())
    caller = sys._getframe(1)
    where = f"{os.path.basename(caller.f_code.co_filename)}:{caller.f_lineno}"
    logging.getLogger(caller.f_globals.get("__name__", __name__) if _is_ours(caller) else __name__).debug(
        "%s %s%s", where, message % values if values else message, f" ({facts})" if facts else ""
    )


def _is_ours(frame: Any) -> bool:
    return str(frame.f_globals.get("__name__", "")).startswith("bitnet.")


class _Timed(contextlib.ContextDecorator):
    """What `time_operation` gives without a function.

    Attributes
    ----------
    seconds : float
        How long it took, the last time.
    """

    def __init__(self, name: str, threshold_s: float) -> None:
        self.name, self.threshold_s, self.seconds = name, threshold_s, 0.0
        self._started: list[float] = []

    def __enter__(self) -> Self:
        self._started.append(time.perf_counter())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.seconds = time.perf_counter() - self._started.pop()
        ended = "" if kind is None else f" (ended by {kind.__name__})"
        if self.seconds >= self.threshold_s:
            _log.warning("slow operation %s: %.3f ms%s", self.name, self.seconds * 1e3, ended)
        elif _log.isEnabledFor(logging.DEBUG):
            _log.debug("operation %s: %.3f ms%s", self.name, self.seconds * 1e3, ended)

    def _recreate_cm(self) -> Self:  # of ContextDecorator: each call has times of its own
        return type(self)(self.name, self.threshold_s)


@overload
def time_operation(name: str, *, threshold_s: float = SLOW_S) -> _Timed: ...
@overload
def time_operation(
    name: str, function: Callable[..., R], *args: Any, threshold_s: float = SLOW_S, **kwargs: Any
) -> R: ...


def time_operation(name: str, function: Any = None, *args: Any, threshold_s: float = SLOW_S, **kwargs: Any) -> Any:
    """Time something, and log it where it is slow.

    Three ways: ``time_operation("sum", sum, numbers)`` calls the function and returns what it returns;
    ``with time_operation("sum") as timed:`` times a block, whose ``timed.seconds`` tells how long it took; and
    ``@time_operation("sum")`` times every call of a function.

    Parameters
    ----------
    name : str
        For the log.
    function : callable, optional
        Called with `args` and `kwargs`.
    *args
        Of the function.
    threshold_s : float, optional
        From so many seconds on it is logged as a warning; below, only when debugging.
    **kwargs
        Of the function.

    Returns
    -------
    object
        The function's result; without a function, a context manager that is also a decorator.
    """
    timed = _Timed(name, threshold_s)
    if function is None:
        return timed
    with timed:
        return function(*args, **kwargs)


_tracers = 0  # who wants every operation told


def _trace_operations(more: int) -> None:
    global _tracers
    before, _tracers = _tracers, _tracers + more
    if not before and _tracers:
        add_recorder(_log_operations)
    elif before and not _tracers:
        remove_recorder(_log_operations)


_program_log = logging.getLogger("bitnet._core.program")


def _log_operations(program: Any, start_ns: int, times: Any, tokens: int, outputs: int, *_: Any) -> None:
    """A recorder of runs: each operation and its time, at the level TRACE."""
    _program_log.debug("a run of %d tokens, %d outputs: %.3f ms", tokens, outputs, int(times.sum()) / 1e6)
    for name, kind, ns in zip(program.names, program.kinds, times[1:-1].tolist(), strict=True):
        _program_log.log(TRACE, "%s %s: %.1f us", kind, name, ns / 1e3)


# ---- from outside


def _level_of(source: str, word: str) -> int:
    levels = {"trace": TRACE, "debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING,
              "error": logging.ERROR}  # fmt: skip
    if word.lower() not in levels:
        raise ConfigurationError.choice(source, word, tuple(levels))
    return levels[word.lower()]


class _StandardError(logging.StreamHandler[Any]):
    """Writes to what `sys.stderr` is now, which tests and notebooks replace; but nothing that others write there."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        others = logging.getLogger().handlers if _root.propagate else ()
        if not any(getattr(one, "stream", None) is sys.stderr and one.level <= record.levelno for one in others):
            super().emit(record)

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        pass


_handler = _StandardError()
_handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
_writers = 0  # who wants messages written


def _write(more: int) -> None:
    global _writers
    _writers += more
    if _writers:
        _root.addHandler(_handler)  # once, however often it is added
    else:
        _root.removeHandler(_handler)


def start_from_environment(environment: Mapping[str, str] = os.environ) -> None:
    """Obey ``BITNET_LOG`` and ``BITNET_DEBUG``; without them the package is quiet, whatever it logs.

    Parameters
    ----------
    environment : mapping of str to str, optional
        A level that is none is warned of: an import does not fail for it.
    """
    global _depth
    logging.addLevelName(TRACE, "TRACE")
    _root.addHandler(logging.NullHandler())
    is_on, word = environment.get("BITNET_DEBUG", "") not in ("", "0"), environment.get("BITNET_LOG", "")
    level = logging.DEBUG
    try:
        level = _level_of("BITNET_LOG", word) if word else level
    except ConfigurationError as error:
        warnings.warn(f"{error.message}; it is taken for 'debug'", RuntimeWarning, stacklevel=2)
    if is_on:
        _depth += 1
    if word or is_on:
        _root.setLevel(level)
        _write(1)
    _trace_operations(bool(word) and level <= TRACE)
