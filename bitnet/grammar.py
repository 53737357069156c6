"""What an answer has to be: JSON of a schema, a regular expression, a grammar; by the library llguidance.

A grammar says of each token whether it may come next, in a mask over the vocabulary, before the token is chosen. So an
answer that ends by itself is of the grammar, whatever the model would have said; only `max_new_tokens`, a timeout or a
stop string can cut it short.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from bitnet.errors import ConfigurationError, DeviceError, InferenceError, ModelLoadError

__all__ = ["Grammar", "Matcher"]

_tokenizers: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # of models: the making takes a second for a large one


@dataclass(frozen=True)
class Grammar:
    """What an answer has to be; made by `json_schema`, `regex` or `lark`, and given to `generate` and `stream`.

    It does not change, so requests and threads may share it.

    Attributes
    ----------
    source : str
        As llguidance reads it.

    Examples
    --------
    ::

        bitnet.load().generate("A colour: ", grammar=bitnet.Grammar.regex("(red|green|blue)")).text
    """

    source: str

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str, *, whitespace: bool = False) -> Self:
        """Ask for JSON of a schema.

        Parameters
        ----------
        schema : dict or str
            ``{"type": "object"}`` for any object.
        whitespace : bool, optional
            Whether the model may put spaces and lines where JSON allows it, and not only where ``json.dumps`` does.

        Returns
        -------
        Grammar

        Raises
        ------
        ConfigurationError
            If it is no schema, or one that llguidance does not know.
        DeviceError
            If llguidance is not installed.
        """
        try:
            text = schema if isinstance(schema, str) else json.dumps(dict(schema))
            tight = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
            how = {"whitespace_flexible": True} if whitespace else tight
            made = _matcher().grammar_from_json_schema(text, overrides=how)
        except (TypeError, ValueError) as error:
            raise ConfigurationError.grammar("json_schema", _line(error)) from error
        return cls._checked("json_schema", made)

    @classmethod
    def regex(cls, pattern: str) -> Self:
        """Ask for what a regular expression matches as a whole.

        Parameters
        ----------
        pattern : str
            Of Rust's crate ``regex``: without look-around and back-references.

        Returns
        -------
        Grammar

        Raises
        ------
        ConfigurationError, DeviceError
            As of `json_schema`.
        """
        return cls._checked("regex", _matcher().grammar_from_regex(_text("regex", pattern)))

    @classmethod
    def lark(cls, grammar: str) -> Self:
        """Ask for what a context-free grammar derives from its rule ``start``.

        Parameters
        ----------
        grammar : str
            In llguidance's variant of the syntax of Lark.

        Returns
        -------
        Grammar

        Raises
        ------
        ConfigurationError, DeviceError
            As of `json_schema`.
        """
        return cls._checked("lark", _matcher().grammar_from_lark(_text("lark", grammar)))

    @classmethod
    def _checked(cls, kind: str, source: str) -> Self:
        is_error, messages = _matcher().validate_grammar_with_warnings(source)
        if is_error:
            raise ConfigurationError.grammar(kind, _line(messages[0]))
        return cls(source)

    def matcher(self, model: Any) -> "Matcher":
        """Begin an answer.

        Parameters
        ----------
        model : Model

        Returns
        -------
        Matcher
        """
        return Matcher(self, model)


class Matcher:
    """What may come next in one answer. Not to be shared between threads.

    Parameters
    ----------
    grammar : Grammar
    model : Model
        With a tokenizer.
    """

    def __init__(self, grammar: Grammar, model: Any) -> None:
        if model.tokenizer is None:
            raise ModelLoadError.no_tokenizer(model.path)
        if model not in _tokenizers:
            _tokenizers[model] = _tokenizer(model)
        tokenizer = _tokenizers[model]
        self._matcher = _matcher()(tokenizer, grammar.source, log_level=0)
        self._bits: npt.NDArray[np.int32] = np.empty((tokenizer.vocab_size + 31) // 32, np.int32)
        self._check()

    def allowed(self) -> npt.NDArray[np.int32]:
        """Say which tokens may come next.

        Returns
        -------
        ndarray of int32
            A bit for each token, the lowest first. It is overwritten by the next call.
        """
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        return self._bits

    def accept(self, token: int) -> bool:
        """Take the next token.

        Parameters
        ----------
        token : int

        Returns
        -------
        bool
            Whether the answer is complete, and nothing can follow.
        """
        self._matcher.consume_token(token)
        self._check()
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InferenceError.grammar(_line(self._matcher.get_error()))


def _matcher() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise DeviceError.missing_extra("llguidance", "grammar") from error
    return llguidance.LLMatcher


def _tokenizer(model: Any) -> Any:
    import llguidance

    # A token beyond the model's stands for the end where it has none: it can never be chosen.
    rows = model.program.vocab_size
    ends = [id for id in model.eos_token_ids if id < rows]
    try:
        return llguidance.LLTokenizer(model.tokenizer.to_json(), n_vocab=rows + (not ends), eos_token=ends or [rows])
    except ValueError as error:  # it knows byte-level and SentencePiece tokenizers only
        raise InferenceError.grammar_tokenizer(_line(error)) from error


def _text(kind: str, given: Any) -> str:
    if not isinstance(given, str):
        raise ConfigurationError.value("Grammar", kind, given, "a string")
    return given


def _line(said: object) -> str:
    # Behind the first sentence comes the state of the parser.
    return " ".join(str(said).partition("<state>")[0].split()).rstrip(".!")
