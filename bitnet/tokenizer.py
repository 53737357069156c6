"""Text to token ids and back, by the `tokenizers` library; and back in pieces, as they come.

The vocabulary is a ``tokenizer.json``, or that of a GGUF file (``vocabulary.py``).

A token is often less than a character: byte-level vocabularies cut an emoji into up to four of them. A `StreamDecoder`
gives text only once it cannot change any more, and all its pieces together are `Tokenizer.decode` of all the ids.
"""

import codecs
import operator
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, SupportsIndex

from bitnet.errors import BitNetError, ConfigurationError, FormatError, InferenceError, ModelLoadError

__all__ = ["StreamDecoder", "Tokenizer"]

IDS = range(2**32)  # what the library takes as an id; one without a token decodes to nothing
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")

# A stream decodes a window of its last ids, and cuts that back to CONTEXT of them when it has WINDOW. Four tokens are
# four bytes or more, and an unfinished character is three at most: its first byte is always in the window. They are
# also enough to keep the decoder from taking the window's first token for the text's first, whose space it may drop.
CONTEXT, WINDOW = 4, 12


class Tokenizer:
    """A vocabulary and its rules; made by `from_pretrained`, `from_file` or `from_gguf`.

    It does not change, so threads may share it.

    Attributes
    ----------
    vocab_size : int
        Number of tokens, the special ones among them. A model may have more rows than that.
    bos_token_id : int or None
        The token a text begins with.
    add_bos : bool or None
        Whether `encode` puts it there; None for what the file says.
    eos_token_ids : tuple of int
        The tokens that end a text.
    """

    def __init__(
        self,
        backend: Any,
        *,
        bos_token_id: SupportsIndex | None = None,
        add_bos: bool | None = None,
        eos_token_ids: SupportsIndex | Iterable[SupportsIndex] | None = (),
    ) -> None:
        eos = () if eos_token_ids is None else eos_token_ids
        self.bos_token_id = None if bos_token_id is None else _checked_ids("bos_token_id", [bos_token_id])[0]
        self.eos_token_ids = tuple(_checked_ids("eos_token_ids", eos if isinstance(eos, Iterable) else [eos]))
        if add_bos not in (True, False, None):
            raise ConfigurationError.value("Tokenizer", "add_bos", add_bos, "True, False or None")
        if add_bos and bos_token_id is None:
            raise ConfigurationError.conflict("Tokenizer", "add_bos is True, but bos_token_id is not known")
        self.add_bos = add_bos
        # A file may keep the settings of its training, which would cut long texts and fill up short ones.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self._special = frozenset(id for id, token in added.items() if token.special)
        self._decoder = backend.decoder
        # Which kind of vocabulary it is shows in what the decoder does.
        self._is_byte_level = self._shows("aĠb") == "a b"
        self._has_byte_tokens = self._shows("<0x41>") == "A"
        # Where nothing but bytes is decoded, the text of a token that is whole characters is the same everywhere.
        self._joins_bytes = type(self._decoder).__name__ == "ByteLevel" and self._is_byte_level
        self._whole: dict[int, str] = {}  # of such tokens that have come

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        bos_token_id: SupportsIndex | None = None,
        add_bos: bool | None = None,
        eos_token_ids: SupportsIndex | Iterable[SupportsIndex] | None = (),
    ) -> "Tokenizer":
        """Read a ``tokenizer.json``.

        Parameters
        ----------
        path : str or path
        bos_token_id : int, optional
            The token a text begins with, which the file does not name.
        add_bos : bool, optional
            Whether `encode` puts it in front of a text, as ``add_bos_token`` in a ``tokenizer_config.json`` says;
            None for what the file itself does.
        eos_token_ids : int or iterable of int, optional
            The tokens that end a text.

        Returns
        -------
        Tokenizer

        Raises
        ------
        ModelLoadError
            If the file cannot be read.
        FormatError
            If it holds no tokenizer.
        """
        import tokenizers

        name = os.fspath(path)
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise ModelLoadError.unreadable(name, error.strerror or str(error)) from error
        with _Reading(name):
            backend = tokenizers.Tokenizer.from_buffer(data)
            backend.encode("", add_special_tokens=True)  # what is put around a text may be tokens that are not there
        return cls(backend, bos_token_id=bos_token_id, add_bos=add_bos, eos_token_ids=eos_token_ids)

    @classmethod
    def from_gguf(
        cls,
        path: str | os.PathLike[str],
        *,
        pre: str | None = None,
        eos_token_ids: SupportsIndex | Iterable[SupportsIndex] | None = None,
    ) -> "Tokenizer":
        """Read the vocabulary of a GGUF file, also of one that has nothing else.

        Parameters
        ----------
        path : str or path
        pre : str, optional
            How words are cut, as ``"llama-bpe"`` or ``"qwen2"``; by default what the file says. Where it says nothing,
            tokens that only one kind of vocabulary has tell.
        eos_token_ids : int or iterable of int, optional
            The tokens that end a text; by default those of the file.

        Returns
        -------
        Tokenizer

        Raises
        ------
        ModelLoadError
            If the file cannot be read.
        FormatError
            If it is no GGUF file, or has no vocabulary of a known kind.
        """
        from bitnet.formats.gguf_file import GGUFFile

        file = GGUFFile(os.fspath(path))
        try:
            return cls.from_metadata(file.metadata, file.path, pre=pre, eos_token_ids=eos_token_ids)
        finally:
            file.close()

    @classmethod
    def from_metadata(
        cls,
        metadata: Mapping[str, Any],
        path: str,
        *,
        pre: str | None = None,
        eos_token_ids: SupportsIndex | Iterable[SupportsIndex] | None = None,
    ) -> "Tokenizer":
        """Make a tokenizer of the metadata of a GGUF file, as `from_gguf` does.

        Parameters
        ----------
        metadata : mapping
            The values by their keys.
        path : str
            The file they come from, for errors.
        pre, eos_token_ids
            As of `from_gguf`.

        Returns
        -------
        Tokenizer
        """
        from bitnet.vocabulary import vocabulary_of

        with _Reading(path):
            found = vocabulary_of(metadata, path, pre)
        ends = found.eos_token_ids if eos_token_ids is None else eos_token_ids
        return cls(found.backend, bos_token_id=found.bos_token_id, eos_token_ids=ends)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Read the tokenizer of a checkpoint.

        Parameters
        ----------
        path : str or path
            A folder with a ``tokenizer.json``, and a ``tokenizer_config.json`` and ``config.json`` if they say which
            tokens begin and end a text; or a GGUF file.

        Returns
        -------
        Tokenizer

        Raises
        ------
        ModelLoadError, FormatError
            If there is none, or it is damaged.
        """
        name = os.fspath(path)
        if not os.path.isdir(name):
            return cls.from_gguf(name)
        said = {file: _json(os.path.join(name, file)) for file in ("tokenizer_config.json", "config.json")}
        settings, config = said.values()
        found = cls.from_file(os.path.join(name, "tokenizer.json"))
        ids = {}
        for role in ("bos", "eos"):
            token = settings.get(f"{role}_token")
            token = token.get("content") if isinstance(token, dict) else token
            id = found.id_of(token) if isinstance(token, str) else None
            ids[role] = config.get(f"{role}_token_id") if id is None else id
        add_bos = settings.get("add_bos_token") if ids["bos"] is not None else None
        return cls(found._backend, bos_token_id=ids["bos"], add_bos=add_bos, eos_token_ids=ids["eos"])

    def to_json(self) -> str:
        """Write the content of a ``tokenizer.json``.

        Returns
        -------
        str
        """
        return str(self._backend.to_str(pretty=False))

    @property
    def vocab_size(self) -> int:
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def id_of(self, token: str) -> int | None:
        """Look a token up.

        Parameters
        ----------
        token : str
            As it is written in the vocabulary: ``"<|eot_id|>"``, or ``"Ġthe"`` where a space is ``Ġ``.

        Returns
        -------
        int or None
            None if there is no such token.
        """
        id: int | None = self._backend.token_to_id(token)
        return id

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Cut a text into tokens.

        Parameters
        ----------
        text : str
            A special token that is written out in it becomes that token.
        add_special_tokens : bool
            Whether to add what belongs around a text, such as the token it begins with. A text that begins with
            that token already, as chat templates write it, gets no second one.

        Returns
        -------
        list of int

        Raises
        ------
        ConfigurationError
            If `text` is no string.
        InferenceError
            If it has half a surrogate pair, which is no character, or something the vocabulary has no token for.
        """
        if not isinstance(text, str):
            raise ConfigurationError.value("Tokenizer.encode", "text", text, "a string")
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=bool(add_special_tokens)).ids
        except Exception as error:
            half = next(((i, ord(one)) for i, one in enumerate(text) if "\ud800" <= one <= "\udfff"), None)
            reason = "U+{1:04X} at index {0} is half of a surrogate pair".format(*half) if half else _reason(error)
            raise InferenceError.encoding(reason) from error
        bos = self.bos_token_id
        if not add_special_tokens or bos is None:
            return ids
        if ids[:2] == [bos, bos]:
            del ids[0]
        if self.add_bos and ids[:1] != [bos]:
            ids.insert(0, bos)
        elif self.add_bos is False and ids[:1] == [bos] and self.encode(text, add_special_tokens=False)[:1] != [bos]:
            del ids[0]
        return ids

    def decode(self, ids: Iterable[SupportsIndex], skip_special_tokens: bool = True) -> str:
        """Write the text of tokens.

        Parameters
        ----------
        ids : iterable of int
            0 to ``2**32 - 1``; those that have no token stand for no text.
        skip_special_tokens : bool
            Whether to leave out special tokens.

        Returns
        -------
        str
            Bytes that are no UTF-8 are U+FFFD, one for each maximal part of a character.

        Raises
        ------
        ConfigurationError
            If `ids` are no token ids.

        Notes
        -----
        This is what the library says, but for one case: in a row of byte tokens (``<0xE2>``) that is not all UTF-8,
        the library gives up every character, which no stream could know in time. Here the whole ones are kept.
        """
        numbers = _checked_ids("ids", ids)
        text: str = self._backend.decode(numbers, skip_special_tokens=bool(skip_special_tokens))
        if self._has_byte_tokens and REPLACEMENT in text:
            stream = self.stream_decoder(skip_special_tokens)
            text = "".join([*map(stream.put, numbers), stream.flush()])
        return text

    def stream_decoder(self, skip_special_tokens: bool = True) -> "StreamDecoder":
        """Begin to decode a text whose tokens are still to come.

        Parameters
        ----------
        skip_special_tokens : bool
            As of `decode`.

        Returns
        -------
        StreamDecoder
        """
        return StreamDecoder(self, skip_special_tokens)

    def _shows(self, token: str) -> str:
        return token if self._decoder is None else str(self._decoder.decode([token]))


class StreamDecoder:
    """The text of tokens, as they come; made by `Tokenizer.stream_decoder`, one for each text.

    The pieces together are `Tokenizer.decode` of all ids. A piece is never half a character: what may still change is
    kept back until it cannot, or until `flush`. A token costs the same, however long the text is. (A decoder that
    replaces text across tokens after joining them, which no known model has, is beyond this.)

    Parameters
    ----------
    tokenizer : Tokenizer
    skip_special_tokens : bool
        Whether to leave out special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer._special if skip_special_tokens else frozenset()
        self._window: list[int] = []
        self._sent = 0  # characters of the window's text that have been given
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._byte_ids: list[int] = []  # of a character that began in byte tokens
        self._is_held = False  # whether the window ends within a character
        self._whole = tokenizer._whole if self._skipped is tokenizer._special else {}

    def put(self, id: SupportsIndex) -> str:
        """Take the next token.

        Parameters
        ----------
        id : int

        Returns
        -------
        str
            The text that is certain now, which may be empty.
        """
        if not self._is_held:
            text = self._whole.get(id)  # type: ignore[call-overload]
            if text is not None:
                return text  # type: ignore[no-any-return]
        number = _checked_ids("id", [id])[0]
        token = self._tokenizer._backend.id_to_token(number)
        if token is None or number in self._skipped or (not token and self._tokenizer._is_byte_level):
            return ""
        if self._tokenizer._joins_bytes and not self._is_held:
            text = self._tokenizer._shows(token)
            if REPLACEMENT not in text:
                self._whole[number] = text
                return text
        if self._tokenizer._has_byte_tokens and (found := BYTE_TOKEN.fullmatch(token)):
            return self._put_byte(number, int(found[1], 16))
        return self._end_of_bytes() + self._put_token(number)

    def flush(self) -> str:
        """End the text.

        Returns
        -------
        str
            What was kept back: U+FFFD for a character that has not been completed. Then a new text may begin.
        """
        piece = self._end_of_bytes() + self._text()[self._sent :]
        self._window, self._sent, self._is_held = [], 0, False
        return piece

    def _text(self) -> str:
        return str(self._tokenizer._backend.decode(self._window, skip_special_tokens=False))

    def _put_token(self, id: int) -> str:
        self._window.append(id)
        text = self._text()
        end = self._certain(text)
        self._is_held = end < len(text)
        piece, self._sent = text[self._sent : end], max(end, self._sent)
        if len(self._window) >= WINDOW:
            self._window = self._window[-CONTEXT:]
            self._sent = self._certain(self._text())
        return piece

    def _certain(self, text: str) -> int:
        """How many characters of a window's text no further token changes."""
        # An unfinished character is one U+FFFD at the end. So is one that belongs there, which then waits.
        return len(text) - (self._tokenizer._is_byte_level and text.endswith(REPLACEMENT))

    def _put_byte(self, id: int, byte: int) -> str:
        # Byte by byte, because the library decodes a row of bytes as a whole or not at all.
        self._byte_ids.append(id)
        text = self._bytes.decode(bytes([byte]))
        if not text:
            return ""
        is_first, ids = not self._window, self._byte_ids
        self._byte_ids = [id] if self._bytes.getstate()[0] else []
        if is_first:  # where a decoder may drop a space
            self._window = ids[:1] if REPLACEMENT in text else ids
            self._sent = len(self._text())
            return text if REPLACEMENT in text else self._text()
        return text

    def _end_of_bytes(self) -> str:
        if not self._byte_ids:
            return ""
        is_first, ids = not self._window, self._byte_ids
        self._byte_ids = []
        if is_first:
            self._window, self._sent = ids, len(ids)  # as the library decodes them: U+FFFD each
        text = self._bytes.decode(b"", final=True)
        self._bytes.reset()
        return text


class _Reading:
    """Makes our error of what the library raises while it reads a file. Its panics are no `Exception`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, BitNetError):
            return
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise FormatError.tokenizer(self._name, _reason(error)) from error


def _json(path: str) -> dict[str, Any]:
    """The content of a file; empty if there is none."""
    from bitnet.formats.base import parsed_json, read_bytes

    if not os.path.isfile(path):
        return {}
    found: dict[str, Any] = parsed_json(read_bytes(path), path, "the file", unique=False)
    return found


def _checked_ids(name: str, ids: Iterable[SupportsIndex]) -> list[int]:
    """Token ids as Python's integers."""
    needed, got = f"a token id from 0 to {IDS[-1]}", None
    try:
        numbers = [operator.index(got := id) for id in ids]
    except TypeError:
        raise ConfigurationError.value("Tokenizer", name, ids if got is None else got, needed) from None
    for number in numbers:
        if number not in IDS:
            raise ConfigurationError.value("Tokenizer", name, number, needed)
    return numbers


def _reason(error: BaseException) -> str:
    """What the library says, on one line."""
    return " ".join(str(error).split()).removeprefix("Cannot instantiate Tokenizer from buffer: ")
