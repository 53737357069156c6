"""The root of the family of errors, the context an error can carry, and how values are written in sentences.

`bitnet.errors` has the family itself; import from there.
"""

import datetime
import math
import reprlib
import sys
import traceback
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
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
            Several lines: what, when, the facts, the context and the causes.
        """
        lines = [
            f"{type(self).__name__} [{self.severity}] {self.error_id} "
            f"at {self.timestamp.isoformat(timespec='seconds')}",
            f"  {self.message}",
        ]
        lines += [f"  {name}: {value!r}" for name, value in self.facts.items()]
        if self.context is not None:
            lines.append(f"during {self.context.operation}" + _after(": ", self.context.description))
            lines += [f"  {name}: {value!r}" for name, value in self.context.data.items()]
            if self.context.source_location:
                lines.append(f"  at {self.context.source_location}")
        for cause in self.chain()[1:]:
            lines.append(f"caused by {type(cause).__name__}: {cause}")
        if self.context is not None and self.context.stack_trace:
            lines += ["stack (most recent call last):", self.context.stack_trace.rstrip()]
        return "\n".join(lines)


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
