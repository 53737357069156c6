"""Chat templates: what they write, what they may not do, and what is said when they fail."""

import concurrent.futures
import datetime
import pickle
import re
import time
import tracemalloc

import pytest

from bitnet import sandbox
from bitnet.chat import BITNET_2B_4T, PLAIN, ChatTemplate
from bitnet.errors import ConfigurationError, FormatError

USER = {"role": "user", "content": "Hello"}
TALK = [
    {"role": "system", "content": "  Be brief.\n"}, {"role": "user", "content": "Hi?"},
    {"role": "assistant", "content": "Yes: {{ 1 }}"}, {"role": "user", "content": "Grüße 😀"},
]  # fmt: skip


def rendered(template, messages=(USER,), **variables):
    return ChatTemplate(template, "<s>", "</s>").render(messages, **variables)


def refusal(template, messages=(USER,), **variables):
    with pytest.raises(FormatError) as caught:
        rendered(template, messages, **variables)
    return str(caught.value)


# ---- what they write


def test_the_template_of_2b_4t():
    template = ChatTemplate(BITNET_2B_4T)
    turns = ["System: Be brief.", "User: Hi?", "Assistant: Yes: {{ 1 }}", "User: Grüße 😀"]
    conversation = "".join(turn + "<|eot_id|>" for turn in turns)
    assert template.render(TALK) == conversation + "Assistant: "
    assert template.render(TALK, add_generation_prompt=False) == conversation
    assert template.render([]) == "Assistant: "


CHATML = """{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
<|im_start|>system
Default<|im_end|>
    {% endif %}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""


def test_blocks_take_their_line_end_with_them():
    assert rendered(CHATML) == (
        "<|im_start|>system\nDefault<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", "<s>Hello</s>"),
        ("{{ messages[0]['nothing'] }}|{{ nothing }}", "|"),
        ("{{ tools is none }} {{ documents is none }}", "True True"),
        ("{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}"
         "{% endfor %}", "013"),
        ("{% generation %}a{{ 1 }}{% endgeneration %}b", "a1b"),
        ("{% set n = namespace(x=1) %}{% for i in range(3) %}{% set n.x = n.x * 2 %}{% endfor %}{{ n.x }}", "8"),
        ("{{ {'a': '<é\\'>', 'b': [1, none]} | tojson }}", '{"a": "<é\'>", "b": [1, null]}'),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}", '{\n "a": 2,\n "b": 1\n}'),
        ("{{ 'a' * 3 }}{{ 2 ** 10 }}{{ 2.0 ** 2 }}{{ 'x' * 0 }}{{ [0] * 2 }}", "aaa10244.0[0, 0]"),
        ("{{ messages | length }}{{ messages[-1].content.upper() }}", "1HELLO"),
        ("{{ '%s' % 'x' }}{{ '{}'.format(1) }}{{ 'a,b'.split(',')[1] }}{{ ' a '.strip() }}", "x1ba"),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(1) }}", "<1>"),
        ("<b>&\"'", "<b>&\"'"),
        ("", ""),
    ],
)  # fmt: skip
def test_what_templates_use(template, text):
    assert rendered(template) == text


def test_variables_are_given_to_the_template():
    assert rendered("{{ tools[0].name }}{{ thinking }}", tools=[{"name": "f"}], thinking=True) == "fTrue"
    assert rendered("{{ bos_token }}", bos_token="other") == "other"


def test_the_time_can_be_asked_for():
    assert rendered("{{ strftime_now('%Y') }}") in {str(datetime.datetime.now().year + add) for add in (-1, 0)}


def test_messages_are_not_changed():
    messages = [dict(USER)]
    assert refusal("{% set _ = messages.append(1) %}", messages).endswith("it may not use 'append' of a list")
    assert refusal("{{ messages[0].update({'role': 'x'}) }}", messages).endswith("it may not use 'update' of a dict")
    assert messages == [USER]


def test_a_message_may_have_more():
    call = {"role": "assistant", "tool_calls": [{"name": "f"}]}
    assert rendered("{{ messages[0].tool_calls[0].name }}", [call]) == "f"
    assert rendered("{{ messages[0].tool_calls[0].name }}", [{**call, "content": None}]) == "f"
    assert rendered("{{ messages[0].name }}", ({**USER, "name": "Ann"},)) == "Ann"


def test_a_template_renders_again_and_again():
    template = ChatTemplate("{% set x = messages | length %}{{ x }}")
    assert [template.render([USER] * count) for count in (1, 2, 1)] == ["1", "2", "1"]


# ---- the sandbox


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ ''['__class__'] }}",
        "{{ ''|attr('__class__') }}",
        "{{ messages[0].items.__self__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__code__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ namespace.__init__.__globals__['os'] }}",
        "{{ self.__init__ }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ ''.format_map.__self__.__class__ }}",
        "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].clear() }}",
    ],
)
def test_the_sandbox_holds(template):
    assert "fails at line 1: it may not use '" in refusal(template, [dict(USER)])


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for i in range(10 ** 12) %}{{ i }}{% endfor %}", "OverflowError: Range too big."),
        ("{{ 'a' * 10 ** 12 }}", "the result of '*' would be too large"),
        ("{{ 10 ** 9 * 'a' }}", "the result of '*' would be too large"),
        ("{{ [0] * 10 ** 9 }}", "the result of '*' would be too large"),
        ("{{ 10 ** (10 ** 10) }}", "the result of '**' would be too large"),
        ("{{ 10.0 ** 400 }}", "OverflowError: "),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% include 'x' %}", "TypeError: no loader for this environment specified"),
    ],
)
def test_what_would_not_end(template, reason):
    sentence = refusal(template)
    assert sentence.startswith(f"the chat template fails at line 1: {reason}")
    assert len(sentence) < 300


NAMESPACE = "{% set n = namespace(x='aaaaaaaaaaaaaaaa', i=9, l=[1]) %}"
BIG = "{% set b = 'a' * 10000000 %}"
DEEP = "{% set n = namespace(l=[0]) %}{% for i in range(9) %}{% set n.l = [n.l] * 1000 %}{% endfor %}"


@pytest.mark.parametrize(
    "template",
    [
        NAMESPACE + "{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        NAMESPACE + "{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
        NAMESPACE + "{% for i in range(60) %}{% set n.x = n.x * 2 %}{% endfor %}",
        NAMESPACE + "{% for i in range(60) %}{% set n.x = [n.x, n.x] | join %}{% endfor %}",
        NAMESPACE + "{% for i in range(60) %}{% set n.x = n.x.replace('a', 'aa') %}{% endfor %}",
        NAMESPACE + "{% for i in range(60) %}{% set n.x = n.x | replace('a', 'aa') %}{% endfor %}",
        NAMESPACE + "{% for i in range(60) %}{% set n.x = '%s%s' % (n.x, n.x) %}{% endfor %}",
        NAMESPACE + "{% for i in range(60) %}{% set n.x = '{}{}'.format(n.x, n.x) %}{% endfor %}",
        NAMESPACE + "{% for i in range(60) %}{% set n.x = '%s%s' | format(n.x, n.x) %}{% endfor %}",
        NAMESPACE + "{% for i in range(60) %}{% set n.x = ''.join([n.x, n.x]) %}{% endfor %}",
        NAMESPACE + "{% for i in range(60) %}{% set n.i = n.i * n.i %}{% endfor %}",
        NAMESPACE + "{% for i in range(60) %}{% set n.l = n.l + n.l %}{% endfor %}",
        NAMESPACE + "{% for i in range(60) %}{% set n.l = [n.l, n.l] | sum(start=[]) %}{% endfor %}",
        NAMESPACE + "{% for i in range(60) %}{% set n.l = [n.l, n.l] %}{% endfor %}{{ n.l }}",
        DEEP + "{{ n.l }}", DEEP + "{{ n.l | tojson }}", DEEP + "{{ n.l | string }}", DEEP + "{{ n.l ~ 'a' }}",
        DEEP + "{{ '%s' % n.l }}", DEEP + "{{ '%s' % (n.l,) }}", DEEP + "{{ '{}'.format(n.l) }}",
        DEEP + "{{ n.l | join }}", DEEP + "{{ n.l | upper }}", DEEP + "{{ {'a': n.l} | tojson }}",
        "{{ 'a'.center(10 ** 9) }}", "{{ 'a'.zfill(10 ** 9) }}", "{{ 'a'.ljust(width=10 ** 9) }}",
        "{{ 'a'.encode().center(10 ** 9) }}", "{{ (5).to_bytes(10 ** 9, 'big') }}", "{{ '\t'.expandtabs(10 ** 9) }}",
        BIG + "{{ b.replace('', b) }}", BIG + "{{ b.join(['a'] * 1000) }}", BIG + "{{ (['a'] * 1000) | join(b) }}",
        BIG + "{{ ['a', 'b', 'c'] | join(b) }}", BIG + "{{ b.translate({97: b}) }}", BIG + "{{ b | indent(b) }}",
        "{{ '%1000000000d' % 1 }}", "{{ '%*d' % (1000000000, 1) }}", "{{ '%.1000000000f' % 1 }}",
        "{{ '{:1000000000}'.format(1) }}", "{{ '{:{}}'.format(1, 1000000000) }}", "{{ '%99999999d' | format(1) }}",
        "{{ '{x:1000000000}'.format_map({'x': 1}) }}",
        "{{ [1] | batch(10 ** 9, 0) | list }}", "{{ [1] | slice(10 ** 9) | list }}", "{{ 'a' | indent(10 ** 9) }}",
        "{{ [1] | tojson(indent=10 ** 9) }}",
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% for i in range(100000) if range(100000) | list %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(50) }}",
        "{% for i in [1, 2] recursive %}{{ loop([1, 2]) if loop.depth < 50 }}{% endfor %}",
        "{{ range(100000) | map('string') | map('replace', '', 'a' * 100000) | list }}",
        "{% for i in range(99999) %}{% set b = 'a' * 10000000 %}{% endfor %}",
    ],
)
def test_nothing_grows_beyond_bounds(template, monkeypatch):
    monkeypatch.setattr(sandbox, "MAX_S", 0.5)
    start, most = time.monotonic(), sandbox.MAX_MADE
    sentence = refusal(template)
    assert re.search(r"(it makes|it writes|it takes|it has|it may not|too large|is asked for)", sentence), sentence
    assert time.monotonic() - start < 20  # the bound is 0.5 s; the rest is for a machine that is busy
    assert most == 1 << 28


def test_peak_memory_of_a_refused_template(monkeypatch):
    monkeypatch.setattr(sandbox, "MAX_S", 60.0)
    tracemalloc.start()
    try:
        refusal("{% set n = namespace(l=[]) %}{% for i in range(99999) %}{% set n.l = n.l + ['a' * 10000000] %}"
                "{% endfor %}")  # fmt: skip
        assert tracemalloc.get_traced_memory()[1] < 1.5 * sandbox.MAX_MADE
    finally:
        tracemalloc.stop()


def test_the_time_is_limited(monkeypatch):
    monkeypatch.setattr(sandbox, "MAX_S", 0.05)
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    assert refusal(loops) == "the chat template fails at line 1: it takes longer than 0.05 s"
    assert rendered("{% for i in range(99) %}{{ i % 2 }}{% endfor %}") == ("01" * 50)[:99]


def test_threads_do_not_count_together(monkeypatch):
    monkeypatch.setattr(sandbox, "MAX_MADE", 10_000)
    template = ChatTemplate("{% for i in range(1000) %}{{ i % 2 }}{% endfor %}")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: len(template.render([USER])), range(16))) == {1000}


def test_the_length_is_limited(monkeypatch):
    monkeypatch.setattr(sandbox, "MAX_RENDERED", 1000)
    assert len(rendered("{% for i in range(100) %}0123456789{% endfor %}")) == 1000
    endless = "{% for i in range(100000) %}{% for j in range(100000) %}0123456789{% endfor %}{% endfor %}"
    assert refusal(endless) == "the chat template fails: it writes more than 1000 characters"


# ---- what is said


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("a\n\n{% if %}", "the chat template fails at line 3: Expected an expression, got 'end of statement block'"),
        ("{{ 'a }}", "the chat template fails at line 1: unexpected char \"'\" at 3"),
        ("a\n{% for x in y %}\n",
         "the chat template fails at line 2: Unexpected end of template. Jinja was looking for the following tags: "
         "'endfor' or 'else'. The innermost block that needs to be closed is 'for'"),
        ("a\n{{ 1 | nothing }}", "the chat template fails at line 2: No filter named 'nothing'"),
        ("a\n{{ x.y.z }}", "the chat template fails at line 2: 'x' is undefined"),
        ("a\n\n{{ messages[0].content + 1 }}",
         'the chat template fails at line 3: TypeError: can only concatenate str (not "int") to str'),
        ("a\n{{ 1 / 0 }}", "the chat template fails at line 2: ZeroDivisionError: division by zero"),
        ("{# #}\n{{ raise_exception('Roles must alternate!') }}",
         "the chat template fails at line 2: it refuses the messages: Roles must alternate"),
    ],
)  # fmt: skip
def test_an_error_names_the_line(template, sentence):
    assert refusal(template) == sentence


def test_the_cause_is_kept():
    with pytest.raises(FormatError) as caught:
        rendered("{{ 1 / 0 }}")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.facts == {"line": 1, "reason": "ZeroDivisionError: division by zero"}


@pytest.mark.parametrize("depth", [100, 100_000])
def test_a_template_too_deep_to_compile(depth):
    assert refusal("{{ " + "(" * depth + "1" + ")" * depth + " }}").startswith("the chat template fails")
    assert refusal("{% if 1 %}" * depth + "{% endif %}" * depth).startswith("the chat template fails")


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ("Hello", "ChatTemplate.render.messages is 'Hello'; it must be a list of messages"),
        (USER, f"ChatTemplate.render.messages is {USER}; it must be a list of messages"),
        (["Hello"], "messages.[0] is 'Hello'; it must be a dictionary with 'role' and 'content'"),
        ([USER, {"content": "a"}], "messages[1].role is None; it must be a string"),
        ([{"role": 1, "content": "a"}], "messages[0].role is 1; it must be a string"),
        ([{"role": "user"}], "messages[0].content is None; it must be a string"),
        ([{"role": "user", "content": ["a"]}], "messages[0].content is ['a']; it must be a string, or parts of text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}],
         "messages[0].content is [{'type': 'image_url'}]; it must be a string, or parts of text"),
    ],
)
def test_what_is_no_message(messages, sentence):
    with pytest.raises(ConfigurationError) as caught:
        rendered(BITNET_2B_4T, messages)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("arguments", [(None,), ("", 1), ("", "", b"")])
def test_what_is_no_template(arguments):
    with pytest.raises(ConfigurationError, match=r"^ChatTemplate\.\w+ is .*; it must be a string$"):
        ChatTemplate(*arguments)


# ---- what is made of messages before a template sees them


def test_parts_of_text_are_joined():
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert ChatTemplate(PLAIN).render([{"role": "user", "content": parts}, USER]) == "Hello\nHello"


def test_arguments_of_tool_calls_reach_the_template_as_objects():
    template = "{% for call in messages[0].tool_calls %}{{ call.function.arguments | tojson }}{% endfor %}"
    calls = [{"type": "function", "function": {"name": "f", "arguments": given}}
             for given in ('{"x": 1}', {"y": 2}, "[3]", "no JSON")]  # fmt: skip
    text = rendered(template, [{"role": "assistant", "tool_calls": calls}])
    assert text == '{"x": 1}{"y": 2}"[3]""no JSON"'
    assert calls[0]["function"]["arguments"] == '{"x": 1}'
