"""Chat templates: a conversation becomes the text that a model was trained to continue.

A template is a program in Jinja that comes with a checkpoint, so with somebody else's file. It runs in Jinja's sandbox,
where it sees the messages and may not look behind them. Time is not limited: a template can count to 100 000 in a loop,
and loops nest.
"""

import datetime
import json
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from bitnet.errors import ConfigurationError, FormatError

__all__ = ["BITNET_2B_4T", "MAX_RENDERED", "ChatTemplate"]

MAX_RENDERED = 1 << 24
"""Characters that a rendered conversation may have: some hundred times the context of any model here."""

BITNET_2B_4T = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = message['role'] | capitalize "
    "+ ': '+ message['content'] | trim + '<|eot_id|>' %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
"""The template of BitNet-b1.58-2B-4T, for files of it that have none or a wrong one. It writes no first token.

From tokenizer_config.json of huggingface.co/microsoft/bitnet-b1.58-2B-4T; the same text as ``ChatFormat`` writes in
github.com/microsoft/BitNet, gpu/tokenizer.py.
"""

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
    ``strftime_now``, and a ``tojson`` that keeps characters as they are.

    Examples
    --------
    >>> ChatTemplate(BITNET_2B_4T).render([{"role": "user", "content": "Hello"}])
    'User: Hello<|eot_id|>Assistant: '
    """

    def __init__(self, template: str, bos_token: str = "", eos_token: str = "") -> None:
        for name, value in (("template", template), ("bos_token", bos_token), ("eos_token", eos_token)):
            if not isinstance(value, str):
                raise ConfigurationError.value("ChatTemplate", name, value, "a string")
        self.template, self.bos_token, self.eos_token = template, bos_token, eos_token
        environment = _environment()
        try:
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
            Each with a ``"role"``, such as ``"user"``, and a ``"content"``, both strings; a message that has
            ``"tool_calls"`` may have no content. What else is in them is the template's business.
        add_generation_prompt : bool
            Whether to write the beginning of the answer.
        **variables
            What else the template may ask for, as ``tools``.

        Returns
        -------
        str
            The special tokens are written out, also the first where the template does so: encode it as it is.

        Raises
        ------
        ConfigurationError
            If `messages` are something else.
        FormatError
            If the template fails, refuses the messages, tries to leave the sandbox, or writes more than
            `MAX_RENDERED` characters; the message names the line.
        """
        _check_messages(messages)
        names = {
            "tools": None, "documents": None, "bos_token": self.bos_token, "eos_token": self.eos_token, **variables,
            "messages": messages, "add_generation_prompt": bool(add_generation_prompt),
        }  # fmt: skip
        pieces, length = [], 0
        try:
            for piece in self._compiled.generate(names):
                length += len(piece)
                if length > MAX_RENDERED:
                    break
                pieces.append(piece)
        except Exception as error:
            raise FormatError.template(_line(error), _reason(error)) from error
        if length > MAX_RENDERED:
            raise FormatError.template(None, f"it writes more than {MAX_RENDERED} characters")
        return "".join(pieces)


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list | tuple):
        raise ConfigurationError.value("ChatTemplate.render", "messages", messages, "a list of messages")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ConfigurationError.value("messages", f"[{index}]", message, "a dictionary with 'role' and 'content'")
        for name in ("role",) if message.get("tool_calls") else ("role", "content"):
            if not isinstance(message.get(name), str):
                raise ConfigurationError.value(f"messages[{index}]", name, message.get(name), "a string")


def _environment() -> Any:
    """A sandbox with what Transformers gives to chat templates."""
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}``, which marks what an assistant said; here it is written as it is."""

        tags = {"generation"}  # noqa: RUF012 - jinja2 has it so

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    class Sandbox(ImmutableSandboxedEnvironment):
        """Refuses at once, where Jinja's gives something undefined, which may print as nothing; and refuses products
        and powers too large to be meant, before they are made.
        """

        intercepted_binops = frozenset(["*", "**"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**":
                too_large = abs(left) > 1 and right * abs(left).bit_length() > 1024 if _whole(left, right) else False
            else:
                size, times = (left, right) if hasattr(left, "__len__") else (right, left)
                too_large = hasattr(size, "__len__") and len(size) * times > MAX_RENDERED
            if too_large:
                raise SecurityError(f"the result of '{operator}' would be too large")
            return super().call_binop(context, operator, left, right)

        def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
            raise SecurityError(f"it may not use '{attribute}' of a {type(obj).__name__}")

    def raise_exception(message: object) -> None:
        raise TemplateError(f"it refuses the messages: {message}")

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation])
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    environment.filters["tojson"] = tojson
    return environment


def _whole(*values: Any) -> bool:
    return all(isinstance(value, int) for value in values)


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
