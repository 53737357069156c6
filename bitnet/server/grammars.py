"""What an answer has to be, of what a request says: JSON, or a call of a tool."""

import functools
import json
from typing import Any

import bitnet
from bitnet.errors import BitNetError
from bitnet.server.problems import refuse

__all__ = ["of_format", "of_tools"]

KEYS = {"hermes": "arguments", "llama3": "parameters"}


@functools.lru_cache(maxsize=64)
def _of_schema(text: str) -> bitnet.Grammar:
    return bitnet.Grammar.json_schema(text)


@functools.lru_cache(maxsize=64)
def _of_lark(text: str) -> bitnet.Grammar:
    return bitnet.Grammar.lark(text)


def of_format(said: dict[str, Any] | None) -> bitnet.Grammar | None:
    """Make the grammar of a ``response_format``.

    Parameters
    ----------
    said : dict or None

    Returns
    -------
    Grammar or None
        None where any text will do.

    Raises
    ------
    Problem
        If the schema is none, or has what cannot be made a grammar.
    """
    if said is None or said["type"] == "text":
        return None
    schema = {"type": "object"} if said["type"] == "json_object" else said["json_schema"]["schema"]
    try:
        return _of_schema(json.dumps(schema))
    except (BitNetError, RecursionError) as error:
        refuse(400, f"the schema cannot be used: {error}", "response_format", "invalid_value")


def of_tools(tools: list[dict[str, Any]], name: str | None, form: str) -> bitnet.Grammar:
    """Make the grammar of a call of a tool, in the way in which a model writes it.

    Parameters
    ----------
    tools : list of dict
    name : str or None
        Of the one that is to be called; None for any.
    form : {"hermes", "llama3"}

    Returns
    -------
    Grammar

    Raises
    ------
    Problem
        If there is no tool of the name, or parameters cannot be made a grammar.
    """
    wanted = [tool["function"] for tool in tools if name in (None, tool["function"]["name"])]
    if not wanted:
        refuse(400, f"there is no tool '{name}'", "tool_choice", "invalid_value")
    key = KEYS[form]
    calls = [
        {"type": "object", "properties": {"name": {"const": one["name"]},
                                          key: one.get("parameters") or {"type": "object"}},
         "required": ["name", key], "additionalProperties": False}
        for one in wanted
    ]  # fmt: skip
    schema = json.dumps(calls[0] if len(calls) == 1 else {"anyOf": calls})
    try:
        if form == "llama3":
            return _of_schema(schema)
        return _of_lark(f'start: "<tool_call>\\n" call "\\n</tool_call>"\ncall: %json {schema}')
    except (BitNetError, RecursionError) as error:
        refuse(400, f"the parameters of a tool cannot be used: {error}", "tools", "invalid_value")
