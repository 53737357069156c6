"""Tool calls: which format a template has, and the calls in an answer."""

import pytest

from bitnet.chat import ToolCall, parse_tool_calls, tool_format

F = ToolCall("f", {"x": 1})
G = ToolCall("g", {})


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>', "", [F]),
        ('Wait.\n<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>\n'
         '<tool_call>{"name": "g", "arguments": {}}</tool_call>', "Wait.", [F, G]),
        ('<tool_call>{"name": "f", "arguments": {"x": 1}}', "", [F]),
        ('<tool_call>{"name": "f", "arguments": {"x": {"y": "}</tool_call>"}}}</tool_call>',
         '<tool_call>{"name": "f", "arguments": {"x": {"y": "}</tool_call>"}}}</tool_call>', []),
        ('<tool_call>{"name": "f", "arguments": {"x": {"y": 1}}}</tool_call>', "", [ToolCall("f", {"x": {"y": 1}})]),
        ('<tool_call>{"name": "f", "arguments": {"x": 1}</tool_call> a <tool_call>{"name": "g", "arguments": {}}'
         "</tool_call>", '<tool_call>{"name": "f", "arguments": {"x": 1}</tool_call> a', [G]),
        ('<tool_call>{"name": 1, "arguments": {}}</tool_call>', '<tool_call>{"name": 1, "arguments": {}}</tool_call>',
         []),
        ("<tool_call>" + '{"a":' * 100_000, "<tool_call>" + '{"a":' * 100_000, []),
        (" no call ", " no call ", []),
        ("", "", []),
    ],
)  # fmt: skip
def test_hermes(text, content, calls):
    assert parse_tool_calls(text, "hermes") == (content, calls)


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('{"name": "f", "parameters": {"x": 1}}', "", [F]),
        ('<|python_tag|>{"name": "f", "parameters": {"x": 1}}; {"name": "g", "parameters": {}}', "", [F, G]),
        ('{"name": "f", "arguments": {"x": 1}}', "", [F]),
        ('{"name": "f", "parameters": {"x": 1}} and more', '{"name": "f", "parameters": {"x": 1}} and more', []),
        ('{"name": "f", "parameters": "x"}', '{"name": "f", "parameters": "x"}', []),
        ("[" * 100_000, "[" * 100_000, []),
        (" no call ", " no call ", []),
    ],
)
def test_llama3(text, content, calls):
    assert parse_tool_calls(text, "llama3") == (content, calls)


def test_no_format_finds_nothing():
    text = '<tool_call>{"name": "g", "arguments": {}}</tool_call>'
    assert parse_tool_calls(text, None) == (text, [])


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (None, None),
        ("{{ messages }}", None),
        ("{{ '<tool_call>' }}", "hermes"),
        ("{{ '<|python_tag|>' }}", "llama3"),
        ("""{{ '{"name": function name, "parameters": dictionary}' }}""", "llama3"),
    ],
)
def test_the_format_of_a_template(template, form):
    assert tool_format(template) == form
