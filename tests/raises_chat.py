"""Rows of test_raises.py for chat templates and tool calls."""

from bitnet.chat import ChatTemplate, parse_tool_calls


def caused(trigger):
    """Raise the cause of the error that `trigger` raises."""
    try:
        trigger()
    except Exception as error:
        raise error.__cause__ from None


ROWS = [
    ("chat.py", "ConfigurationError.value", lambda: ChatTemplate(1),
     "ChatTemplate.template is 1; it must be a string"),
    ("chat.py", "FormatError.template", lambda: ChatTemplate("{{"),
     "the chat template fails at line 1: unexpected 'end of template'"),
    ("chat.py", "FormatError.template", lambda: ChatTemplate("{{ 1 / 0 }}").render([]),
     "the chat template fails at line 1: ZeroDivisionError: division by zero"),
    ("chat.py", "FormatError.template", lambda: ChatTemplate("a" * 262145),
     "the chat template fails: it has 262145 characters, more than 262144"),
    ("chat.py", "ConfigurationError.value", lambda: ChatTemplate("").render("a"),
     "ChatTemplate.render.messages is 'a'; it must be a list of messages"),
    ("chat.py", "ConfigurationError.value", lambda: ChatTemplate("").render(["a"]),
     "messages.[0] is 'a'; it must be a dictionary with 'role' and 'content'"),
    ("chat.py", "ConfigurationError.value", lambda: ChatTemplate("").render([{}]),
     "messages[0].role is None; it must be a string"),
    ("chat.py", "ConfigurationError.value", lambda: ChatTemplate("").render([{"role": "user", "content": [1]}]),
     "messages[0].content is [1]; it must be a string, or parts of text"),
    ("chat.py", "ConfigurationError.value", lambda: ChatTemplate("").render([], tools="f"),
     "ChatTemplate.render.tools is 'f'; it must be a list of dictionaries (JSON schemas)"),
    ("chat.py", "ConfigurationError.choice", lambda: parse_tool_calls("", "xml"),
     "form is 'xml'; it must be one of 'hermes', 'llama3', None"),
    ("sandbox.py", "SecurityError", lambda: caused(lambda: ChatTemplate("{{ ''.__class__ }}").render([])),
     "it may not use '__class__' of a str"),
    ("sandbox.py", "TemplateError", lambda: caused(lambda: ChatTemplate("{{ raise_exception('no') }}").render([])),
     "it refuses the messages: no"),
]  # fmt: skip
