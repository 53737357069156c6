"""What an answer has to be, how its tokens are chosen, and what is told of them."""

import json

import jsonschema
import pytest
from servers import running

from bitnet.chat import parse_tool_calls
from bitnet.server.chat import Held

PROMPT = "Once upon a time"
ASK = {"model": "bitnet-stories", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 120}
SCHEMA = {
    "type": "object", "required": ["name", "age", "likes"], "additionalProperties": False,
    "properties": {"name": {"enum": ["Lily", "Tom"]}, "age": {"type": "integer", "minimum": 1, "maximum": 99},
                   "likes": {"type": "array", "items": {"enum": ["dogs", "cats"]}, "maxItems": 2}},
}  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": {
        "type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"],
        "additionalProperties": False}}},
    {"type": "function", "function": {"name": "now"}},
]  # fmt: skip
# Of any arguments this model does not always come to the end.
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
CLOSED = [TOOLS[0], {"type": "function", "function": {"name": "now", "parameters": NOTHING}}]
HERMES = "{% if tools %}<tool_call>{% endif %}{% for m in messages %}{{ m['content'] }}{% endfor %}"
LLAMA3 = "{% for m in messages %}{{ m['content'] }}{% endfor %}{# '\"parameters\": ' #}"


def streamed(client, **ask):
    """Contents, tool calls and reason of a stream."""
    content, calls, reason = "", {}, None
    for chunk in client.chat.completions.create(**ask, stream=True):
        (choice,) = chunk.choices
        content += choice.delta.content or ""
        for call in choice.delta.tool_calls or []:
            calls[call.index] = (call.function.name, call.function.arguments)
        reason = choice.finish_reason or reason
    return content, [calls[index] for index in sorted(calls)], reason


# ---- JSON


@pytest.mark.parametrize("seed", [None, 3, 4])
def test_an_answer_is_json_of_a_schema(client, seed):
    settings = {"temperature": 0} if seed is None else {"temperature": 1.5, "seed": seed}
    form = {"type": "json_schema", "json_schema": {"name": "child", "schema": SCHEMA, "strict": True}}
    found = client.chat.completions.create(**ASK, **settings, response_format=form).choices[0]
    assert found.finish_reason == "stop"
    jsonschema.validate(json.loads(found.message.content), SCHEMA)
    assert streamed(client, **ASK, **settings, response_format=form) == (found.message.content, [], "stop")


def test_the_clients_own_parsing(client):
    from pydantic import BaseModel, Field

    class Child(BaseModel):
        name: str = Field(max_length=5)
        is_old: bool

    found = client.chat.completions.parse(**ASK, response_format=Child).choices[0].message.parsed
    assert isinstance(found, Child)


def test_an_answer_is_an_object(client):
    found = client.chat.completions.create(**{**ASK, "max_tokens": 400}, response_format={"type": "json_object"})
    if found.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(found.choices[0].message.content), dict)
    assert found.choices[0].message.content.startswith("{")


@pytest.mark.parametrize("schema", [{"type": "none"}, {"properties": 3}, {"pattern": "(", "type": "string"}])
def test_a_schema_that_cannot_be_used_is_refused(client, schema):
    import openai

    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ASK, response_format=form)
    assert caught.value.param == "response_format"


# ---- tools


@pytest.mark.parametrize("template", [None, HERMES, LLAMA3])
def test_a_tool_is_called(model, template):
    import openai

    with running(model, chat_template=template) as (address, _):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        for choice, names in (("required", {"weather", "now"}),
                              ({"type": "function", "function": {"name": "weather"}}, {"weather"})):  # fmt: skip
            ask = {**ASK, "max_tokens": 300, "tools": CLOSED, "tool_choice": choice, "temperature": 2.0, "seed": 1}
            found = client.chat.completions.create(**ask).choices[0]
            assert found.finish_reason == "tool_calls"
            assert found.message.content is None
            (call,) = found.message.tool_calls
            assert call.type == "function"
            assert call.id
            assert call.function.name in names
            if call.function.name == "weather":
                jsonschema.validate(json.loads(call.function.arguments), TOOLS[0]["function"]["parameters"])
            assert streamed(client, **ask) == ("", [(call.function.name, call.function.arguments)], "tool_calls")
        # Free to choose, this model chooses none; and the answer to a call is read.
        ask = {**ASK, "max_tokens": 9, "tools": TOOLS, "temperature": 0}
        free = client.chat.completions.create(**ask).choices[0]
        assert free.message.tool_calls is None
        assert streamed(client, **ask) == (free.message.content, [], "length")
        history = [*ASK["messages"], found.message.model_dump(exclude_none=True),
                   {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]  # fmt: skip
        client.chat.completions.create(**{**ask, "messages": history})


def test_tools_that_are_not_there_are_refused(client):
    import openai

    for ask, param in (
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "none"}}}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "none"}}}],
          "tool_choice": "required"}, "tools"),
    ):  # fmt: skip
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**ASK, **ask)
        assert caught.value.param == param


CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'


@pytest.mark.parametrize(
    ("form", "text"),
    [("hermes", f"Let me see. {CALL}"), ("hermes", CALL + CALL), ("hermes", "no call <tool_ca"), ("hermes", "a < b <t"),
     ("hermes", "words\n\n"), ("hermes", "<tool_call>{ no"), ("llama3", '{"name": "f", "parameters": {}}'),
     ("llama3", "  words {"), ("llama3", '<|python_tag|>{"name": "f", "parameters": {}}'), ("llama3", "{ no"),
     ("llama3", "<"), ("hermes", ""), ("llama3", "")],
)  # fmt: skip
def test_what_may_be_a_call_is_held_back(form, text):
    content, _ = parse_tool_calls(text, form)
    for size in (1, 2, 3, 7, 100):
        held = Held(form)
        sent = "".join(held.put(text[i : i + size]) for i in range(0, len(text), size))
        assert sent == held.sent
        assert content.startswith(sent)
    assert "<tool_call>{" not in sent


# ---- probabilities


def test_probabilities_of_a_chat(client, alone, model):
    ask = {**ASK, "max_tokens": 12, "temperature": 0, "logprobs": True, "top_logprobs": 3}
    found = client.chat.completions.create(**ask).choices[0]
    settings = {"max_new_tokens": 12, "do_sample": False, "logprobs": 3}
    expected = alone.generate(model, PROMPT, model.generation_config.replace(**settings))
    content = found.logprobs.content
    assert [one.logprob for one in content] == pytest.approx(expected.logprobs)
    assert b"".join(bytes(one.bytes) for one in content).decode() == found.message.content == expected.text
    for one, tops in zip(content, expected.top_logprobs, strict=True):
        assert [top.logprob for top in one.top_logprobs] == pytest.approx([logprob for _, logprob in tops])
    chunks = [choice for chunk in client.chat.completions.create(**ask, stream=True) for choice in chunk.choices]
    streamed_content = [one for choice in chunks if choice.logprobs for one in choice.logprobs.content]
    assert streamed_content == content
    without = client.chat.completions.create(**{**ask, "logprobs": None, "top_logprobs": None})
    assert without.choices[0].logprobs is None


@pytest.mark.parametrize("most", [0, 5])
@pytest.mark.parametrize("as_tokens", [False, True])
def test_an_echo_with_probabilities(client, alone, model, most, as_tokens):
    ids = model.encode(PROMPT)
    ask = {"model": "bitnet-stories", "prompt": ids.tolist() if as_tokens else PROMPT, "max_tokens": most, "echo": True,
           "logprobs": 2, "temperature": 0}  # fmt: skip
    found = client.completions.create(**ask)
    (choice,) = found.choices
    settings = model.generation_config.replace(max_new_tokens=5, do_sample=False)
    assert choice.text == PROMPT + (alone.generate(model, PROMPT, settings).text if most else "")
    assert choice.finish_reason == "length"
    assert found.usage.completion_tokens == most
    told = choice.logprobs
    (score,) = alone.score(model, [ids], top_logprobs=2)
    assert told.token_logprobs[0] is told.top_logprobs[0] is None
    assert told.token_logprobs[1 : len(ids)] == pytest.approx(score.logprobs)
    assert [sorted(top.values()) for top in told.top_logprobs[1 : len(ids)]] == [
        pytest.approx(sorted(logprob for _, logprob in tops)) for tops in score.top_logprobs
    ]
    assert len(told.tokens) == len(told.text_offset) == len(told.token_logprobs) == len(ids) + most
    if most:
        parts = list(client.completions.create(**ask, stream=True))
        assert "".join(part.choices[0].text for part in parts) == choice.text
        logprobs = [part.choices[0].logprobs for part in parts if part.choices[0].logprobs]
        assert [one for part in logprobs for one in part.token_logprobs] == told.token_logprobs


def test_what_cannot_be_echoed_is_refused(client):
    import openai

    for ask in ({"max_tokens": 0}, {"max_tokens": 0, "echo": True, "stream": True}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="bitnet-stories", prompt="a", **ask)
        assert caught.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ASK, top_logprobs=3)
    assert caught.value.param == "top_logprobs"


# ---- biases and penalties


def test_biases_and_penalties_are_those_of_the_engine(client, alone, model):
    import openai

    (token,) = model.tokenizer.encode("dog", add_special_tokens=False)[-1:]
    forced = client.chat.completions.create(**{**ASK, "max_tokens": 3}, temperature=0, logit_bias={token: 100})
    assert forced.choices[0].message.content == model.tokenizer.decode([token] * 3)
    for name in ("presence_penalty", "frequency_penalty", "repetition_penalty"):
        expected = alone.generate(model, PROMPT, model.generation_config.replace(max_new_tokens=60, **{name: 1.5}))
        found = client.chat.completions.create(**{**ASK, "max_tokens": 60}, extra_body={name: 1.5})
        assert found.choices[0].message.content == expected.text
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ASK, logit_bias={4096: 1})
    assert caught.value.param == "logit_bias"
