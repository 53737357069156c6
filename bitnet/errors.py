"""Every exception `bitnet` raises, and every sentence it says.

All of them derive from `BitNetError`, and each also derives from the builtin that fits, so that an
``except ValueError`` written before `bitnet` keeps working. An exception is made by one of the named
constructors below, from *facts*; the constructor writes the sentence and keeps the facts::

    raise ShapeError.mismatch("x", expected=(4, 2560), got=(4, 2500))

A message says what was being done and to which thing, what was found, what was needed, and what to do
when there is something to do.

This module imports nothing of ours: everything else may import it.
"""

import builtins
import datetime
import difflib
import math
import reprlib
import sys
import traceback
import uuid
from dataclasses import dataclass, field

__all__ = [
    "BitNetError",
    "ConfigurationError",
    "DeviceError",
    "ErrorContext",
    "FormatError",
    "InferenceError",
    "KernelError",
    "ModelLoadError",
    "QuantizationError",
    "ShapeError",
    "TensorError",
]

SEVERITIES = ("info", "warning", "error", "critical")

_BRIEF = reprlib.Repr()  # for what a file says, which may be long
_BRIEF.maxstring = _BRIEF.maxother = 100


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
    data: dict = field(default_factory=dict)
    source_location: str = ""
    stack_trace: str = ""

    @classmethod
    def here(cls, operation, description="", **data):
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

    def __init__(self, message="", *, context=None, severity="error", **facts):
        super().__init__(message)
        if severity not in SEVERITIES:
            raise ConfigurationError.choice("severity", severity, SEVERITIES)
        self.message = message
        self.context = context
        self.severity = severity
        self.facts = facts
        self.error_id = uuid.uuid4().hex[:12]
        self.timestamp = datetime.datetime.now(datetime.UTC)

    def __reduce__(self):
        # The default would call the class with the message only, and lose the rest of __dict__'s meaning.
        return (_rebuild, (type(self), self.message, self.__dict__.copy()))

    def chain(self):
        """Walk this error and what caused it.

        Returns
        -------
        list of BaseException
            This error first, its ``__cause__`` next, and so on; an error met twice ends the walk.
        """
        found, seen, error = [], set(), self
        while error is not None and id(error) not in seen:
            found.append(error)
            seen.add(id(error))
            error = error.__cause__
        return found

    def to_report(self):
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


class ConfigurationError(BitNetError, ValueError):
    """A setting, an option, a configuration field or an environment variable cannot be used."""

    @classmethod
    def unknown_field(cls, owner, name, known, right=None):
        """`name` is no field of `owner`; `right` is what it is called here, when that is known."""
        if right is None:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
            right = close[0] if close else None
        advice = f"use '{right}'" if right else f"it has {_listed(known)}"
        return cls(f"{owner} has no field '{name}'; {advice}", owner=owner, name=name, known=tuple(known), right=right)

    @classmethod
    def missing_fields(cls, owner, names):
        """Fields that have no default were not given."""
        given = "it was" if len(names) == 1 else "they were"
        return cls(f"{owner} needs {_listed(names)}; {given} not given", owner=owner, names=tuple(names))

    @classmethod
    def not_a_mapping(cls, owner, got):
        """Something other than a dictionary of fields."""
        return cls(f"{owner} is made from a dictionary of its fields, not from {type(got).__name__}",
                   owner=owner, got=type(got).__name__)

    @classmethod
    def value(cls, owner, name, got, needed):
        """A field has a value that cannot be used."""
        return cls(f"{owner}.{name} is {got!r}; it must be {needed}", owner=owner, name=name, got=got, needed=needed)

    @classmethod
    def conflict(cls, owner, sentence):
        """Two fields contradict each other."""
        return cls(f"{owner}: {sentence}", owner=owner)

    @classmethod
    def choice(cls, name, got, known):
        """An argument must be one of a few words."""
        return cls(f"{name} is {got!r}; it must be one of {_listed(known)}", name=name, got=got, known=tuple(known))

    @classmethod
    def isa(cls, source, got, possible, known):
        """An instruction set this CPU cannot run, or nobody knows; `source` is who asked, as ``"BITNET_ISA"``."""
        can = ", ".join(possible)
        if got in known:
            sentence = f"{source} is '{got}', but this CPU can run only {can}"
        else:
            sentence = f"{source} is '{got}', which names no instruction set; this CPU can run {can}"
        return cls(sentence, source=source, got=got, possible=tuple(possible), known=tuple(known))

    @classmethod
    def thread_count(cls, source, got, limit):
        """A number of threads that is no number, or out of range."""
        return cls(
            f"{source} is {got!r}; it must be a whole number of threads from 1 to {limit}",
            source=source, got=got, limit=limit,
        )

    @classmethod
    def missing_extra(cls, library, extra, purpose):
        """An optional library is not installed."""
        return cls(
            f"{purpose} needs '{library}', which is not installed; "
            f"install it with: pip install 'bitnet-runtime[{extra}]'",
            library=library, extra=extra, purpose=purpose,
        )


class TensorError(BitNetError, TypeError):
    """An array has the wrong type, layout or permission."""

    @classmethod
    def not_an_array(cls, what, got):
        """Something that is no NumPy array."""
        return cls(f"{what} must be a NumPy array, not {type(got).__name__}", what=what, got=type(got).__name__)

    @classmethod
    def not_numbers(cls, what, got):
        """Something that is neither a real number nor an array of them."""
        return cls(f"{what} must be a number or an array of numbers, not {type(got).__name__}",
                   what=what, got=type(got).__name__)

    @classmethod
    def dtype(cls, what, expected, got):
        """An array of another dtype."""
        return cls(
            f"{what} has dtype {got}; it must be {expected} (convert it with .astype(np.{expected}))",
            what=what, expected=str(expected), got=str(got),
        )

    @classmethod
    def not_contiguous(cls, what, shape, strides):
        """An array whose elements do not follow one another in C order."""
        return cls(
            f"{what} of shape {tuple(shape)} is not C-contiguous (strides {tuple(strides)}); "
            "pass np.ascontiguousarray of it",
            what=what, shape=tuple(shape), strides=tuple(strides),
        )

    @classmethod
    def not_aligned(cls, what, dtype):
        """An array whose elements lie across the addresses their dtype asks for."""
        return cls(f"{what} does not lie at addresses fit for {dtype}; pass a copy of it", what=what, dtype=str(dtype))

    @classmethod
    def read_only(cls, what):
        """An output array that may not be written."""
        return cls(f"{what} is read-only, and the result is to be written there; pass a writable array", what=what)

    @classmethod
    def overlap(cls, what, other):
        """An output array that shares memory with an input."""
        return cls(f"{what} shares memory with {other}; pass an array of its own", what=what, other=other)


class ShapeError(TensorError, ValueError):
    """An array has a shape that does not fit."""

    @classmethod
    def mismatch(cls, what, expected, got):
        """A shape other than the one needed."""
        return cls(f"{what} has shape {_shape(got)}; it must be {_shape(expected)}",
                   what=what, expected=tuple(expected), got=tuple(got))

    @classmethod
    def scale(cls, what, fitting, got):
        """Scales that fit neither the weight, nor its rows, nor its groups of columns."""
        return cls(f"{what} has shape {_shape(got)}; it must be {' or '.join(_shape(shape) for shape in fitting)}",
                   what=what, fitting=tuple(fitting), got=tuple(got))

    @classmethod
    def dimensions(cls, what, expected, got):
        """Another number of dimensions than needed; `expected` is written as ``(rows, cols)``."""
        return cls(f"{what} has shape {_shape(got)}; it must have shape {expected}",
                   what=what, expected=expected, got=tuple(got))

    @classmethod
    def columns(cls, weight, cols, got):
        """The two sides of a product do not fit."""
        return cls(f"cannot multiply {weight}: the weight has {cols} columns, the input {got}",
                   weight=weight, cols=cols, got=got)

    @classmethod
    def empty(cls, what, got):
        """A weight without rows or columns."""
        return cls(f"{what} has shape {_shape(got)}; it needs at least one row and one column",
                   what=what, got=tuple(got))

    @classmethod
    def too_large(cls, what, got, limit, unit):
        """A size beyond what the arithmetic is exact for or an address can hold."""
        return cls(f"{what} is {got}; the limit is {limit} {unit}", what=what, got=got, limit=limit, unit=unit)


class QuantizationError(BitNetError, ValueError):
    """Numbers that cannot be quantised, or codes and scales that cannot have come from quantising."""

    @classmethod
    def not_finite(cls, what, value, index):
        """NaN or an infinity in the input."""
        return cls(f"{what} has {_number(value)} at index {_index(index)}; only finite numbers can be quantised",
                   what=what, value=value, index=tuple(index))

    @classmethod
    def not_ternary(cls, what, value, index):
        """A code other than -1, 0, 1."""
        return cls(f"{what} has {value} at index {_index(index)}; ternary codes are -1, 0 and 1",
                   what=what, value=value, index=tuple(index))

    @classmethod
    def unused_code(cls, what, index):
        """The fourth value of a 2-bit field, which no ternary packer writes."""
        return cls(
            f"{what} has the unused 2-bit code 3 for the weight at index {_index(index)}; "
            "the bytes are damaged or are not packed ternary weights",
            what=what, index=tuple(index),
        )

    @classmethod
    def damaged(cls, what, packing, rows, cols, offset):
        """Packed bytes that packing cannot have written."""
        return cls(
            f"{what} is not what packing '{packing}' writes for a {rows} x {cols} weight (byte {offset} is the first "
            "that cannot be); the bytes are damaged",
            what=what, packing=packing, rows=rows, cols=cols, offset=offset,
        )

    @classmethod
    def scale(cls, what, value, index=()):
        """A scale that is no finite number."""
        at = f" at index {_index(index)}" if len(index) else ""
        return cls(f"{what} is {_number(value)}{at}; a scale must be a finite number",
                   what=what, value=value, index=tuple(index))


class KernelError(BitNetError, RuntimeError):
    """No kernel can do what was asked."""

    @classmethod
    def unknown_packing(cls, got, known):
        """A packing nobody has written."""
        return cls(f"no packing is known as {got!r} (known: {', '.join(known)})", got=got, known=tuple(known))

    @classmethod
    def group_scales(cls, packing, group_size, tile_cols, fitting):
        """A packing whose tiles straddle the groups of columns that have a scale of their own."""
        return cls(
            f"packing '{packing}' stores {tile_cols} columns a tile, so groups of {group_size} columns cannot have "
            f"scales of their own; use packing '{fitting}'",
            packing=packing, group_size=group_size, tile_cols=tile_cols, fitting=fitting,
        )


class MemoryError(BitNetError, builtins.MemoryError):
    """Native memory could not be had."""

    @classmethod
    def allocation(cls, nbytes, what):
        """The operating system refused."""
        return cls(f"cannot allocate {_bytes(nbytes)} for {what}: the operating system refused",
                   nbytes=nbytes, what=what)

    @classmethod
    def overflow(cls, what, sizes):
        """A product of sizes that no address can hold."""
        product = " x ".join(str(size) for size in sizes)
        return cls(f"cannot allocate {product} bytes for {what}: the size does not fit in an address",
                   what=what, sizes=tuple(sizes))


class DeviceError(BitNetError, RuntimeError):
    """A device is unknown, absent or failing."""


class FormatError(BitNetError, ValueError):
    """A file's bytes are not what its format demands."""

    @classmethod
    def value(cls, file, what, got, needed):
        """Something in a file is not what its format, or the reader, needs."""
        return cls(f"'{file}': {what} is {_BRIEF.repr(got)}; it must be {needed}",
                   file=file, what=what, got=got, needed=needed)

    @classmethod
    def not_json(cls, file, what, reason):
        """Bytes that should be JSON."""
        return cls(f"'{file}': {what} is not JSON ({reason}); the file is damaged: get it again",
                   file=file, what=what, reason=reason)

    @classmethod
    def unknown(cls, path, looked_for, there):
        """A path at which no format recognises anything; `there` is what the folder has instead."""
        instead = f"; there is {_listed(there)}" if there else ""
        return cls(f"'{path}' is no checkpoint of a known format; looked for {' or '.join(looked_for)}{instead}",
                   path=path, looked_for=tuple(looked_for), there=tuple(there))


class ModelLoadError(BitNetError, RuntimeError):
    """A checkpoint cannot become a model."""

    @classmethod
    def unreadable(cls, path, reason):
        """The operating system gives no file or folder."""
        return cls(f"cannot read '{path}': {reason}", path=path, reason=reason)

    @classmethod
    def missing_tensor(cls, path, name, close=None):
        """A tensor that is not in the checkpoint; `close` is one there with a similar name."""
        advice = f"; did you mean '{close}'" if close else ""
        return cls(f"'{path}' has no tensor '{name}'{advice}", path=path, name=name, close=close)

    @classmethod
    def not_bitnet(cls, path, name, dtype, reason):
        """A layer that nothing says to be ternary."""
        return cls(f"not a BitNet checkpoint: '{name}' in '{path}' is {dtype}, and {reason}",
                   path=path, name=name, dtype=dtype, reason=reason)


class InferenceError(BitNetError, RuntimeError):
    """A model cannot be run on what it was given."""


def _rebuild(cls, message, state):
    # Not cls.__new__: the builtin MemoryError has one of its own, which refuses our MemoryError.
    error = Exception.__new__(cls, message)
    error.__dict__.update(state)
    return error


def _listed(names):
    return ", ".join(f"'{name}'" if isinstance(name, str) else str(name) for name in names)


def _shape(shape):
    return shape if isinstance(shape, str) else str(tuple(int(n) for n in shape))


def _index(index):
    return "(" + ", ".join(str(int(i)) for i in index) + ")"


def _number(value):
    value = float(value)
    if math.isnan(value):
        return "NaN"
    return f"{value:g}"


def _bytes(nbytes):
    """Bytes as people read them: three digits and a binary unit."""
    value, units = float(nbytes), ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    if units[0] == "B":
        return f"{nbytes} B"
    return f"{value:.3g} {units[0]}" if value < 999.5 else f"{value:.0f} {units[0]}"


def _after(separator, text):
    return separator + text if text else ""
