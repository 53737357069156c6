"""Chat templates against Transformers: the same text of the same messages and tools (extra `peers`)."""

import pytest

from bitnet.chat import BITNET_2B_4T, ChatTemplate

pytestmark = pytest.mark.peers

TOOL = {"type": "function", "function": {"name": "weather", "description": "Tell it: <é>.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}  # fmt: skip
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
TALK = [
    {"role": "system", "content": "Be brief. "}, {"role": "user", "content": "How is it\nin Köln?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "{\"sky\": \"grey\"}"},
    {"role": "assistant", "content": "<think>\ngrey\n</think>\n\nGrey."}, {"role": "user", "content": "And now?"},
]  # fmt: skip

# ruff: noqa: E501 - lines of templates
# In the manner of Qwen's and of Llama's: what they use of Jinja.
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1, found=false) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if not ns.found and message.role == "user" and message.content is string and not(message.content.startswith('<x>')) %}
        {%- set ns.found = true %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {%- set content = message.content %}
        {%- if '</think>' in content and loop.index0 < ns.last %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function if call.function else call %}
            {{- '\\n<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {%- if call.arguments is string %}{{ call.arguments }}{% else %}{{ call.arguments | tojson }}{% endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
LLAMA = """{{- bos_token }}
{%- if not date is defined %}{%- set date = "26 Jul 2024" %}{%- endif %}
{%- set system = messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | join('\\n') | trim %}
{{- "<|start|>system\\n" + date + "\\n" + system + "<|eot_id|>" }}
{%- for message in messages | rejectattr('role', 'equalto', 'system') | list %}
    {%- if 'tool_calls' in message %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + "}<|eot_id|>" }}
    {%- elif message.role in ("tool", "ipython") %}
        {{- message.content | tojson(indent=4) }}
    {%- else %}
        {{- '<|' + message['role'].upper() + '|>' + (message['content'] | trim).replace('\\n', ' ') + loop.last | string }}
    {%- endif %}
{%- endfor %}
{%- for tool in tools or [] %}{% for key, value in tool.function | items %}{{ key ~ '=' ~ value }};{% endfor %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""


@pytest.mark.parametrize("template", [QWEN, LLAMA, BITNET_2B_4T], ids=["qwen", "llama", "bitnet"])
@pytest.mark.parametrize("tools", [None, [TOOL]], ids=["without tools", "with tools"])
@pytest.mark.parametrize("start", [True, False])
def test_the_text_is_that_of_transformers(template, tools, start):
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    expected, _ = utils.render_jinja_template([TALK], tools=tools, chat_template=template,
                                              add_generation_prompt=start, bos_token="<s>")  # fmt: skip
    ours = ChatTemplate(template, "<s>")
    assert ours.render(TALK, start, **({"tools": tools} if tools else {})) == expected[0]
