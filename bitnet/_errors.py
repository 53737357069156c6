"""The root of the family of errors, the context an error can carry, and how values are written in sentences.

`bitnet.errors` has the family itself; import from there.
"""

import contextlib
import datetime
import math
import reprlib
import sys
import traceback
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, SupportsFloat

SEVERITIES = ("info", "warning", "error", "critical")

BRIEF = reprlib.Repr()  # for what a file says, which may be long
BRIEF.maxstring = BRIEF.maxother = 100


@dataclass(frozen=True)
class ErrorContext:
    """What was going on when an error was raised.

    Parameters
    ----------
    operation : str
        The operation in the caller's words, as ``"matmul"`` or ``"load_model"``.
    description : str, optional
        One sentence about it.
    data : dict, optional
        Facts worth reporting, by name.
    source_location : str, optional
        ``file:line`` of the code that was running.
    stack_trace : str, optional
        The formatted stack, as `traceback.format_stack` gives it.
    """

    operation: str
    description: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    source_location: str = ""
    stack_trace: str = ""

    @classmethod
    def here(cls, operation: str, description: str = "", **data: Any) -> Self:
        """Describe the caller: its file, its line and the stack above it.

        Parameters
        ----------
        operation, description : str
            As of the class.
        **data
            Facts worth reporting, by name.

        Returns
        -------
        ErrorContext
        """
        frame = sys._getframe(1)
        return cls(
            operation,
            description,
            data,
            source_location=f"{frame.f_code.co_filename}:{frame.f_lineno}",
            stack_trace="".join(traceback.format_stack(frame)),
        )

    @classmethod
    def during(cls, operation: str, description: str = "", **data: Any) -> "During":
        """Say what is going on to every `BitNetError` that passes: ``with ErrorContext.during("load", path=path):``.

        Parameters
        ----------
        operation, description : str
            As of the class.
        **data
            Facts worth reporting, by name.

        Returns
        -------
        context manager
            Also a decorator of functions. An error gets the context of each layer that it passes, the innermost first:
            see `BitNetError.layers`. A builtin `MemoryError`, which says nothing, becomes the cause of ours.
        """
        return During(operation, description, data)


class During(contextlib.ContextDecorator):
    """What `ErrorContext.during` gives."""

    def __init__(self, operation: str, description: str, data: dict[str, Any]) -> None:
        self._context = operation, description, data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        operation, description, data = self._context
        if not isinstance(error, BitNetError | MemoryError):
            return
        # The frame that holds the `with`, at the line that was running there; above a decorator's own frame.
        while trace and trace.tb_next and trace.tb_frame.f_code.co_filename == contextlib.__file__:
            trace = trace.tb_next
        place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""
        layer = ErrorContext(operation, description, data, source_location=place)
        if isinstance(error, BitNetError):
            error.layers.append(layer)
            return
        from bitnet import errors  # of this very family

        ours = errors.MemoryError.elsewhere(operation, error)
        ours.layers.append(layer)
        raise ours from error


class BitNetError(Exception):
    """The root of every error of `bitnet`.

    Parameters
    ----------
    message : str
        One or two sentences.
    context : ErrorContext, optional
        What was going on. May be set later, by whoever knows it.
    severity : {"error", "info", "warning", "critical"}
        How bad it is.
    **facts
        The values the message was made of; kept in `facts`.

    Attributes
    ----------
    message : str
    context : ErrorContext or None
    layers : list of ErrorContext
        Of the layers that it has passed through, the innermost first: the program's run, the engine's call.
    severity : str
    facts : dict
    error_id : str
        Twelve hexadecimal digits, to find this very error in a log.
    timestamp : datetime.datetime
        When it was made, in UTC.
    """

    def __init__(
        self, message: str = "", *, context: ErrorContext | None = None, severity: str = "error", **facts: Any
    ) -> None:
        super().__init__(message)
        if severity not in SEVERITIES:
            from bitnet.errors import ConfigurationError  # of this very family

            raise ConfigurationError.choice("severity", severity, SEVERITIES)
        self.message = message
        self.context = context
        self.layers: list[ErrorContext] = []
        self.severity = severity
        self.facts = facts
        self.error_id = uuid.uuid4().hex[:12]
        self.timestamp = datetime.datetime.now(datetime.UTC)

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would call the class with the message only, and lose the rest of __dict__'s meaning.
        return (_rebuild, (type(self), self.message, self.__dict__.copy()))

    def chain(self) -> list[BaseException]:
        """Walk this error and what caused it.

        Returns
        -------
        list of BaseException
            This error first, its ``__cause__`` next, and so on; an error met twice ends the walk.
        """
        found: list[BaseException] = []
        error: BaseException | None = self
        while error is not None and not any(error is one for one in found):
            found.append(error)
            error = error.__cause__
        return found

    def to_report(self) -> str:
        """Write the whole story of this error, for a log or an issue.

        Returns
        -------
        str
            Several lines: what, when, the facts, the contexts of the layers it passed, where it was raised; and the
            same of each cause.
        """
        lines: list[str] = []
        for error in self.chain():
            if isinstance(error, BitNetError):
                lines += error._told("caused by " if lines else "")
            else:
                lines.append(f"caused by {type(error).__name__}: {error}")
        if self.context is not None and self.context.stack_trace:
            lines += ["stack (most recent call last):", self.context.stack_trace.rstrip()]
        return "\n".join(lines)

    def _told(self, prefix: str) -> list[str]:
        """What the report says of this error alone."""
        when = self.timestamp.isoformat(timespec="seconds")
        lines = [f"{prefix}{type(self).__name__} [{self.severity}] {self.error_id} at {when}", f"  {self.message}"]
        lines += [f"  {name}: {value!r}" for name, value in self.facts.items()]
        for context in [*([self.context] if self.context else []), *self.layers]:
            lines.append(f"during {context.operation}" + _after(": ", context.description))
            lines += [f"  {name}: {value!r}" for name, value in context.data.items()]
            if context.source_location:
                lines.append(f"  at {context.source_location}")
        if place := _raised_at(self):
            lines.append(f"raised at {place}")
        return lines


def _raised_at(error: BaseException) -> str:
    """The file and line of the innermost frame that its traceback has."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""


def _rebuild(cls: type[BitNetError], message: str, state: dict[str, Any]) -> BitNetError:
    # Not cls.__new__: the builtin MemoryError has one of its own, which refuses our MemoryError.
    error: BitNetError = Exception.__new__(cls, message)
    error.__dict__.update(state)
    return error


def listed(names: Iterable[Any]) -> str:
    return ", ".join(f"'{name}'" if isinstance(name, str) else str(name) for name in names)


def shape_text(shape: Sequence[int] | str) -> str:
    return shape if isinstance(shape, str) else str(tuple(int(n) for n in shape))


def index_text(index: Sequence[int]) -> str:
    return "(" + ", ".join(str(int(i)) for i in index) + ")"


def number_text(value: SupportsFloat) -> str:
    number = float(value)
    return "NaN" if math.isnan(number) else f"{number:g}"


def bytes_text(nbytes: int) -> str:
    """Bytes as people read them: three digits and a binary unit."""
    value, units = float(nbytes), ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    if units[0] == "B":
        return f"{nbytes} B"
    return f"{value:.3g} {units[0]}" if value < 999.5 else f"{value:.0f} {units[0]}"


def _after(separator: str, text: str) -> str:
    return separator + text if text else ""
