"""The choice of tokens, held to a plain reference with a full sort; and stop strings, to a search in the whole text."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet import GenerationConfig, HybridMemoryPool, MemoryError
from bitnet._core.drawing import Draws
from bitnet.errors import ConfigurationError, InferenceError, ShapeError, TensorError
from bitnet.sampling import Sampler, StopStrings, logprobs

SIZES = (1, 2, 3, 7, 50, 63, 64, 65, 300, 5000)


def power_by_reference(depths):
    """e^-depth in float32, by the operations of _core/drawing.pyx one after the other."""
    x, one = np.minimum(depths, np.float32(87)), np.float32
    whole = x * one(-1.44269504) + one(12582912)
    bits = whole.view(np.int32)
    whole = whole - one(12582912)
    r = (-x - whole * one(0.693359375)) + whole * one(2.12194440e-4)
    p = r * one(1 / 720) + one(1 / 120)
    for term in (1 / 24, 1 / 6, 0.5, 1, 1):
        p = p * r + one(term)
    found = (p.view(np.uint32) + (bits.view(np.uint32) << 23)).view(np.float32)
    return np.where(depths < 87, found, one(0))


def test_the_power_is_one():
    depths = np.concatenate([np.linspace(0, 100, 100_001), [0, 1e-45, 86.99999, 87, 1e30, np.inf]]).astype(np.float32)
    exact = np.exp(-depths.astype(np.float64)) * (depths < 87)
    np.testing.assert_allclose(power_by_reference(depths), exact, rtol=3e-7)
    assert power_by_reference(np.zeros(1, np.float32)) == 1


def kept_by_reference(logits, history, config):
    """The ids that may be drawn, ascending, and their weights: step by step as Transformers, each a full sort."""
    scores = logits.copy()
    for id in set(history):
        scale = np.float32(config.repetition_penalty)
        scores[id] = scores[id] * scale if scores[id] < 0 else scores[id] / scale
    depths = (scores.max() - scores) / np.float32(config.temperature)
    weights = power_by_reference(depths)
    kept = list(range(len(scores)))
    if config.top_k is not None:
        kth = sorted(scores)[-min(config.top_k, len(scores))]
        kept = [id for id in kept if scores[id] >= kth]
    if config.top_p < 1:
        total, before, nucleus = weights[kept].sum(dtype=np.float64), 0.0, []
        for id in sorted(kept, key=lambda id: (depths[id], id)):
            if before < config.top_p * total:
                nucleus.append(id)
            before += float(weights[id])
        kept = sorted(nucleus)
    if config.min_p is not None:
        kept = [id for id in kept if weights[id] >= np.float32(config.min_p)]
    if config.typical_p < 1:
        shares = weights[kept].astype(np.float64) / weights[kept].sum(dtype=np.float64)
        logarithm = np.log(weights[kept].sum(dtype=np.float64))
        surprises = depths[kept] + logarithm
        away = np.abs(surprises - (shares[shares > 0] * surprises[shares > 0]).sum()).astype(np.float32)
        away[shares == 0] = np.inf
        total, last = 0.0, 0.0
        for at in np.argsort(away, kind="stable"):
            if total < config.typical_p:
                last = away[at]
            total += shares[at]
        kept = [id for id, one in zip(kept, away, strict=True) if one <= last]
    return kept, weights[kept].astype(np.float64)


def pick_by_reference(logits, history, config, uniform):
    kept, weights = kept_by_reference(logits, history, config)
    target, total = uniform * math.fsum(weights), 0.0
    for id, weight in zip(kept, weights, strict=True):
        total += weight
        if total > target:
            return id
    return kept[-1]


def some_logits(rng, size):
    """Spread, flat, peaked, or with many that are equal."""
    kind = rng.integers(5)
    logits = rng.normal(0, (0.01, 1, 4, 30, 2)[kind], size)
    return (np.round(logits) if kind == 4 else logits).astype(np.float32)


def some_config(rng, **fields):
    choose = lambda *values: values[rng.integers(len(values))]  # noqa: E731
    return GenerationConfig(**{
        "do_sample": True, "seed": int(rng.integers(2**63)), "temperature": choose(1.0, 0.3, 0.7, 1.0, 1.8, 50.0),
        "top_k": choose(None, 1, 2, 5, 50, 1000, int(rng.integers(1, 200))),
        "min_p": choose(None, None, 0.05, 0.5, 1.0),
        "typical_p": choose(1.0, 1.0, 0.9, 0.2),
        "top_p": choose(1.0, 0.9, 0.5, 1e-9, 0.999999, float(rng.uniform(0.01, 0.99))),
        "repetition_penalty": choose(1.0, 1.0, 1.3, 0.8), **fields,
    })  # fmt: skip


def uniforms(config, count):
    """The random numbers that a sampler will draw."""
    return np.random.Generator(np.random.PCG64(config.seed)).random(count)


def config(**fields):
    return GenerationConfig(**{"do_sample": True, "seed": 1, "top_k": None, **fields})


# ---- the choice


@pytest.mark.parametrize("size", SIZES)
def test_the_same_choice_as_the_reference(rng, size):
    for _ in range(20 if size > 1000 else 400):
        settings_ = some_config(rng)
        sampler = Sampler(settings_, size)
        history = rng.integers(0, size, rng.integers(0, 20)).tolist()
        for uniform in uniforms(settings_, 3):
            logits = some_logits(rng, size)
            before = logits.copy()
            assert sampler.pick(logits, history) == pick_by_reference(before, history, settings_, uniform), settings_
            assert logits.tobytes() == before.tobytes()


@pytest.mark.parametrize("size", [128256, 32000])
def test_the_same_choice_of_a_real_vocabulary(rng, size):
    for fields in (
        {}, {"top_p": 0.9}, {"top_k": 50, "top_p": 0.9}, {"top_k": 3000}, {"top_k": size}, {"min_p": 0.1},
        {"top_p": 0.999, "temperature": 3.0}, {"repetition_penalty": 1.2, "top_k": 1},
        {"typical_p": 0.8}, {"typical_p": 0.3, "top_p": 0.9},
    ):  # fmt: skip
        settings_ = config(**fields)
        sampler, logits = Sampler(settings_, size), rng.normal(0, 3, size).astype(np.float32)
        history = rng.integers(0, size, 1000)
        for uniform in uniforms(settings_, 2):
            assert sampler.pick(logits, history) == pick_by_reference(logits, history.tolist(), settings_, uniform)


@pytest.mark.parametrize("size", SIZES)
def test_greedy_takes_the_first_of_the_largest(rng, size):
    for _ in range(50):
        logits = np.round(some_logits(rng, size))
        settings_ = GenerationConfig(repetition_penalty=float(rng.choice([1.0, 1.5])))
        history = rng.integers(0, size, 5).tolist()
        penalised = logits.copy()
        for id in set(history):
            scale = np.float32(settings_.repetition_penalty)
            penalised[id] = penalised[id] * scale if penalised[id] < 0 else penalised[id] / scale
        found = Sampler(settings_, size).pick(logits, history)
        assert type(found) is int
        assert found == penalised.tolist().index(max(penalised.tolist()))


def test_top_k_lets_in_what_equals_the_last():
    logits = np.array([1, 3, 2, 2, 2, 0], np.float32)
    sampler = Sampler(config(top_k=2), 6)
    assert {sampler.pick(logits) for _ in range(200)} == {1, 2, 3, 4}


def test_top_p_prefers_the_lower_id_of_equals():
    sampler = Sampler(config(top_p=0.5), 4)
    assert {sampler.pick(np.zeros(4, np.float32)) for _ in range(200)} == {0, 1}
    sampler = Sampler(config(top_p=1e-300), 5000)
    assert {sampler.pick(np.zeros(5000, np.float32)) for _ in range(20)} == {0}


def test_the_penalty_counts_a_token_once():
    logits = np.array([2.0, 1.5, -1.0], np.float32)
    sampler = Sampler(GenerationConfig(repetition_penalty=1.2), 3)
    assert sampler.pick(logits, [0]) == sampler.pick(logits, [0, 0, 0, 0]) == 0
    assert Sampler(GenerationConfig(repetition_penalty=1.4), 3).pick(logits, np.array([0, 0], np.int32)) == 1


@pytest.mark.parametrize("extreme", [1e-300, 1e-38, 1e38, 1e300])
def test_extreme_settings(rng, extreme):
    logits = np.array([-1e38, 0.0, 1e-45, 1e38, 1.0], np.float32)
    hot = Sampler(config(temperature=extreme), 5)
    assert {hot.pick(logits) for _ in range(100)} == ({3} if extreme < 1 else {0, 1, 2, 3, 4})
    for penalised in (Sampler(config(repetition_penalty=extreme), 5), Sampler(config(min_p=1e-300), 5)):
        assert 0 <= penalised.pick(logits, [0, 1, 2, 3]) < 5


# ---- the distribution


def test_tokens_come_as_often_as_they_should():
    count, temperature = 20_000, 0.8
    logits = np.random.default_rng(3).normal(0, 1.5, 40).astype(np.float32)
    sampler = Sampler(config(temperature=temperature, seed=5), 40)
    found = np.bincount([sampler.pick(logits) for _ in range(count)], minlength=40)
    expected = np.exp(logits.astype(np.float64) / temperature)
    expected *= count / expected.sum()
    chi_square = ((found - expected) ** 2 / expected).sum()
    assert chi_square < 80  # 39 degrees of freedom: mean 39, standard deviation 8.8


def test_large_vocabularies_are_drawn_from_evenly():
    size, count = 128256, 2000
    sampler = Sampler(config(seed=6), size)
    found = np.array([sampler.pick(np.zeros(size, np.float32)) for _ in range(count)])
    cells = np.bincount(found * 20 // size, minlength=20)
    assert ((cells - count / 20) ** 2 / (count / 20)).sum() < 50  # 19 degrees of freedom
    assert abs((found % 256).mean() - 127.5) < 8  # of 74 / sqrt(2000)


@pytest.mark.parametrize("size", SIZES)
def test_the_ends_of_the_random_numbers(rng, size):
    logits = rng.uniform(-5, 5, size).astype(np.float32)  # the last weight is more than what rounding takes
    logits[rng.random(size) < 0.5] = np.finfo(np.float32).min
    logits[size // 2] = logits.max() + 1
    drawable = np.flatnonzero(power_by_reference(logits.max() - logits))
    draws = Draws(size)
    for uniform in (0.0, 1 - 2**-53, 1.0):  # never 1, but rounding may come to it
        draws.add(logits, uniform)
    draws.make(1)
    assert [draws.token(number) for number in range(3)] == [drawable[0], drawable[-1], drawable[-1]]


@pytest.mark.parametrize("equal", [100, 5000])
def test_many_equal_logits_at_the_end_of_top_p(rng, equal):
    # All in one range however it is cut, and not the first: the ranges end, and ids decide.
    logits = rng.permutation(np.concatenate([[9.0, 8.0], np.full(equal, 3.0), np.full(60, -2.0)])).astype(np.float32)
    for top_p in (0.5, 0.9, 0.99, 0.9999999):
        settings_ = config(top_p=top_p)
        for uniform in (0.0, 0.3, 0.999, 1 - 2**-53):
            draws = Draws(len(logits))
            draws.add(logits, uniform, top_p=top_p)
            draws.make(1)
            assert draws.token(0) == pick_by_reference(logits, [], settings_, uniform)


def test_draws_side_by_side_are_those_alone(rng):
    size = 20_000  # so many that threads are used
    rows, ways = rng.normal(0, 3, (40, size)).astype(np.float32), [
        {}, {"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.1}, {"typical_p": 0.7}, {"temperature": 2.0, "top_p": 0.99},
    ]  # fmt: skip
    asked = [(row, float(rng.random()), ways[i % len(ways)]) for i, row in enumerate(rows)]
    alone = []
    for row, uniform, way in asked:
        draws = Draws(size)
        draws.add(row, uniform, **way)
        draws.make(1)
        alone.append(draws.token(0))
    assert len(set(alone)) > 20
    draws = Draws(size)
    for threads in (1, 2, 3):
        assert [draws.add(row, uniform, **way) for row, uniform, way in asked] == list(range(40))
        draws.make(threads)
        assert [draws.token(number) for number in range(40)] == alone
        draws.clear()
    draws.make(2)
    assert draws.count == 0


def test_a_draw_without_memory_for_more_threads_takes_one(rng):
    size = 100_000
    rows = rng.normal(0, 3, (3, size)).astype(np.float32)
    pool = HybridMemoryPool.instance()
    draws = Draws(size)
    with pool.injected_failure(1), pytest.raises(MemoryError):  # the list of draws can be had, the scratch cannot
        draws.add(rows[0], 0.5)
    assert draws.count == 0
    for row in rows:
        draws.add(row, 0.5)
    with pool.injected_failure(0) as has_failed:
        draws.make(3)
        assert has_failed()
    few = [draws.token(number) for number in range(3)]
    draws.make(3)
    assert [draws.token(number) for number in range(3)] == few


# ---- seeds


def test_a_seed_gives_the_same_tokens_whatever_else_runs(rng):
    logits = rng.normal(0, 1, (50, 300)).astype(np.float32)
    alone = Sampler(config(seed=2**64 - 1), 300)
    expected = [alone.pick(row) for row in logits]
    samplers, others = [Sampler(config(seed=2**64 - 1), 300) for _ in range(2)], [Sampler(config(seed=7), 300)] * 2
    found = [[sampler.pick(row) for sampler in (*samplers, *others)] for row in logits]
    assert [row[0] for row in found] == [row[1] for row in found] == expected
    assert [row[2] for row in found] != expected


def test_one_number_is_drawn_for_each_token():
    logits = np.random.default_rng(0).normal(0, 1, 300).astype(np.float32)
    plain, narrow = Sampler(config(), 300), Sampler(config(top_k=1), 300)
    for _ in range(5):
        plain.pick(logits)
        narrow.pick(logits)
    assert plain._random.random() == narrow._random.random() == uniforms(config(), 6)[-1]


def test_a_fresh_seed_can_be_used_again():
    logits = np.zeros(128, np.float32)
    first = Sampler(config(seed=None), 128)
    assert first.seed != Sampler(config(seed=None), 128).seed
    again = Sampler(config(seed=first.seed), 128)
    assert [first.pick(logits) for _ in range(20)] == [again.pick(logits) for _ in range(20)]


# ---- what may not be chosen


@pytest.mark.parametrize("do_sample", [True, False])
def test_a_forbidden_token_is_not_chosen(rng, do_sample):
    fields = {"do_sample": do_sample, "seed": 1}
    for extra in ({}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.01}, {"temperature": 1e300}, {"top_k": None}):
        sampler = Sampler(GenerationConfig(**fields, **(extra if do_sample else {}), repetition_penalty=1.1), 4)
        for _ in range(50):
            assert sampler.pick(some_logits(rng, 4), [1, 2], forbidden=(0, 3)) in (1, 2)
            assert sampler.pick(some_logits(rng, 4), forbidden={0, 1, 3}) == 2


def test_not_all_tokens_may_be_forbidden():
    with pytest.raises(ConfigurationError, match=r"^Sampler.pick: forbidden has all 2 tokens$"):
        Sampler(config(), 2).pick(np.zeros(2, np.float32), forbidden=[0, 1])


# ---- logprobs


def test_logprobs(rng):
    for shape in ((5,), (3, 128256), (2, 2, 7), (1,)):
        logits = rng.normal(0, 10, shape).astype(np.float32)
        exact = logits.astype(np.float64)
        exact -= exact.max(axis=-1, keepdims=True)
        exact -= np.log(np.exp(exact).sum(axis=-1, keepdims=True))
        found = logprobs(logits)
        assert (found.dtype, found.shape) == (np.float32, shape)
        # exp is right to 2 ulp of float32, so is the mean of many; the difference l - m to one, 2**-24 of it.
        np.testing.assert_allclose(found, exact, rtol=2**-22, atol=2**-21)
    assert logprobs(np.array([3e38, -3e38], np.float32)).tolist() == [0.0, -math.inf]
    assert logprobs(np.zeros((0, 3), np.float32)).shape == (0, 3)


# ---- bad input


@pytest.mark.parametrize("do_sample", [True, False])
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({3: np.nan}, "1 of 5 logits are not finite, the first is NaN at index (3)"),
        ({4: np.inf, 1: -np.inf}, "2 of 5 logits are not finite, the first is -inf at index (1)"),
        (dict.fromkeys(range(5), np.nan), "5 of 5 logits are not finite, the first is NaN at index (0)"),
    ],
)
def test_logits_that_are_no_numbers(do_sample, changes, sentence):
    logits = np.zeros(5, np.float32)
    for id, value in changes.items():
        logits[id] = value
    for call in (Sampler(GenerationConfig(do_sample=do_sample), 5).pick, logprobs):
        with pytest.raises(InferenceError) as caught:
            call(logits)
        assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("logits", "error", "sentence"),
    [
        ([0.0] * 4, TensorError, "logits must be a NumPy array, not list"),
        (np.zeros(4), TensorError,
         "logits has dtype float64; it must be float32 (convert it with .astype(np.float32))"),
        (np.zeros(3, np.float32), ShapeError, "logits has shape (3,); it must be (4,)"),
        (np.zeros((1, 4), np.float32), ShapeError, "logits has shape (1, 4); it must be (4,)"),
    ],
)  # fmt: skip
def test_what_are_no_logits(logits, error, sentence):
    with pytest.raises(error) as caught:
        Sampler(config(), 4).pick(logits)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_logprobs_needs_a_vocabulary(shape):
    with pytest.raises(ShapeError, match=r"; it must have shape \(..., vocab\)$"):
        logprobs(np.zeros(shape, np.float32))


@pytest.mark.parametrize(("history", "at"), [([1, 4], 1), ([-1], 0), ([0, 99, -3], 1)])
def test_a_history_of_another_vocabulary(history, at):
    with pytest.raises(InferenceError) as caught:
        Sampler(config(repetition_penalty=1.1), 4).pick(np.zeros(4, np.float32), history)
    assert str(caught.value) == f"token {history[at]} at position {at} is not in the vocabulary of 4"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (({}, 4), "Sampler.config is {}; it must be a GenerationConfig"),
        ((GenerationConfig(), 0), "Sampler.vocab_size is 0; it must be a whole number above 0"),
        ((GenerationConfig(), "4"), "Sampler.vocab_size is '4'; it must be a whole number above 0"),
    ],
)
def test_what_makes_no_sampler(arguments, sentence):
    with pytest.raises(ConfigurationError) as caught:
        Sampler(*arguments)
    assert str(caught.value) == sentence


# ---- stop strings


def stopped_by_reference(text, strings):
    """Character by character: (the text that stays, the stop string)."""
    for end in range(1, len(text) + 1):
        for one in sorted(strings, key=len, reverse=True):
            if text[:end].endswith(one):
                return text[: end - len(one)], one
    return text, None


def put_all(pieces, strings):
    stop, emitted, has_stopped = StopStrings(strings), "", False
    for piece in pieces:
        text, stopped = stop.put(piece)
        assert stopped >= has_stopped
        assert not (has_stopped and text)
        emitted, has_stopped = emitted + text, stopped
        assert not any(one in emitted for one in strings)
    assert has_stopped == (stop.matched is not None)
    return emitted + stop.flush(), stop.matched


@given(
    text=st.text("abc", max_size=40), cuts=st.sets(st.integers(0, 40)),
    strings=st.lists(st.text("abc", min_size=1, max_size=5), max_size=4),
)  # fmt: skip
@settings(max_examples=500)
def test_the_text_stops_where_it_should_however_it_is_cut(text, cuts, strings):
    ends = [*sorted(cuts), len(text)]
    pieces = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    assert put_all(pieces, strings) == stopped_by_reference(text, strings)


@pytest.mark.parametrize(
    ("pieces", "strings", "given"),
    [
        (["Hello"], [], ["Hello"]),
        (["Hel", "lo", " User", ": x"], ["User:"], ["Hel", "lo", " ", ""]),
        (["Us", "Us", "er", "e"], ["User:"], ["", "Us", "", "Usere"]),
        (["a\n", "\n", "b"], ["\n\n"], ["a", "", ""]),
        (["😀", "é"], ["é!"], ["😀", ""]),
    ],
)
def test_only_what_may_begin_a_stop_string_is_kept_back(pieces, strings, given):
    stop = StopStrings(strings)
    assert [stop.put(piece)[0] for piece in pieces] == given


def test_a_flush_gives_what_was_kept_back_once():
    stop = StopStrings(("User:",))
    assert (stop.put("a Us"), stop.flush(), stop.flush()) == (("a ", False), "Us", "")


@pytest.mark.parametrize("strings", ["abc", [""], ["a", 1]])
def test_what_are_no_stop_strings(strings):
    with pytest.raises(ConfigurationError, match=r"; it must be a list of strings, none of them empty$"):
        StopStrings(strings)
