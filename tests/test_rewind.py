"""Answers that are taken back to their first tokens, and go on from there."""

import pytest
from checkpoints import DATA

import bitnet
from bitnet import GenerationConfig

EXACT = {"kv_dtype": "float32", "head_dtype": "float32", "num_threads": 1}
FEW = GenerationConfig(max_new_tokens=12, eos_token_id=())
WAYS = [
    GenerationConfig(max_new_tokens=30, logprobs=1, eos_token_id=(), **way) for way in (
        {}, {"do_sample": True, "seed": 1, "temperature": 2.0, "top_p": 0.9}, {"repetition_penalty": 1.3},
        {"frequency_penalty": 0.5, "no_repeat_ngram_size": 2}, {"do_sample": True, "seed": 2, "presence_penalty": 1.0},
        {"prompt_lookup_num_tokens": 3},
    )
]  # fmt: skip


@pytest.fixture(scope="module")
def model():
    with bitnet.InferenceEngine(bitnet.EngineConfig(**EXACT)) as one:
        yield one.load_model(DATA / "bitnet-packed-auto")


@pytest.fixture
def engine():
    with bitnet.InferenceEngine(bitnet.EngineConfig(**EXACT)) as one:
        yield one


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("config", WAYS)
def test_a_stream_that_is_taken_back_goes_on_as_it_did(engine, model, config, ended):
    prompt = list(range(5, 75))
    with bitnet.InferenceEngine(bitnet.EngineConfig(**EXACT)) as one:
        expected = one.generate(model, prompt, config)
    stream = engine.stream(model, prompt, config)
    pieces = list(stream) if ended else [next(stream) for _ in range(20)]
    for kept in (17, 0, 9):
        stream = stream.rewind(kept)
        assert [one.token for one in stream] == expected.tokens[kept:]
        done = stream.completion
        assert (done.tokens, done.logprobs, done.top_logprobs) == (expected.tokens, expected.logprobs,
                                                                   expected.top_logprobs)  # fmt: skip
        assert (done.prompt_tokens, done.finish_reason) == (70, expected.finish_reason)
        assert done.cached_tokens == 70 + kept - 1  # the last one has to be computed
    assert len(pieces) >= 20
    assert engine.activity(model).kv_pages_used == 0


def test_what_was_taken_back_can_be_forbidden(engine, model):
    stream = engine.stream(model, [5, 6, 7], FEW)
    before = list(stream)
    again = stream.rewind(4, FEW.replace(logit_bias={before[4].token: -100.0}))
    assert next(again).token != before[4].token
    list(again)
    assert again.completion.tokens[:4] == [one.token for one in before[:4]]
    assert list(stream) == []


def test_a_fresh_seed_goes_on_otherwise(engine, model):
    hot = GenerationConfig(max_new_tokens=20, eos_token_id=(), do_sample=True, temperature=5.0, top_k=None)
    stream = engine.stream(model, [5, 6, 7], hot)
    before = [one.token for one in stream]
    again = stream.rewind(3)
    assert [one.token for one in again] != before[3:]
    assert again.completion.tokens[:3] == before[:3]


@pytest.mark.parametrize("tokens", [-1, 13, True, 1.0, 12])
def test_where_a_stream_cannot_be_taken_back_to(engine, model, tokens):
    stream = engine.stream(model, [5, 6, 7], FEW)
    list(stream)
    with pytest.raises(bitnet.ConfigurationError) as caught:
        stream.rewind(tokens)
    assert caught.value.message == (
        f"Stream.rewind.tokens is {tokens!r}; it must be a whole number from 0 to 11: that many have come, and leave "
        "room for one more"
    )
    with pytest.raises(bitnet.ConfigurationError, match=r"rewind: a stream is one answer; num_return_sequences is 2$"):
        stream.rewind(2, FEW.replace(num_return_sequences=2, do_sample=True))
    assert len(list(stream.rewind(2))) == 10  # a refusal closes nothing
