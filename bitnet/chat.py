"""Chat templates: a conversation becomes the text that a model was trained to continue.

A template is a program in Jinja that comes with a checkpoint, so with somebody else's file. It runs in a sandbox
(``sandbox.py``), where it sees the messages and may not look behind them, and where its size, its time and all that it
makes are bounded.
"""

import functools
import json
import re
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitnet import sandbox
from bitnet.errors import ConfigurationError, FormatError

__all__ = ["BITNET_2B_4T", "PLAIN", "TEMPLATES", "ChatTemplate", "ToolCall", "compiled", "parse_tool_calls",
           "tool_format"]  # fmt: skip

BITNET_2B_4T = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = message['role'] | capitalize "
    "+ ': '+ message['content'] | trim + '<|eot_id|>' %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
"""The template of BitNet-b1.58-2B-4T, for files of it that have none or a wrong one. It writes no first token.

From tokenizer_config.json of huggingface.co/microsoft/bitnet-b1.58-2B-4T; the same text as ``ChatFormat`` writes in
github.com/microsoft/BitNet, gpu/tokenizer.py.
"""

PLAIN = (
    "{% for message in messages %}{{ message['content'] | trim }}"
    "{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
)
"""No format at all, for models that were never trained to chat: what was said, line by line, which the model goes on
from. Who said it is not written, for such a model would not know what to make of it.
"""

TEMPLATES = {"bitnet-2b-4t": BITNET_2B_4T, "plain": PLAIN}
"""Templates by name, for models that have none."""

FILE = "<chat template>"  # by which frames of a template are found in a traceback


class ChatTemplate:
    """A compiled chat template. It does not change, so threads may share it.

    Parameters
    ----------
    template : str
        The Jinja source, as ``chat_template`` in a ``tokenizer_config.json``.
    bos_token, eos_token : str
        What the template finds under these names: the tokens that begin and end a text.

    Raises
    ------
    ConfigurationError
        If one of them is no string.
    FormatError
        If the template cannot be compiled; the message names the line.

    Notes
    -----
    Templates are written for Transformers, so they see what they see there: blocks that take their line end with them
    (``trim_blocks``, ``lstrip_blocks``), ``break`` and ``continue``, ``{% generation %}``, ``raise_exception``,
    ``strftime_now``, and a ``tojson`` that keeps characters as they are. Filters that no template of a known model uses
    are left out (``sandbox.FILTERS`` has the others).

    Examples
    --------
    >>> ChatTemplate(BITNET_2B_4T).render([{"role": "user", "content": "Hello"}])
    'User: Hello<|eot_id|>Assistant: '
    """

    def __init__(self, template: str, bos_token: str = "", eos_token: str = "") -> None:
        for name, value in (("template", template), ("bos_token", bos_token), ("eos_token", eos_token)):
            if not isinstance(value, str):
                raise ConfigurationError.value("ChatTemplate", name, value, "a string")
        if len(template) > sandbox.MAX_TEMPLATE:
            raise FormatError.template(None, f"it has {len(template)} characters, more than {sandbox.MAX_TEMPLATE}")
        self.template, self.bos_token, self.eos_token = template, bos_token, eos_token
        environment = sandbox.environment()
        try:
            with sandbox.Meter():  # what is constant is computed now
                code = environment.compile(template, filename=FILE)
            self._compiled = environment.template_class.from_code(environment, code, environment.make_globals(None))
        except Exception as error:  # also RecursionError, or a SyntaxError of the Python that Jinja writes
            raise FormatError.template(_line(error), _reason(error)) from error

    def render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """Write a conversation as one text.

        Parameters
        ----------
        messages : list of dict
            Each with a ``"role"``, such as ``"user"``, and a ``"content"``: a string, or a list of parts
            ``{"type": "text", "text": ...}``, which are joined. A message that has ``"tool_calls"`` may have no
            content; their arguments may be a string of JSON, as OpenAI has it, and reach the template as that object.
            What else is in a message is the template's business.
        add_generation_prompt : bool
            Whether to write the beginning of the answer.
        **variables
            What else the template may ask for. ``tools``: a list of dictionaries, each a function's JSON schema.

        Returns
        -------
        str
            The special tokens are written out, also the first where the template does so: encode it as it is.

        Raises
        ------
        ConfigurationError
            If `messages` or the tools are something else.
        FormatError
            If the template fails, refuses the messages, tries to leave the sandbox, or goes beyond a bound of
            ``sandbox.py``: `sandbox.MAX_RENDERED` characters, `sandbox.MAX_S` seconds; the message names the line.
        """
        if (tools := variables.get("tools")) is not None:
            variables["tools"] = _checked_tools(tools)
        names = {
            "tools": None, "documents": None, "bos_token": self.bos_token, "eos_token": self.eos_token, **variables,
            "messages": _checked_messages(messages), "add_generation_prompt": bool(add_generation_prompt),
        }  # fmt: skip
        pieces, length = [], 0
        try:
            with sandbox.Meter() as meter:
                for piece in self._compiled.generate(names):
                    meter.step(piece)
                    length += len(piece)
                    if length > sandbox.MAX_RENDERED:
                        sandbox.refuse(f"it writes more than {sandbox.MAX_RENDERED} characters")
                    pieces.append(piece)
        except Exception as error:
            raise FormatError.template(_line(error), _reason(error)) from error
        return "".join(pieces)


def compiled(template: str, bos_token: str = "", eos_token: str = "") -> ChatTemplate:
    """Compile a template, once.

    Parameters
    ----------
    template : str
        One of the names in `TEMPLATES`, or a source in Jinja.
    bos_token, eos_token : str
        As of `ChatTemplate`.

    Returns
    -------
    ChatTemplate
    """
    if not isinstance(template, str):
        return ChatTemplate(template)  # which refuses it
    return _compiled(TEMPLATES.get(template, template), bos_token, eos_token)


_compiled = functools.lru_cache(maxsize=16)(ChatTemplate)


@dataclass(frozen=True)
class ToolCall:
    """A call of a function that a model asks for.

    Attributes
    ----------
    name : str
    arguments : dict
    """

    name: str
    arguments: dict[str, Any]


HERMES = re.compile(r"<tool_call>\s*(\{.*?\})\s*(?:</tool_call>|\Z)", re.S)
PYTHON_TAG = "<|python_tag|>"


def tool_format(template: str | None) -> str | None:
    """Find in which of the known formats the models of a template write tool calls.

    Parameters
    ----------
    template : str or None
        The source.

    Returns
    -------
    {"hermes", "llama3", None}
        "hermes", as of Qwen and Hermes, is ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, anywhere and
        repeatedly; "llama3" is an answer that is ``{"name": ..., "parameters": {...}}`` as a whole, or several with
        semicolons between them. None for any other.
    """
    if template is None:
        return None
    if "<tool_call>" in template:
        return "hermes"
    return "llama3" if PYTHON_TAG in template or '"parameters": ' in template else None


def parse_tool_calls(text: str, form: str | None) -> tuple[str, list[ToolCall]]:
    """Take the tool calls out of an answer.

    Parameters
    ----------
    text : str
        All of the answer.
    form : {"hermes", "llama3", None}
        As of `tool_format`. None finds no calls.

    Returns
    -------
    content : str
        What is beside the calls. Something that looks like a call and is none stays here.
    calls : list of ToolCall
        In the order of the text.

    Examples
    --------
    >>> parse_tool_calls('Let me see. <tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>', "hermes")
    ('Let me see.', [ToolCall(name='f', arguments={'x': 1})])
    """
    if form not in ("hermes", "llama3", None):
        raise ConfigurationError.choice("form", form, ("hermes", "llama3", None))
    calls: list[ToolCall] = []
    if form == "hermes":

        def take(found: re.Match[str]) -> str:
            one = _tool_calls(found[1], "arguments", once=True)
            calls.extend(one)
            return "" if one else found[0]

        content = HERMES.sub(take, text)
        return (content.strip(), calls) if calls else (text, calls)
    if form == "llama3":
        calls = _tool_calls(text.strip().removeprefix(PYTHON_TAG), "parameters")
    return ("", calls) if calls else (text, calls)


def _tool_calls(text: str, key: str, once: bool = False) -> list[ToolCall]:
    """The calls that a text consists of; none if it has anything else."""
    found, rest, decoder = [], text.strip(), json.JSONDecoder()
    while rest:
        try:
            call, end = decoder.raw_decode(rest)
        except (ValueError, RecursionError):
            return []
        given = call.get(key, call.get("arguments")) if isinstance(call, dict) else None
        if not isinstance(given, dict) or not isinstance(call.get("name"), str):
            return []
        found.append(ToolCall(call["name"], given))
        rest = rest[end:].lstrip()
        if rest and (once or not rest.startswith(";")):
            return []
        rest = rest.removeprefix(";").lstrip()
    return found


def _checked_messages(messages: Any) -> list[dict[str, Any]]:
    if not isinstance(messages, list | tuple):
        raise ConfigurationError.value("ChatTemplate.render", "messages", messages, "a list of messages")
    found = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ConfigurationError.value("messages", f"[{index}]", message, "a dictionary with 'role' and 'content'")
        checked = dict(message)
        if isinstance(parts := checked.get("content"), list):
            texts = [part["text"] for part in parts if _is_text(part)]
            if len(texts) < len(parts):
                raise ConfigurationError.value(f"messages[{index}]", "content", parts, "a string, or parts of text")
            checked["content"] = "".join(texts)
        if calls := checked.get("tool_calls"):
            checked["tool_calls"] = [_with_object(call) for call in calls]
        for name in ("role",) if calls else ("role", "content"):
            if not isinstance(checked.get(name), str):
                raise ConfigurationError.value(f"messages[{index}]", name, checked.get(name), "a string")
        found.append(checked)
    return found


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _checked_tools(tools: Any) -> list[Any]:
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ConfigurationError.value("ChatTemplate.render", "tools", tools, "a list of dictionaries (JSON schemas)")
    return list(tools)


def _with_object(call: Any) -> Any:
    """A tool call whose arguments, if they are a JSON object as a string, are that object; templates want it so."""
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _with_object(call["function"])}
    if isinstance(call.get("arguments"), str):
        try:
            arguments = json.loads(call["arguments"])
        except ValueError:
            return call
        return {**call, "arguments": arguments} if isinstance(arguments, dict) else call
    return call


def _line(error: Exception) -> int | None:
    """The line of the template in which an error arose."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == FILE]
    return frames[-1].lineno if frames else getattr(error, "lineno", None)


def _reason(error: Exception) -> str:
    from jinja2.exceptions import TemplateError

    said = error.message if isinstance(error, TemplateError) else error
    sentence = " ".join(str(said).split()).rstrip(".!")
    if isinstance(error, TemplateError) and sentence:
        return sentence
    return f"{type(error).__name__}: {sentence}" if sentence else type(error).__name__
