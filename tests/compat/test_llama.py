"""`Llama` against the documentation of llama-cpp-python: its methods, their arguments, and what it answers."""

import json
import threading

import numpy as np
import pytest
from checkpoints import DATA
from cli_checkpoints import with_tokenizer

import bitnet
from bitnet import ConfigurationError, ModelLoadError
from bitnet.compat import Llama, LogitsProcessorList, StoppingCriteriaList

SPM = DATA.parent / "vocab" / "ggml-vocab-llama-spm.gguf"
START = "Once upon a time"
HERMES = "{% for m in messages %}{{ m.content }}{% endfor %}{# <tool_call> #}"


@pytest.fixture(scope="module")
def llama():
    with Llama(n_threads=1, n_ctx=0, verbose=False, n_gpu_layers=-1, chat_format="plain") as one:
        yield one


@pytest.fixture(scope="module")
def model():
    with bitnet.load(num_threads=1) as one:
        yield one


# ---- tokens


def test_tokens_of_a_vocabulary_alone():
    llama = Llama(str(SPM), vocab_only=True, verbose=False)
    assert llama.token_bos() == 1
    assert llama.token_eos() == 2
    assert llama.tokenize(b"Hello World") == [1, 15043, 2787]
    assert llama.detokenize([1, 15043, 2787]) == b"Hello World"
    assert llama.tokenize(b"Hello World", add_bos=False) == [15043, 2787]
    assert llama.detokenize([15043, 2787]) == b" Hello World"
    assert llama.tokenize(b"Hello World</s>") == [1, 15043, 2787, 829, 29879, 29958]
    assert llama.tokenize(b"Hello World</s>", special=True) == [1, 15043, 2787, 2]
    assert llama.tokenize(b"", add_bos=True, special=True) == [1]
    assert llama.detokenize([1]) == b""
    assert llama.n_vocab() == 32000
    with pytest.raises(ConfigurationError, match="there is no model: it was made with vocab_only=True"):
        llama.create_completion(START)


@pytest.mark.parametrize("text", ["Hello, world!", "Grüße 😀 \n\t x", " two  spaces ", "日本語", "</s> <s>"])
def test_bytes_come_back(text):
    llama = Llama(str(SPM), vocab_only=True)
    tokens = llama.tokenize(text.encode())
    assert llama.detokenize(tokens) == text.encode()
    parts = [llama.detokenize([token], prev_tokens=tokens[:i]) for i, token in enumerate(tokens)]
    assert b"".join(parts) == b" " + text.encode()


def test_bytes_of_a_byte_level_vocabulary_come_back(llama):
    for text in ("Grüße 😀\n", " a b", "<|endoftext|>"):
        tokens = llama.tokenize(text.encode(), add_bos=False)
        assert llama.detokenize(tokens) == text.encode()
    assert any(len(llama.detokenize([token])) < len("😀".encode()) for token in llama.tokenize("😀".encode()))
    assert llama.tokenize(b"<|endoftext|>", add_bos=False, special=True) == [llama.token_eos()]
    assert llama.detokenize([llama.token_eos()]) == b""
    assert llama.detokenize([llama.token_eos()], special=True) == b"<|endoftext|>"
    assert llama.detokenize(llama.tokenize(b"\n")[-1:]) == llama.detokenize([llama.token_nl()])


def test_bytes_of_other_vocabularies(tmp_path):
    llama = Llama(with_tokenizer(tmp_path / "model"))
    assert llama.detokenize(llama.tokenize(b"w3 w4")) == b"w3 w4"


# ---- completions


def test_a_completion_has_the_shape_of_openai(llama, model):
    found = llama(START, max_tokens=8, temperature=0.0)
    assert found == llama.create_completion(START, max_tokens=8, temperature=0) | {
        name: found[name] for name in ("id", "created")
    }
    done = model.generate(START, bitnet.GenerationConfig(max_new_tokens=8))
    prompt = len(model.model.encode(START))
    assert found.pop("id").startswith("cmpl-")
    assert isinstance(found.pop("created"), int)
    assert found == {
        "object": "text_completion", "model": llama.model_path,
        "choices": [{"index": 0, "text": done.text, "logprobs": None, "finish_reason": "length"}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": 8, "total_tokens": prompt + 8},
    }  # fmt: skip


def test_the_parts_of_a_stream_are_the_whole(llama):
    whole = llama(START, max_tokens=12, temperature=0.0)
    parts = list(llama(START, max_tokens=12, temperature=0.0, stream=True, model="other"))
    assert {part["object"] for part in parts} == {"text_completion"}
    assert {part["model"] for part in parts} == {"other"}
    assert len({part["id"] for part in parts}) == 1
    choices = [part["choices"][0] for part in parts]
    assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(parts) - 1) + ["length"]
    assert all(choice.keys() == {"index", "text", "logprobs", "finish_reason"} for choice in choices)


def test_a_prompt_may_be_tokens(llama):
    tokens = llama.tokenize(START.encode(), special=True)
    given = {"max_tokens": 6, "temperature": 0.0, "echo": True}
    assert llama(tokens, **given)["choices"] == llama(START, **given)["choices"]
    assert llama(START, **given)["choices"][0]["text"].startswith(START)
    assert next(llama(START, stream=True, **given))["choices"][0]["text"] == START
    assert isinstance(llama("", max_tokens=2)["choices"][0]["text"], str)


def test_stop_strings_end_a_text(llama):
    found = llama(START, max_tokens=60, temperature=0.0, stop=[".", "!"])["choices"][0]
    assert found["finish_reason"] == "stop"
    assert "." not in found["text"]
    assert llama(START, max_tokens=60, temperature=0.0, stop=".")["choices"][0]["text"] == found["text"]


def test_the_seed_is_that_of_the_call_or_of_the_object():
    with Llama(n_threads=1, seed=5) as llama:
        texts = [llama(START, max_tokens=12, **given)["choices"][0]["text"]
                 for given in ({}, {"seed": 5}, {"seed": 6}, {})]  # fmt: skip
        assert texts[0] == texts[1] == texts[3] != texts[2]
        llama.set_seed(6)
        assert llama(START, max_tokens=12)["choices"][0]["text"] == texts[2]
        assert llama(START, max_tokens=12, top_k=0, top_p=1.0, min_p=0.0, seed=1)["choices"][0]["text"]


def test_the_context_ends_a_text():
    with Llama(n_threads=1, n_ctx=16) as llama:
        assert llama.n_ctx() == 16
        for most in (None, 0, -1, 100):
            found = llama(START, max_tokens=most, temperature=0.0)
            assert found["usage"]["total_tokens"] == 16
            assert found["choices"][0]["finish_reason"] == "length"
        with pytest.raises(ValueError, match="of 17 tokens'; it must be shorter than n_ctx, 16"):
            llama([5] * 17)
        llama.reset()
    with Llama(n_ctx=100_000) as llama:
        assert llama.n_ctx() == 512
        assert (llama.n_embd(), llama.n_vocab()) == (256, 4096)


def test_processors_and_criteria(llama):
    cat = llama.tokenize(b" cat", add_bos=False)[-1]
    seen = []

    def only_cats(input_ids, scores):
        seen.append(len(input_ids))
        scores = np.full_like(scores, -1e9)
        scores[cat] = 0
        return scores

    processors = LogitsProcessorList([only_cats, lambda ids, scores: scores])
    found = llama(START, max_tokens=3, temperature=0.0, logits_processor=processors)
    assert found["choices"][0]["text"] == " cat cat cat"
    start = len(llama.tokenize(START.encode()))
    assert seen == [start, start + 1, start + 2]

    criteria = StoppingCriteriaList([lambda ids, logits: len(ids) >= start + 2])
    found = llama(START, max_tokens=9, temperature=0.0, stopping_criteria=criteria)
    assert found["usage"]["completion_tokens"] == 2
    assert found["choices"][0]["finish_reason"] == "stop"
    parts = list(llama(START, max_tokens=9, temperature=0.0, stopping_criteria=criteria, stream=True))
    assert parts[-1]["choices"][0]["finish_reason"] == "stop"


def test_generate_gives_tokens(llama):
    tokens = llama.tokenize(START.encode(), special=True)
    found = []
    for token in llama.generate(tokens, temp=0.0, reset=True):
        found.append(token)
        if len(found) == 6:
            break
    text = llama(START, max_tokens=6, temperature=0.0)["choices"][0]["text"]
    assert llama.detokenize(found).decode() == text


def test_threads_may_share_one(llama):
    alone = [llama(START, max_tokens=10, seed=seed)["choices"][0]["text"] for seed in range(4)]
    together = [None] * 4

    def work(seed):
        together[seed] = llama(START, max_tokens=10, seed=seed)["choices"][0]["text"]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


# ---- conversations


def test_a_chat_has_the_shape_of_openai(llama, model):
    messages = [{"role": "user", "content": START}]
    found = llama.create_chat_completion(messages, max_tokens=8, temperature=0.0)
    done = model.chat(messages, bitnet.GenerationConfig(max_new_tokens=8), template="plain")
    assert found["id"].startswith("chatcmpl-")
    assert found["object"] == "chat.completion"
    assert found["choices"] == [{
        "index": 0, "message": {"role": "assistant", "content": done.text}, "logprobs": None, "finish_reason": "length",
    }]  # fmt: skip
    assert found["usage"]["completion_tokens"] == 8
    parts = list(llama.create_chat_completion(messages, max_tokens=8, temperature=0.0, stream=True))
    deltas = [part["choices"][0]["delta"] for part in parts]
    assert deltas[0] == {"role": "assistant"}
    assert deltas[-1] == {}
    assert parts[-1]["choices"][0]["finish_reason"] == "length"
    assert "".join(delta["content"] for delta in deltas[1:-1]) == done.text
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}
    assert llama.create_chat_completion(messages, max_tokens=1, response_format={"type": "text"})["choices"]


def saying(text):
    """A processor by which a model says this text, and ends."""

    def build(llama):
        tokens = [*llama.tokenize(text.encode(), add_bos=False), llama.token_eos()]
        start = []

        def process(ids, logits):
            start.append(len(ids))
            logits = np.full_like(logits, -1e9)
            logits[tokens[len(ids) - start[0]]] = 0
            return logits

        return process

    return build


CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]


@pytest.fixture(scope="module")
def with_tools():
    with Llama(n_threads=1, n_ctx=0, chat_format=HERMES) as one:
        yield one


def test_tool_calls_are_taken_out(with_tools):
    messages = [{"role": "user", "content": "Rain?"}]
    given = {"temperature": 0.0, "tools": TOOLS}
    found = with_tools.create_chat_completion(messages, logits_processor=saying("Well. " + CALL)(with_tools), **given)
    choice = found["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Well."
    [call] = choice["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Köln"}

    parts = list(with_tools.create_chat_completion(messages, logits_processor=saying(CALL)(with_tools), stream=True,
                                                   **given))  # fmt: skip
    deltas = [part["choices"][0]["delta"] for part in parts]
    assert deltas[1]["tool_calls"][0]["index"] == 0
    assert deltas[1]["tool_calls"][0]["function"] == call["function"]
    assert parts[-1]["choices"][0]["finish_reason"] == "tool_calls"

    said = with_tools.create_chat_completion(messages, logits_processor=saying("No.")(with_tools), **given)
    assert said["choices"][0]["message"] == {"role": "assistant", "content": "No."}
    assert said["choices"][0]["finish_reason"] == "stop"
    parts = list(with_tools.create_chat_completion(messages, logits_processor=saying("No.")(with_tools), stream=True,
                                                   **given))  # fmt: skip
    assert [part["choices"][0]["delta"] for part in parts] == [{"role": "assistant"}, {"content": "No."}, {}]
    without = with_tools.create_chat_completion(messages, logits_processor=saying(CALL)(with_tools), temperature=0.0,
                                                tools=TOOLS, tool_choice="none")  # fmt: skip
    assert without["choices"][0]["message"]["content"] == CALL
    functions = [TOOLS[0]["function"]]
    old = with_tools.create_chat_completion(messages, functions=functions, function_call="auto", temperature=0.0,
                                            logits_processor=saying(CALL)(with_tools))  # fmt: skip
    assert old["choices"][0]["message"]["content"] is None


def test_no_template_is_guessed():
    with Llama() as llama, pytest.raises(ModelLoadError, match="has no chat template"):
        llama.create_chat_completion([{"role": "user", "content": "Hello"}])


# ---- vectors


def test_vectors_have_the_shape_of_openai(llama, model):
    found = llama.create_embedding(["Hello there", "A cat"], model="m")
    expected = model.engine.embed(model.model, ["Hello there", "A cat"], normalize=False)
    assert [one["index"] for one in found["data"]] == [0, 1]
    np.testing.assert_array_equal([one["embedding"] for one in found["data"]], expected.tolist())
    count = sum(len(model.model.encode(text)) for text in ("Hello there", "A cat"))
    assert found["usage"] == {"prompt_tokens": count, "total_tokens": count}
    assert (found["object"], found["model"]) == ("list", "m")
    assert llama.create_embedding("A cat")["data"][0]["embedding"] == expected[1].tolist()
    np.testing.assert_allclose(np.linalg.norm(llama.embed("A cat", normalize=True)), 1, rtol=1e-6)
    with Llama(n_ctx=4, pooling_type=1) as short:
        assert short.embed("A cat sat on the mat.", return_count=True)[1] == 4
        with pytest.raises(ConfigurationError, match="at most 4 of them"):
            short.embed("A cat sat on the mat.", truncate=False)
        assert short.embed("A cat") != llama.embed("A cat")


# ---- what is not there


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"lora_path": "a"}, "Llama.lora_path is 'a'; it must be None, which changes nothing"),
        ({"rope_freq_base": 1e6}, "Llama.rope_freq_base is 1000000.0; it must be 0.0"),
        ({"n_thread": 1}, "Llama has no field 'n_thread'"),
        ({"type_k": 8}, None),
        ({"type_k": 8, "type_v": 1}, "type_k, type_v is .8, 1.; it must be both 0, 1 or 8"),
        ({"type_k": 2}, "it must be both 0, 1 or 8"),
        ({"pooling_type": 4}, "pooling_type is 4"),
    ],
)
def test_settings_that_would_change_the_result_are_refused(settings, sentence):
    if sentence is None:
        assert Llama(**settings).model.engine_config.kv_dtype == "int8"
        return
    with pytest.raises(ConfigurationError, match=sentence):
        Llama(**settings)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda llama: llama(START, suffix="end"), "Llama.suffix is 'end'; it must be None; nothing else is there"),
        (lambda llama: llama(START, mirostat_mode=2), "Llama.mirostat_mode is 2; it must be 0"),
        (lambda llama: llama.create_chat_completion([], tfs_z=0.5), "Llama.tfs_z is 0.5; it must be 1.0"),
        (lambda llama: llama.create_chat_completion([], tool_choice="required"), "tool_choice is 'required'"),
        (lambda llama: llama.create_chat_completion([], response_format={"type": "xml"}), "response_format is 'xml'"),
        (lambda llama: llama.tokenize("text"), "Llama.tokenize.text is 'text'; it must be bytes, in UTF-8"),
    ],
)  # fmt: skip
def test_arguments_that_mean_nothing_here_are_refused(llama, call, sentence):
    with pytest.raises(ConfigurationError) as caught:
        call(llama)
    assert sentence in str(caught.value)
