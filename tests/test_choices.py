"""How tokens are chosen: biases, penalties, n-grams, typical-p, several answers, and how likely they were."""

import itertools

import numpy as np
import pytest
from checkpoints import DATA
from hypothesis import given
from hypothesis import strategies as st
from raises_runs import of_nan

import bitnet
from bitnet import GenerationConfig
from bitnet._core.sampling import History, keep_only
from bitnet.sampling import Sampler

VOCAB = 50
TOKENS = st.lists(st.integers(0, VOCAB - 1), max_size=60)


@pytest.fixture(scope="module")
def loaded():
    with bitnet.load(DATA / "bitnet-packed-auto", kv_dtype="float32", head_dtype="float32", num_threads=1) as one:
        yield one


def logits_of(seed):
    return np.random.default_rng(seed).normal(0, 4, VOCAB).astype(np.float32)


# ---- what is done to logits


@given(TOKENS, TOKENS, st.floats(0.1, 3), st.floats(-2, 2), st.floats(-2, 2), st.integers(0, 99), st.integers(0, 60))
def test_penalties_are_those_of_the_formula(prompt, answer, repetition, frequency, presence, seed, cut):
    history, logits = History(VOCAB), logits_of(seed)
    expected = logits.copy()
    repetition, frequency, presence = np.float32([repetition, frequency, presence])
    for id in {*prompt, *answer}:
        expected[id] = expected[id] * repetition if expected[id] < 0 else expected[id] / repetition
        count = answer.count(id)
        expected[id] -= np.float32(count) * frequency + presence if count else 0
    history.add(np.array(prompt, np.int32), False)
    history.add(np.array(answer[:cut], np.int32), True)
    history.add(np.array(answer[cut:], np.int32), True)
    history.penalize(logits, float(repetition), float(frequency), float(presence))
    np.testing.assert_allclose(logits, expected, rtol=1e-6, atol=1e-6)


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 4), st.integers(0, 99))
def test_an_ngram_comes_once(ids, size, seed):
    config = GenerationConfig(no_repeat_ngram_size=size)
    seen = {tuple(ids[at : at + size]) for at in range(len(ids) - size + 1)}
    logits = logits_of(seed)
    last = ids[len(ids) - size + 1 :][: size - 1]
    allowed = [id for id in range(VOCAB) if (*last, id) not in seen or len(ids) < size]
    token = Sampler(config, VOCAB).pick(logits, ids)
    assert token == max(allowed, key=lambda id: (logits[id], -id))


def test_a_bias_is_added():
    logits = logits_of(1)
    bias = {7: 100.0, int(logits.argmax()): -100.0}
    sampler = Sampler(GenerationConfig(logit_bias=bias), VOCAB)
    assert sampler.pick(logits) == 7
    with pytest.raises(bitnet.InferenceError, match="token 50 at position 0 is not in the vocabulary of 50"):
        Sampler(GenerationConfig(logit_bias={50: 1.0}), VOCAB).pick(logits)


@given(st.integers(0, 200), st.floats(0.05, 0.99), st.sampled_from([None, 5, 20]))
def test_typical_p_keeps_what_is_least_surprising(seed, typical_p, top_k):
    logits = logits_of(seed)
    kept = np.sort(logits)[::-1][: top_k or VOCAB]
    of = np.flatnonzero(logits >= kept[-1])
    shares = np.exp(logits[of].astype(np.float64) - logits.max())
    shares /= shares.sum()
    away = np.abs(-np.log(shares) + (shares * np.log(shares)).sum())
    order, total, expected = np.argsort(away), 0.0, set()
    for at in order:
        expected.add(int(of[at]))
        total += shares[at]
        if total >= typical_p:
            break
    config = GenerationConfig(do_sample=True, typical_p=typical_p, top_k=top_k, seed=seed)
    sampler = Sampler(config, VOCAB)
    drawn = {sampler.pick(logits) for _ in range(300)}
    assert drawn <= expected
    likely = {int(of[at]) for at in order if int(of[at]) in expected and shares[at] > 0.1 * total}
    assert likely <= drawn


@given(st.sets(st.integers(0, VOCAB - 1)), st.integers(0, 99))
def test_a_mask_keeps_what_it_names(allowed, seed):
    bits = np.zeros(2, np.uint32)
    for id in allowed:
        bits[id // 32] |= np.uint32(1 << id % 32)
    logits = logits_of(seed)
    masked = logits.copy()
    assert keep_only(masked, bits.view(np.int32)) == len(allowed)
    assert set(np.flatnonzero(masked == logits)) == allowed
    assert (masked[[id for id in range(VOCAB) if id not in allowed]] == -np.finfo(np.float32).max).all()


# ---- in answers


def test_penalties_and_ngrams_hold_in_an_answer(loaded):
    plain = loaded.generate([5] * 4, max_new_tokens=60, eos_token_id=())
    pairs = list(itertools.pairwise(plain.tokens))
    assert len(set(pairs)) < len(pairs)  # it repeats itself
    answer = loaded.generate([5] * 4, max_new_tokens=60, eos_token_id=(), no_repeat_ngram_size=2)
    text = [5, *answer.tokens]
    assert len(set(itertools.pairwise(text))) == len(text) - 1
    once = loaded.generate([5] * 4, max_new_tokens=60, eos_token_id=(), frequency_penalty=2.0, presence_penalty=2.0,
                           logit_bias={9: 2.0})  # fmt: skip
    assert len(set(once.tokens)) > len(set(plain.tokens))


def test_how_likely_a_token_was(loaded):
    prompt = [5, 6, 7]
    pieces = list(loaded.stream(prompt, max_new_tokens=5, eos_token_id=(), logprobs=3, repetition_penalty=1.5))
    again = loaded.generate(prompt, max_new_tokens=5, eos_token_id=(), logprobs=3, repetition_penalty=1.5)
    tokens = [piece.token for piece in pieces]
    logits = loaded.infer([*prompt, *tokens])[len(prompt) - 1 : -1].astype(np.float64)
    expected = logits - logits.max(1, keepdims=True)
    expected -= np.log(np.exp(expected).sum(1, keepdims=True))
    assert again.tokens == tokens
    assert again.logprobs == [piece.logprob for piece in pieces]
    assert again.top_logprobs == [piece.top_logprobs for piece in pieces]
    for row, piece in zip(expected, pieces, strict=True):
        assert piece.logprob == pytest.approx(row[piece.token], abs=1e-5)  # of the model, not of the penalty
        assert [id for id, _ in piece.top_logprobs] == np.argsort(-row, kind="stable")[:3].tolist()
        assert [number for _, number in piece.top_logprobs] == pytest.approx(np.sort(row)[::-1][:3].tolist(), abs=1e-5)
    only = loaded.generate(prompt, max_new_tokens=2, eos_token_id=(), logprobs=0)
    assert only.top_logprobs == [[], []]
    assert loaded.generate(prompt, max_new_tokens=2).logprobs is None


def test_several_answers_to_one_prompt(loaded):
    several = {"do_sample": True, "temperature": 3.0, "top_k": 0, "max_new_tokens": 8, "eos_token_id": ()}
    config = GenerationConfig(**several, seed=2**64 - 1, num_return_sequences=3)
    answers = loaded.engine.generate(loaded.model, [5, 6], config)
    single = [loaded.generate([5, 6], **several, seed=seed).tokens for seed in (2**64 - 1, 0, 1)]
    assert [one.tokens for one in answers] == single
    assert [one.seed for one in answers] == [2**64 - 1, 0, 1]
    assert len({tuple(one) for one in single}) == 3
    lists = loaded.engine.generate(loaded.model, [[5, 6], [7]], config)
    assert [one.tokens for one in lists[:3]] == single
    assert len(lists) == 6
    fresh = loaded.engine.generate(loaded.model, [5, 6], config.replace(seed=None))
    again = [loaded.generate([5, 6], **several, seed=one.seed).tokens for one in fresh]
    assert [one.tokens for one in fresh] == again


def test_all_of_it_is_the_same_in_a_batch(loaded):
    ways = [
        {"typical_p": 0.5, "do_sample": True, "seed": 1}, {"frequency_penalty": 1.0}, {"no_repeat_ngram_size": 3},
        {"logit_bias": {5: 3.0}}, {"presence_penalty": 1.5, "do_sample": True, "seed": 4}, {"logprobs": 2},
    ]  # fmt: skip
    configs = [GenerationConfig(max_new_tokens=25, eos_token_id=(), **way) for way in ways]
    prompts = [[number, number + 1, 5] for number in range(len(ways))]
    for prompt, config, answer in zip(prompts, configs, loaded.engine.generate(loaded.model, prompts, configs),
                                      strict=True):  # fmt: skip
        alone = loaded.generate(prompt, config)
        assert (answer.tokens, answer.logprobs, answer.top_logprobs) == (alone.tokens, alone.logprobs,
                                                                         alone.top_logprobs)  # fmt: skip


@pytest.mark.parametrize("way", [{"do_sample": True, "seed": 1}, {"repetition_penalty": 1.1}, {"logprobs": 1}])
def test_logits_that_are_no_numbers_end_their_request(way):
    config = GenerationConfig(max_new_tokens=3, **way)
    model = of_nan()
    with (bitnet.InferenceEngine(bitnet.EngineConfig(num_threads=1)) as engine,
          pytest.raises(bitnet.InferenceError, match="has a number that is not finite")):  # fmt: skip
        engine.generate(model, [1], config)
