"""`LlamaGrammar`: llama.cpp's grammars, in its notation GBNF, as grammars of this engine."""

import json
import os
from typing import Any, Self

from bitnet.errors import ConfigurationError, DeviceError, ModelLoadError
from bitnet.grammar import Grammar

__all__ = ["LlamaGrammar", "grammar_of"]


class LlamaGrammar:
    """What an answer has to be. Made by `from_string`, `from_file` or `from_json_schema`.

    Parameters
    ----------
    grammar : Grammar
    """

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar

    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True) -> Self:
        """Read a grammar in GBNF, whose first rule is ``root``; `verbose` counts for nothing.

        Raises
        ------
        ConfigurationError
            If it is none.
        """
        try:
            from llguidance.gbnf_to_lark import gbnf_to_lark
        except ImportError as error:
            raise DeviceError.missing_extra("llguidance", "grammar") from error
        try:
            lark = gbnf_to_lark(grammar)
        except Exception as error:  # of whatever its parser stumbles over
            raise ConfigurationError.grammar("gbnf", str(error) or type(error).__name__) from error
        return cls(Grammar.lark(lark))

    @classmethod
    def from_file(cls, file: str | os.PathLike[str], verbose: bool = True) -> Self:
        """Read a file with a grammar in GBNF."""
        try:
            with open(file, encoding="utf-8") as opened:
                text = opened.read()
        except (OSError, UnicodeDecodeError) as error:
            raise ModelLoadError.unreadable(os.fspath(file), getattr(error, "strerror", None) or str(error)) from error
        return cls.from_string(text)

    @classmethod
    def from_json_schema(cls, json_schema: str, verbose: bool = True) -> Self:
        """Ask for JSON of a schema, which is a string of JSON."""
        return cls(Grammar.json_schema(json_schema))


def grammar_of(grammar: Any, response_format: Any = None) -> Grammar | None:
    """Make the engine's grammar of what `Llama` is given.

    Parameters
    ----------
    grammar : LlamaGrammar, Grammar or None
    response_format : dict, optional
        ``{"type": "json_object"}``, with a ``"schema"`` if there is one; OpenAI's ``{"type": "json_schema",
        "json_schema": {"schema": ...}}``; or ``{"type": "text"}``.

    Returns
    -------
    Grammar or None
    """
    if isinstance(grammar, LlamaGrammar):
        return grammar.grammar
    if grammar is not None or response_format is None:
        if not isinstance(grammar, Grammar | None):
            raise ConfigurationError.value("Llama", "grammar", grammar, "a LlamaGrammar or a Grammar")
        return grammar
    kind = response_format.get("type")
    if kind == "text":
        return None
    schema = response_format.get("schema")
    if kind == "json_schema":
        schema = (response_format.get("json_schema") or {}).get("schema")
    elif kind != "json_object":
        raise ConfigurationError.choice("response_format", kind, ("text", "json_object", "json_schema"))
    return Grammar.json_schema(json.dumps({"type": "object"} if schema is None else schema))
