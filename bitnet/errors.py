"""Every exception `bitnet` raises, and every sentence it says.

All of them derive from `BitNetError`, and each also derives from the builtin that fits, so that an
``except ValueError`` written before `bitnet` keeps working. An exception is made by one of the named
constructors below, from *facts*; the constructor writes the sentence and keeps the facts::

    raise ShapeError.mismatch("x", expected=(4, 2560), got=(4, 2500))

A message says what was being done and to which thing, what was found, what was needed, and what to do
when there is something to do.

This module imports nothing of ours but its own root, `bitnet._errors`, and its part about files, `bitnet._load_errors`:
everything else may import it.
"""

import builtins
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Self, SupportsFloat

from bitnet._errors import BitNetError, ErrorContext, bytes_text, index_text, listed, number_text, shape_text
from bitnet._load_errors import FormatError, ModelLoadError

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
    "QueueFullError",
    "ShapeError",
    "TensorError",
    "TrainingError",
]

# Where users find them, and tracebacks and pickles name them.
BitNetError.__module__ = ErrorContext.__module__ = __name__
FormatError.__module__ = ModelLoadError.__module__ = __name__


class ConfigurationError(BitNetError, ValueError):
    """A setting, an option, a configuration field or an environment variable cannot be used."""

    @classmethod
    def unknown_field(cls, owner: str, name: str, known: Sequence[str], right: str | None = None) -> Self:
        """`name` is no field of `owner`; `right` is what it is called here, when that is known."""
        if right is None:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
            right = close[0] if close else None
        advice = f"use '{right}'" if right else f"it has {listed(known)}"
        return cls(f"{owner} has no field '{name}'; {advice}", owner=owner, name=name, known=tuple(known), right=right)

    @classmethod
    def missing_fields(cls, owner: str, names: Sequence[str]) -> Self:
        """Fields that have no default were not given."""
        given = "it was" if len(names) == 1 else "they were"
        return cls(f"{owner} needs {listed(names)}; {given} not given", owner=owner, names=tuple(names))

    @classmethod
    def not_a_mapping(cls, owner: str, got: Any) -> Self:
        """Something other than a dictionary of fields."""
        return cls(f"{owner} is made from a dictionary of its fields, not from {type(got).__name__}",
                   owner=owner, got=type(got).__name__)

    @classmethod
    def value(cls, owner: str, name: str, got: Any, needed: str) -> Self:
        """A field has a value that cannot be used."""
        return cls(f"{owner}.{name} is {got!r}; it must be {needed}", owner=owner, name=name, got=got, needed=needed)

    @classmethod
    def conflict(cls, owner: str, sentence: str) -> Self:
        """Two fields contradict each other."""
        return cls(f"{owner}: {sentence}", owner=owner)

    @classmethod
    def choice(cls, name: str, got: Any, known: Sequence[Any]) -> Self:
        """An argument must be one of a few words."""
        return cls(f"{name} is {got!r}; it must be one of {listed(known)}", name=name, got=got, known=tuple(known))

    @classmethod
    def isa(cls, source: str, got: str, possible: Sequence[str], known: Sequence[str]) -> Self:
        """An instruction set this CPU cannot run, or nobody knows; `source` is who asked, as ``"BITNET_ISA"``."""
        can = ", ".join(possible)
        if got in known:
            sentence = f"{source} is '{got}', but this CPU can run only {can}"
        else:
            sentence = f"{source} is '{got}', which names no instruction set; this CPU can run {can}"
        return cls(sentence, source=source, got=got, possible=tuple(possible), known=tuple(known))

    @classmethod
    def missing_library(cls, library: str, extra: str, why: str) -> Self:
        """A library that is not installed; `extra` is the one of this distribution that brings it."""
        return cls(f"{why}, which needs the library '{library}': pip install 'bitnet-runtime[{extra}]'",
                   library=library, extra=extra, why=why)

    @classmethod
    def thread_count(cls, source: str, got: Any, limit: int) -> Self:
        """A number of threads that is no number, or out of range."""
        return cls(
            f"{source} is {got!r}; it must be a whole number of threads from 1 to {limit}",
            source=source, got=got, limit=limit,
        )

    @classmethod
    def grammar(cls, kind: str, reason: str) -> Self:
        """A grammar that cannot be used."""
        return cls(f"Grammar.{kind} cannot be used: {reason}", kind=kind, reason=reason)


class TensorError(BitNetError, TypeError):
    """An array has the wrong type, layout or permission."""

    @classmethod
    def not_an_array(cls, what: str, got: Any) -> Self:
        """Something that is no NumPy array."""
        return cls(f"{what} must be a NumPy array, not {type(got).__name__}", what=what, got=type(got).__name__)

    @classmethod
    def not_numbers(cls, what: str, got: Any) -> Self:
        """Something that is neither a real number nor an array of them."""
        return cls(f"{what} must be a number or an array of numbers, not {type(got).__name__}",
                   what=what, got=type(got).__name__)

    @classmethod
    def dtype(cls, what: str, expected: Any, got: Any) -> Self:
        """An array of another dtype."""
        return cls(
            f"{what} has dtype {got}; it must be {expected} (convert it with .astype(np.{expected}))",
            what=what, expected=str(expected), got=str(got),
        )

    @classmethod
    def not_contiguous(cls, what: str, shape: Sequence[int], strides: Sequence[int]) -> Self:
        """An array whose elements do not follow one another in C order."""
        return cls(
            f"{what} of shape {tuple(shape)} is not C-contiguous (strides {tuple(strides)}); "
            "pass np.ascontiguousarray of it",
            what=what, shape=tuple(shape), strides=tuple(strides),
        )

    @classmethod
    def not_aligned(cls, what: str, dtype: Any) -> Self:
        """An array whose elements lie across the addresses their dtype asks for."""
        return cls(f"{what} does not lie at addresses fit for {dtype}; pass a copy of it", what=what, dtype=str(dtype))

    @classmethod
    def read_only(cls, what: str) -> Self:
        """An output array that may not be written."""
        return cls(f"{what} is read-only, and the result is to be written there; pass a writable array", what=what)

    @classmethod
    def overlap(cls, what: str, other: str) -> Self:
        """An output array that shares memory with an input."""
        return cls(f"{what} shares memory with {other}; pass an array of its own", what=what, other=other)


class ShapeError(TensorError, ValueError):
    """An array has a shape that does not fit."""

    @classmethod
    def mismatch(cls, what: str, expected: Sequence[int], got: Sequence[int]) -> Self:
        """A shape other than the one needed."""
        return cls(f"{what} has shape {shape_text(got)}; it must be {shape_text(expected)}",
                   what=what, expected=tuple(expected), got=tuple(got))

    @classmethod
    def scale(cls, what: str, fitting: Sequence[Sequence[int] | str], got: Sequence[int]) -> Self:
        """Scales that fit neither the weight, nor its rows, nor its groups of columns."""
        needed = " or ".join(shape_text(shape) for shape in fitting)
        return cls(f"{what} has shape {shape_text(got)}; it must be {needed}",
                   what=what, fitting=tuple(fitting), got=tuple(got))

    @classmethod
    def dimensions(cls, what: str, expected: str, got: Sequence[int]) -> Self:
        """Another number of dimensions than needed; `expected` is written as ``(rows, cols)``."""
        return cls(f"{what} has shape {shape_text(got)}; it must have shape {expected}",
                   what=what, expected=expected, got=tuple(got))

    @classmethod
    def columns(cls, weight: str, cols: int, got: int) -> Self:
        """The two sides of a product do not fit."""
        return cls(f"cannot multiply {weight}: the weight has {cols} columns, the input {got}",
                   weight=weight, cols=cols, got=got)

    @classmethod
    def empty(cls, what: str, got: Sequence[int]) -> Self:
        """A weight without rows or columns."""
        return cls(f"{what} has shape {shape_text(got)}; it needs at least one row and one column",
                   what=what, got=tuple(got))

    @classmethod
    def too_small(cls, what: str, got: int, least: int, unit: str) -> Self:
        """A size below what is needed."""
        return cls(f"{what} is {got}; the least is {least} {unit}", what=what, got=got, least=least, unit=unit)

    @classmethod
    def too_large(cls, what: str, got: int, limit: int, unit: str) -> Self:
        """A size beyond what the arithmetic is exact for or an address can hold."""
        return cls(f"{what} is {got}; the limit is {limit} {unit}", what=what, got=got, limit=limit, unit=unit)


class QuantizationError(BitNetError, ValueError):
    """Numbers that cannot be quantised, or codes and scales that cannot have come from quantising."""

    @classmethod
    def not_finite(cls, what: str, value: SupportsFloat, index: Sequence[int]) -> Self:
        """NaN or an infinity in the input."""
        found = f"{number_text(value)} at index {index_text(index)}"
        return cls(f"{what} has {found}; only finite numbers can be quantised",
                   what=what, value=value, index=tuple(index))

    @classmethod
    def not_ternary(cls, what: str, value: Any, index: Sequence[int]) -> Self:
        """A code other than -1, 0, 1."""
        return cls(f"{what} has {value} at index {index_text(index)}; ternary codes are -1, 0 and 1",
                   what=what, value=value, index=tuple(index))

    @classmethod
    def unused_code(cls, what: str, index: Sequence[int]) -> Self:
        """The fourth value of a 2-bit field, which no ternary packer writes."""
        return cls(
            f"{what} has the unused 2-bit code 3 for the weight at index {index_text(index)}; "
            "the bytes are damaged or are not packed ternary weights",
            what=what, index=tuple(index),
        )

    @classmethod
    def damaged(cls, what: str, packing: str, rows: int, cols: int, offset: int) -> Self:
        """Packed bytes that packing cannot have written."""
        return cls(
            f"{what} is not what packing '{packing}' writes for a {rows} x {cols} weight (byte {offset} is the first "
            "that cannot be); the bytes are damaged",
            what=what, packing=packing, rows=rows, cols=cols, offset=offset,
        )

    @classmethod
    def scale(cls, what: str, value: SupportsFloat, index: Sequence[int] = ()) -> Self:
        """A scale that is no finite number."""
        at = f" at index {index_text(index)}" if len(index) else ""
        return cls(f"{what} is {number_text(value)}{at}; a scale must be a finite number",
                   what=what, value=value, index=tuple(index))


def _largest(tags: Mapping[str, int]) -> str:
    """The tags with most bytes, in brackets."""
    largest = sorted(tags.items(), key=lambda item: -item[1])[:3]
    return " (" + ", ".join(f"{tag}: {bytes_text(nbytes)}" for tag, nbytes in largest) + ")" if largest else ""


class KernelError(BitNetError, RuntimeError):
    """No kernel can do what was asked."""

    @classmethod
    def unknown_packing(cls, got: Any, known: Sequence[str]) -> Self:
        """A packing nobody has written."""
        return cls(f"no packing is known as {got!r} (known: {', '.join(known)})", got=got, known=tuple(known))

    @classmethod
    def float_inputs(cls, packing: str) -> Self:
        """A packing whose kernels take integers only."""
        return cls(f"packing '{packing}' cannot multiply floats as they are; use packing 'i2'", packing=packing)

    @classmethod
    def group_scales(cls, packing: str, group_size: int, tile_cols: int, fitting: str) -> Self:
        """A packing whose tiles straddle the groups of columns that have a scale of their own."""
        return cls(
            f"packing '{packing}' stores {tile_cols} columns a tile, so groups of {group_size} columns cannot have "
            f"scales of their own; use packing '{fitting}'",
            packing=packing, group_size=group_size, tile_cols=tile_cols, fitting=fitting,
        )


    @classmethod
    def status(cls, kernel: str, operation: str, status: int, meaning: str) -> Self:
        """What native code returned for an operation of a program, in place of a result."""
        return cls(f"kernel '{kernel}' ended '{operation}' with status {status}: {meaning}",
                   kernel=kernel, operation=operation, status=status, meaning=meaning)


class MemoryError(BitNetError, builtins.MemoryError):
    """Native memory could not be had, or was misused."""

    @classmethod
    def allocation(cls, nbytes: int, what: str) -> Self:
        """The operating system refused."""
        return cls(f"cannot allocate {bytes_text(nbytes)} for {what}: the operating system refused",
                   nbytes=nbytes, what=what)

    @classmethod
    def elsewhere(cls, operation: str, reason: Any) -> Self:
        """Python, NumPy or another library was refused memory; `reason` is what it says, often nothing."""
        return cls(f"no memory is left for '{operation}'{f' ({reason})' if str(reason) else ''}; end other programs, "
                   "or ask for less at once", operation=operation, reason=str(reason))

    @classmethod
    def overflow(cls, what: str, sizes: Sequence[int]) -> Self:
        """A product of sizes that no address can hold."""
        product = " x ".join(str(size) for size in sizes)
        return cls(f"cannot allocate {product} bytes for {what}: the size does not fit in an address",
                   what=what, sizes=tuple(sizes))

    @classmethod
    def cache_full(cls, pages: int, page_tokens: int) -> Self:
        """No page of keys and values is left."""
        return cls(f"all {pages} pages of {page_tokens} tokens for keys and values are in use; wait for others to end, "
                   "or raise max_kv_tokens", pages=pages, page_tokens=page_tokens)

    @classmethod
    def limit(cls, nbytes: int, what: str, used: int, limit: int, tags: Mapping[str, int]) -> Self:
        """A pool's limit is in the way; `tags` are the bytes in use by what they are for."""
        return cls(
            f"cannot allocate {bytes_text(nbytes)} for {what}: {bytes_text(used)} of the pool's limit of "
            f"{bytes_text(limit)} are in use{_largest(tags)}; free some, or raise the limit",
            nbytes=nbytes, what=what, used=used, limit=limit, tags=dict(tags),
        )

    @classmethod
    def freed(cls, action: str, nbytes: int) -> Self:
        """Use of a handle after its memory was given back."""
        return cls(f"cannot {action} a block of {bytes_text(nbytes)} that was freed", action=action, nbytes=nbytes)

    @classmethod
    def foreign(cls, nbytes: int) -> Self:
        """A block given to a pool that it is not of."""
        return cls(f"a block of {bytes_text(nbytes)} belongs to another pool; give it to that one, or use its free()",
                   nbytes=nbytes)

    @classmethod
    def has_views(cls, nbytes: int, views: int) -> Self:
        """A block that cannot move, because someone looks at it."""
        there = "a view of it lives" if views == 1 else f"{views} views of it live"
        return cls(f"cannot resize a block of {bytes_text(nbytes)} while {there}; delete that first",
                   nbytes=nbytes, views=views)

    @classmethod
    def live_blocks(cls, count: int, tags: Mapping[str, int]) -> Self:
        """A pool that cannot begin anew, because its memory is in use."""
        blocks = "a block is" if count == 1 else f"{count} blocks are"
        return cls(f"cannot reset the pool while {blocks} live{_largest(tags)}", count=count, tags=dict(tags))

    @classmethod
    def corrupted(cls, nbytes: int, at: int) -> Self:
        """Something was written where no block is."""
        error = cls(f"a block of {bytes_text(nbytes)} was written to beyond its end, at byte {at} from its beginning",
                    nbytes=nbytes, at=at)
        error.severity = "critical"
        return error


class TrainingError(BitNetError, RuntimeError):
    """A training run cannot go on, or its files cannot be used."""

    @classmethod
    def unreadable(cls, path: Any, reason: Any) -> Self:
        """A file of text or of a run that gives nothing."""
        return cls(f"cannot read '{path}': {reason}", path=path, reason=reason)

    @classmethod
    def unusable(cls, path: Any, why: str) -> Self:
        """A file that can be read, and is not what is needed."""
        return cls(f"cannot use '{path}': {why}", path=path, why=why)

    @classmethod
    def diverged(cls, loss: float, step: int) -> Self:
        """The loss is no number any more."""
        return cls(f"the loss is {number_text(loss)} at step {step}; go on from the last checkpoint with a lower "
                   "learning rate", loss=loss, step=step)

    @classmethod
    def not_the_runtimes(cls, path: Any, why: str) -> Self:
        """A trained model whose function the runtime does not compute."""
        return cls(f"cannot export '{path}': {why}", path=path, why=why)


class DeviceError(BitNetError, RuntimeError):
    """A device, or a library for it, is unknown, absent or failing."""

    @classmethod
    def address(cls, address: str, reason: Any) -> Self:
        """An address of the network that cannot be listened at."""
        return cls(f"cannot listen at {address}: {reason}", address=address, reason=reason)

    @classmethod
    def missing_extra(cls, library: str, extra: str) -> Self:
        """An optional library that is not installed."""
        return cls(f"'{library}' is not installed; run: pip install 'bitnet-runtime[{extra}]'",
                   library=library, extra=extra)


class InferenceError(BitNetError, RuntimeError):
    """A model cannot be run on what it was given."""

    @classmethod
    def encoding(cls, reason: str) -> Self:
        """A text that cannot become tokens."""
        return cls(f"cannot encode the text: {reason}", reason=reason)

    @classmethod
    def logits(cls, count: int, of: int, value: float, index: Sequence[int]) -> Self:
        """NaN or infinities among the logits; `value` at `index` is the first of `count`."""
        first = f"{number_text(value)} at index {index_text(index)}"
        return cls(f"{count} of {of} logits are not finite, the first is {first}",
                   count=count, of=of, value=value, index=tuple(index))

    @classmethod
    def closed(cls) -> Self:
        """Use of an engine after its end."""
        return cls("the engine is closed; make a new one")

    @classmethod
    def tokens(cls, got: Any) -> Self:
        """Something that is no list of token ids."""
        return cls("a prompt must be text or a list of token ids, one after the other",
                   got=type(got).__name__)

    @classmethod
    def too_short(cls, got: int) -> Self:
        """A text that predicts nothing."""
        return cls(f"the text has {got} tokens; at least two are needed, one to predict the other", got=got)

    @classmethod
    def vocabularies(cls, first: int, second: int) -> Self:
        """Two models whose tokens are not the same."""
        return cls(f"the vocabularies have {first} and {second} tokens; only models of one vocabulary can be compared",
                   first=first, second=second)

    @classmethod
    def forked(cls) -> Self:
        """A request of a parent process, whose step the fork has cut."""
        return cls("the process was forked while this request was running; send it again")

    @classmethod
    def empty_prompt(cls) -> Self:
        """Nothing to go on from."""
        return cls("the prompt has no tokens; give at least one")

    @classmethod
    def cancelled(cls, operation: str) -> Self:
        """The run was stopped before it had an answer."""
        return cls(f"the run was cancelled before the operation '{operation}'", operation=operation)

    @classmethod
    def grammar(cls, reason: str) -> Self:
        """An answer that its grammar does not let go on."""
        return cls(f"the grammar cannot go on: {reason}", reason=reason)

    @classmethod
    def grammar_tokenizer(cls, reason: str) -> Self:
        """A tokenizer whose tokens the library of grammars cannot take apart."""
        return cls(
            f"a grammar needs a tokenizer of byte-level BPE or SentencePiece, and llguidance cannot read the model's: "
            f"{reason}", reason=reason,
        )  # fmt: skip

    @classmethod
    def stopped(cls) -> Self:
        """A request that `InferenceEngine.cancel` has ended."""
        return cls("the request was cancelled")

    @classmethod
    def not_finite(cls, operation: str) -> Self:
        """An activation became NaN or infinite."""
        return cls(f"the input of '{operation}' has a number that is not finite; diagnosis shows where it began",
                   operation=operation)

    @classmethod
    def cannot_read(cls, operation: str) -> Self:
        """A table that stays in its file, and cannot be read there."""
        return cls(f"cannot read the rows of '{operation}' from the checkpoint's file; was it changed or cut short?",
                   operation=operation)

    @classmethod
    def too_many_tokens(cls, got: int, limit: int) -> Self:
        """More tokens in one run than its memory was made for."""
        return cls(f"a run of {got} tokens was asked for; this execution has memory for {limit}", got=got, limit=limit)

    @classmethod
    def token(cls, got: int, position: int, vocab_size: int) -> Self:
        """A token id outside the vocabulary."""
        return cls(f"token {got} at position {position} is not in the vocabulary of {vocab_size}",
                   got=got, position=position, vocab_size=vocab_size)

    @classmethod
    def beyond_context(cls, position: int, limit: int) -> Self:
        """A sequence longer than the model or the cache allows."""
        return cls(f"position {position} is beyond the {limit} tokens of the context", position=position, limit=limit)


class QueueFullError(InferenceError):
    """An engine has as many requests waiting as it may have: try again later."""

    @classmethod
    def waiting(cls, waiting: int) -> Self:
        """More requests than may wait."""
        return cls(f"{waiting} requests are waiting, and no more may; try again when some have ended, or raise "
                   "max_queue", waiting=waiting)
