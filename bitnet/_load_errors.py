"""Errors of files and of checkpoints: a part of `bitnet.errors`, which has the whole family; import from there."""

from collections.abc import Iterable, Sequence
from typing import Any, Self

from bitnet._errors import BRIEF, BitNetError, listed, shape_text


class FormatError(BitNetError, ValueError):
    """A file's bytes are not what its format demands."""

    @classmethod
    def value(cls, file: Any, what: str, got: Any, needed: str) -> Self:
        """Something in a file is not what its format, or the reader, needs."""
        return cls(f"'{file}': {what} is {BRIEF.repr(got)}; it must be {needed}",
                   file=file, what=what, got=got, needed=needed)

    @classmethod
    def not_json(cls, file: Any, what: str, reason: Any) -> Self:
        """Bytes that should be JSON."""
        return cls(f"'{file}': {what} is not JSON ({reason}); the file is damaged: get it again",
                   file=file, what=what, reason=reason)

    @classmethod
    def unknown(cls, path: Any, looked_for: Sequence[str], there: Sequence[str]) -> Self:
        """A path at which no format recognises anything; `there` is what the folder has instead."""
        instead = f"; there is {listed(there)}" if there else ""
        return cls(f"'{path}' is no checkpoint of a known format; looked for {' or '.join(looked_for)}{instead}",
                   path=path, looked_for=tuple(looked_for), there=tuple(there))

    @classmethod
    def several(cls, path: Any, names: Sequence[str]) -> Self:
        """A folder with more than one model in it."""
        return cls(f"'{path}' has {len(names)} models, {listed(names[:4])}; give the path of one of them",
                   path=path, names=tuple(names))

    @classmethod
    def tokenizer(cls, file: str, reason: str) -> Self:
        """What the tokenizers library does not take."""
        return cls(f"'{file}' is not what the library 'tokenizers' reads: {reason}", file=file, reason=reason)

    @classmethod
    def template(cls, line: int | None, reason: str) -> Self:
        """A chat template that cannot be read or rendered; `line` is None where nobody knows."""
        at = f" at line {line}" if line else ""
        return cls(f"the chat template fails{at}: {reason}", line=line, reason=reason)


class ModelLoadError(BitNetError, RuntimeError):
    """A checkpoint cannot become a model."""

    @classmethod
    def unsupported(cls, path: Any, name: str, value: Any, needed: str) -> Self:
        """A configuration that asks for another function than is computed here."""
        return cls(f"'{path}': {name} is {BRIEF.repr(value)}; it must be {needed}", path=path, name=name, value=value,
                   needed=needed)

    @classmethod
    def no_tokenizer(cls, path: Any) -> Self:
        """Text for a checkpoint that has only a model."""
        return cls(f"'{path}' has no tokenizer that can be used; give token ids instead of text", path=path)

    @classmethod
    def no_chat_template(cls, path: Any) -> Self:
        """A conversation for a checkpoint that does not say how to write one."""
        return cls(f"'{path}' has no chat template; write the prompt as text, or give a template: 'plain' writes "
                   "what was said, line by line", path=path)

    @classmethod
    def unknown_model(cls, path: Any, name: str, known: Iterable[str]) -> Self:
        """A model_type nobody has written."""
        return cls(f"'{path}' is of model_type {name!r}; known are {listed(known)}", path=path, name=name,
                   known=tuple(known))

    @classmethod
    def generation_config(cls, path: Any, reason: str) -> Self:
        """Defaults for generating that cannot be used; `reason` is the sentence of the ConfigurationError."""
        return cls(f"the generation_config.json of '{path}' cannot be used: {reason}", path=path, reason=reason)

    @classmethod
    def shape(cls, name: str, needed: Sequence[int], got: Sequence[int]) -> Self:
        """A tensor that contradicts the configuration."""
        return cls(f"'{name}' has shape {shape_text(got)}; the configuration needs {shape_text(needed)}",
                   name=name, needed=tuple(needed), got=tuple(got))

    @classmethod
    def unreadable(cls, path: Any, reason: Any) -> Self:
        """The operating system gives no file or folder."""
        return cls(f"cannot read '{path}': {reason}", path=path, reason=reason)

    @classmethod
    def changed(cls, path: Any, name: str, where: str) -> Self:
        """A tensor whose bytes are not those that a checksum was made of; `where` is "the file" or "memory"."""
        return cls(f"'{path}': the bytes of '{name}' in {where} have changed: their checksum differs",
                   path=path, name=name, where=where)

    @classmethod
    def no_checksums(cls, path: Any) -> Self:
        """A check of a model of which no checksums were made."""
        return cls(f"'{path}' was loaded without checksums; load it with verify='load'", path=path)

    @classmethod
    def exists(cls, path: Any) -> Self:
        """A file or folder in whose place another one was to be written."""
        return cls(f"'{path}' exists already; give another name, or allow that it is replaced", path=path)

    @classmethod
    def unwritable(cls, path: Any, reason: Any) -> Self:
        """The operating system takes no file or folder."""
        return cls(f"cannot write '{path}': {reason}", path=path, reason=reason)

    @classmethod
    def unstorable(cls, name: str, reason: str) -> Self:
        """Something that a format cannot hold."""
        return cls(f"the format cannot hold '{name}': {reason}", name=name, reason=reason)

    @classmethod
    def nothing_to_quantize(cls, path: str) -> Self:
        """A checkpoint without projections of floats."""
        return cls(f"'{path}' has no projections of floats; there is nothing to quantise", path=path)

    @classmethod
    def not_fetched(cls, repo_id: str, where: str, cache: str, reason: str) -> Self:
        """A checkpoint of the Hub that cannot be had."""
        return cls(f"there is no file or folder '{repo_id}', and the Hub gives none ({where}; cache {cache}): {reason}",
                   repo_id=repo_id, where=where, cache=cache, reason=reason)

    @classmethod
    def missing_tensor(cls, path: Any, name: str, close: str | None = None) -> Self:
        """A tensor that is not in the checkpoint; `close` is one there with a similar name."""
        advice = f"; did you mean '{close}'" if close else ""
        return cls(f"'{path}' has no tensor '{name}'{advice}", path=path, name=name, close=close)

    @classmethod
    def not_bitnet(cls, path: Any, name: str, dtype: Any, reason: Any) -> Self:
        """A layer that nothing says to be ternary."""
        return cls(f"not a BitNet checkpoint: '{name}' in '{path}' is {dtype}, and {reason}",
                   path=path, name=name, dtype=dtype, reason=reason)
