"""`Llama`: log-probabilities, biases, penalties and grammars, in the shapes of llama-cpp-python's documentation."""

import json
import re

import numpy as np
import pytest

import bitnet
from bitnet.compat import Llama, LlamaGrammar

START = "Once upon a time"


@pytest.fixture(scope="module")
def llama():
    with Llama(n_threads=1, n_ctx=0, chat_format="plain", logits_all=True) as one:
        yield one


def greedy(llama, **given):
    return llama(START, **{"temperature": 0.0, "max_tokens": 6, **given})["choices"][0]


def test_log_probabilities_of_a_completion(llama):
    choice = greedy(llama, logprobs=3)
    found = choice["logprobs"]
    assert found.keys() == {"tokens", "text_offset", "token_logprobs", "top_logprobs"}
    assert "".join(found["tokens"]) == choice["text"]
    ends = np.cumsum([len(token) for token in found["tokens"]]).tolist()
    assert found["text_offset"] == [len(START) + end for end in [0, *ends[:-1]]]
    for token, logprob, tops in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
        assert len(tops) == 3
        assert tops[token] == logprob == max(tops.values())
    ids = llama.tokenize(START.encode(), special=True)
    said = llama.tokenize(choice["text"].encode(), add_bos=False)
    with bitnet.load(num_threads=1) as model:
        np.testing.assert_allclose(found["token_logprobs"], model.score([said], [ids])[0].logprobs, rtol=1e-5)


def test_log_probabilities_of_the_prompt(llama):
    found = greedy(llama, logprobs=1, echo=True, max_tokens=2)["logprobs"]
    ids = llama.tokenize(START.encode(), special=True)
    assert len(found["tokens"]) == len(ids) + 2
    assert found["token_logprobs"][0] is None
    assert all(logprob < 0 for logprob in found["token_logprobs"][1:])
    assert found["text_offset"][0] == 0
    assert found["top_logprobs"][: len(ids)] == [None] * len(ids)


def test_log_probabilities_of_a_stream(llama):
    whole = greedy(llama, logprobs=2)["logprobs"]
    parts = [part["choices"][0]["logprobs"] for part in llama(START, temperature=0.0, max_tokens=6, logprobs=2,
                                                              stream=True)]  # fmt: skip
    found = [part for part in parts if part is not None]
    assert [part["token_logprobs"][0] for part in found] == whole["token_logprobs"]
    assert [part["tokens"][0] for part in found] == whole["tokens"]


def test_log_probabilities_of_a_chat(llama):
    given = {"temperature": 0.0, "max_tokens": 4, "logprobs": True, "top_logprobs": 2}
    messages = [{"role": "user", "content": START}]
    content = llama.create_chat_completion(messages, **given)["choices"][0]["logprobs"]["content"]
    assert len(content) == 4
    for one in content:
        assert bytes(one["bytes"]).decode() == one["token"]
        assert one["top_logprobs"][0]["token"] == one["token"]
        assert len(one["top_logprobs"]) == 2
    parts = [part["choices"][0]["logprobs"] for part in llama.create_chat_completion(messages, stream=True, **given)]
    assert [part["content"][0] for part in parts if part] == content


def test_biases_and_penalties(llama):
    token = llama.tokenize(b" cat", add_bos=False)[-1]
    assert greedy(llama, logit_bias={str(token): 100}, max_tokens=3)["text"] == " cat cat cat"
    plain = greedy(llama, max_tokens=60)["text"]
    for penalty in ({"frequency_penalty": 1.5}, {"presence_penalty": 1.5}, {"repeat_penalty": 1.5}):
        assert greedy(llama, max_tokens=60, **penalty)["text"] != plain
    assert isinstance(llama(START, typical_p=0.5, max_tokens=3)["choices"][0]["text"], str)


def test_grammars(llama, tmp_path):
    grammar = LlamaGrammar.from_string('root ::= "true" | "false"\n', verbose=False)
    assert llama("It is", max_tokens=8, grammar=grammar)["choices"][0]["text"] in ("true", "false")
    (tmp_path / "a.gbnf").write_text('root ::= digit+ " cats"\ndigit ::= [0-9]\n')
    text = llama("There were ", max_tokens=20, seed=1, grammar=LlamaGrammar.from_file(tmp_path / "a.gbnf"))
    assert re.match(r"\d+( cats)?$|\d+ c", text["choices"][0]["text"])
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    grammar = LlamaGrammar.from_json_schema(json.dumps(schema))
    assert json.loads(llama("A", max_tokens=20, grammar=grammar)["choices"][0]["text"])["n"] in (1, 2)
    assert llama("A", max_tokens=9, grammar=bitnet.Grammar.regex("b{3}"))["choices"][0]["text"] == "bbb"


@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
def test_response_formats(llama, kind):
    schema = {"type": "object", "properties": {"a": {"const": "b"}}, "required": ["a"], "additionalProperties": False}
    form = {"schema": schema} if kind == "json_object" else {"json_schema": {"name": "x", "schema": schema}}
    messages = [{"role": "user", "content": "Say something."}]
    found = llama.create_chat_completion(messages, response_format={"type": kind, **form}, max_tokens=30)
    assert json.loads(found["choices"][0]["message"]["content"]) == {"a": "b"}
    assert found["choices"][0]["finish_reason"] == "stop"


def test_any_object(llama):
    given = {"response_format": {"type": "json_object"}, "max_tokens": 40, "temperature": 0.0}
    found = llama.create_chat_completion([{"role": "user", "content": "Hi"}], **given)["choices"][0]["message"]
    assert found["content"].startswith("{")


def test_what_is_no_grammar(llama):
    with pytest.raises(bitnet.ConfigurationError, match=r"Grammar.gbnf cannot be used: Expected '\)'"):
        LlamaGrammar.from_string("root ::= (")
    with pytest.raises(bitnet.ConfigurationError, match=r"Llama.grammar is 'x'; it must be a LlamaGrammar"):
        llama(START, grammar="x")
