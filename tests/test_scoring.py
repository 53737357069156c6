"""The likelihood of texts, against the logits of each text alone."""

import numpy as np
import pytest
from checkpoints import DATA
from cli_checkpoints import with_tokenizer

import bitnet
from bitnet import ConfigurationError, EngineConfig, InferenceError

RNG = np.random.default_rng(8)
CONTEXT = RNG.integers(3, 512, 9)
TEXTS = [RNG.integers(3, 512, length) for length in (1, 2, 5, 40, 110)]


@pytest.fixture(scope="module")
def loaded():
    with bitnet.load(DATA / "bitnet-packed-auto", EngineConfig(num_threads=1)) as model:
        yield model


@pytest.fixture(scope="module")
def with_words(tmp_path_factory):
    with bitnet.load(with_tokenizer(tmp_path_factory.mktemp("scoring") / "model"), num_threads=1) as model:
        yield model


def alone(model, context, text):
    """By the definition: the tokens, their log-probabilities, and whether each is the most likely."""
    ids = np.concatenate([context, text]).astype(int)
    logits = model.infer(ids[:-1])[len(context) - 1 :].astype(np.float64)
    likelihoods = logits - logits.max(1, keepdims=True)
    likelihoods -= np.log(np.exp(likelihoods).sum(1, keepdims=True))
    return likelihoods[np.arange(len(text)), text], logits.argmax(1) == text


def test_scores_are_those_of_the_definition(loaded):
    contexts = [CONTEXT, CONTEXT, CONTEXT[:3], CONTEXT, CONTEXT]
    found = loaded.score(TEXTS, contexts, batch_size=2)
    for score, context, text in zip(found, contexts, TEXTS, strict=True):
        logprobs, greedy = alone(loaded, context, text)
        np.testing.assert_array_equal(score.tokens, text)
        np.testing.assert_array_equal(score.logprobs, logprobs)
        np.testing.assert_array_equal(score.greedy, greedy)
        assert score.total == logprobs.sum() < 0
        assert score.is_greedy == greedy.all()


def test_texts_together_are_texts_alone(loaded):
    texts = [RNG.integers(3, 512, 20 + n) for n in range(12)]
    together = loaded.score(texts)
    for text, score in zip(texts, together, strict=True):
        [one] = loaded.score([text], batch_size=1)
        np.testing.assert_array_equal(one.logprobs, score.logprobs)
        np.testing.assert_array_equal(score.tokens, text[1:])


def test_what_the_model_says_is_greedy(loaded):
    said = loaded.generate(CONTEXT, max_new_tokens=10).tokens
    assert loaded.score([said], [CONTEXT])[0].is_greedy
    assert not loaded.score([[*said[:-1], (said[-1] + 1) % 512]], [CONTEXT])[0].is_greedy


def test_a_context_is_run_once(loaded):
    with bitnet.InferenceEngine(EngineConfig(num_threads=1)) as engine:
        engine.score(loaded.model, [[5], [6], [7, 8]], [CONTEXT] * 3)
        assert engine.activity(loaded.model).step_tokens == 9 + 1
        engine.score(loaded.model, [[5, 6, 7]], [CONTEXT])  # and is found later
        assert engine.activity(loaded.model).step_tokens == 9 + 1 + 1 + 2


LIMITS = [{}, {"prefix_cache": False}, {"prefill_chunk": 5, "max_batch_tokens": 40}, {"max_kv_tokens": 256},
          {"num_threads": 2}]  # fmt: skip


@pytest.mark.parametrize("limits", LIMITS)
def test_scores_and_vectors_come_beside_answers(loaded, limits):
    model = loaded.model
    config = bitnet.GenerationConfig(max_new_tokens=60, eos_token_id=())
    contexts = [CONTEXT, CONTEXT, CONTEXT[:3], CONTEXT, CONTEXT]
    with bitnet.InferenceEngine(EngineConfig(num_threads=1)) as engine:
        scores = engine.score(model, TEXTS, contexts)
        vectors = engine.embed(model, TEXTS, pooling="mean")
        answer = engine.generate(model, [5, 6, 7], config)
    with bitnet.InferenceEngine(EngineConfig(**{"num_threads": 1, **limits})) as engine:
        stream = engine.stream(model, [5, 6, 7], config)
        next(stream)
        found = engine.score(model, TEXTS, contexts, batch_size=4)
        scored = len(stream.completion.tokens)
        assert scored > 1  # it went on meanwhile
        for one, expected in zip(found, scores, strict=True):
            np.testing.assert_array_equal(one.logprobs, expected.logprobs)
        np.testing.assert_array_equal(engine.embed(model, TEXTS, pooling="mean"), vectors)
        assert scored < len(stream.completion.tokens)
        list(stream)
        assert stream.completion.tokens == answer.tokens
        assert engine.activity(model).kv_pages_used == 0
        if "max_kv_tokens" in limits:
            assert engine.activity(model).pauses > 0


def test_a_cancel_ends_a_scoring(loaded):
    with bitnet.InferenceEngine(EngineConfig(num_threads=1)) as engine:
        with pytest.raises(InferenceError, match="the request was cancelled"):
            engine.score(loaded.model, TEXTS[1:], batch_size=1, progress=lambda *_: engine.cancel())
        with pytest.raises(ZeroDivisionError):
            engine.embed(loaded.model, TEXTS, batch_size=1, progress=lambda *_: 1 / 0)
        assert engine.activity(loaded.model).kv_pages_used == 0
        assert engine.activity(loaded.model).running == 0


def test_texts_and_their_contexts_are_encoded_together(with_words):
    [score] = with_words.score([" w9 w10"], ["w3 w4"])
    assert score.tokens.tolist() == [9, 10]
    [joined] = with_words.score(["5 w10"], ["w3 w4"])  # the seam is inside a word
    assert joined.tokens.tolist() == [45, 10]
    np.testing.assert_array_equal(joined.logprobs, with_words.score([[45, 10]], [[3]])[0].logprobs)
    [without] = with_words.score(["w3 w9 w10"], [""])
    assert without.tokens.tolist() == [9, 10]


def test_progress_is_told_and_empty_texts_have_no_tokens(loaded):
    seen = []
    found = loaded.engine.score(loaded.model, [[], [4]], [[3], [5]], batch_size=1, progress=lambda *n: seen.append(n))
    assert sorted(seen) == [(1, 2), (2, 2)]
    assert found[0].total == 0
    assert found[0].is_greedy
    assert loaded.score([]) == []


def test_the_most_likely_tokens_are_named(loaded):
    ids = [5, 9, 2, 33, 7]
    (found,) = loaded.engine.score(loaded.model, [ids], top_logprobs=4)
    logits = loaded.infer(ids).astype(np.float64)
    likelihoods = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    for row, tops, token, logprob in zip(likelihoods, found.top_logprobs, found.tokens, found.logprobs, strict=False):
        best = np.argsort(-row, kind="stable")[:4]
        assert [token for token, _ in tops] == best.tolist()
        assert [one for _, one in tops] == pytest.approx(row[best])
        assert logprob == pytest.approx(row[token])
    assert loaded.engine.score(loaded.model, [ids])[0].top_logprobs is None
    assert loaded.engine.score(loaded.model, [ids], top_logprobs=0)[0].top_logprobs == [[]] * 4


@pytest.mark.parametrize(
    ("texts", "contexts", "error", "sentence"),
    [
        ("text", None, ConfigurationError, "score.texts is 'text'; it must be a list of texts"),
        ([[1]], [], ConfigurationError, "score.contexts is []; it must be a list of 1, one for each text"),
        ([[1]], None, InferenceError, "the text has 1 tokens; at least two are needed, one to predict the other"),
        ([[1] * 9], [[1] * 121], InferenceError, "position 128 is beyond the 128 tokens of the context"),
    ],
)
def test_what_cannot_be_scored(loaded, texts, contexts, error, sentence):
    with pytest.raises(error) as caught:
        loaded.score(texts, contexts)
    assert str(caught.value) == sentence


def test_the_longest_text_that_fits(loaded):
    assert len(loaded.score([[1] * 9], [[1] * 120])[0].tokens) == 9
