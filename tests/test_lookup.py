"""Guesses from what a text has said before: they change nothing but the number of steps."""

import numpy as np
import pytest

import bitnet
from bitnet.lookup import PATIENCE, Costs, Lookup

PROMPT = "Lily had a red ball. Tom had a blue ball. Lily had a red ball. Tom had a"
WAYS = [
    {"do_sample": False},
    {"do_sample": False, "repetition_penalty": 1.0},
    {"do_sample": True, "seed": 5, "temperature": 0.5},
    {"do_sample": False, "repetition_penalty": 1.0, "stop_strings": ["ball", "and"]},
    {"do_sample": False, "repetition_penalty": 1.0, "logprobs": 2, "min_new_tokens": 30, "max_new_tokens": 90},
    {"do_sample": True, "seed": 1, "top_k": 3, "frequency_penalty": 0.3, "max_new_tokens": 1},
]


@pytest.fixture(scope="module")
def model():
    with bitnet.load(num_threads=1) as loaded:
        yield loaded.model


@pytest.fixture
def always(monkeypatch):
    """Every guess is tried, whatever it costs on this machine."""
    monkeypatch.setattr(Lookup, "worth", lambda _, available, *__: available)


def configs(model, **more):
    return [model.generation_config.replace(**({"max_new_tokens": 60} | way | more)) for way in WAYS]


def told(done):
    return [(one.tokens, one.text, one.finish_reason, one.logprobs, one.top_logprobs, one.error) for one in done]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("limits", [{}, {"max_kv_tokens": 192}, {"max_batch_tokens": 8, "max_batch_size": 5}])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_answers_are_the_same_bits(model, limits, num_threads):
    config = bitnet.EngineConfig(num_threads=num_threads, **limits)
    with bitnet.InferenceEngine(bitnet.EngineConfig(num_threads=1)) as plain, bitnet.InferenceEngine(config) as engine:
        expected = told(plain.generate(model, [PROMPT] * len(WAYS), configs(model)))
        for most in (1, 3, 10):
            found = engine.generate(model, [PROMPT] * len(WAYS), configs(model, prompt_lookup_num_tokens=most))
            assert told(found) == expected
        for one, config in zip(expected, configs(model, prompt_lookup_num_tokens=7), strict=True):
            assert told([engine.generate(model, PROMPT, config)]) == [one]
        assert engine.activity(model).kv_pages_used == 0


@pytest.mark.usefixtures("always")
def test_a_text_that_repeats_itself_takes_fewer_steps(model):
    steps, config = {}, model.generation_config.replace(do_sample=False, repetition_penalty=1.0, max_new_tokens=80,
                                                        eos_token_id=())  # fmt: skip
    for most in (None, 8):
        with bitnet.InferenceEngine(bitnet.EngineConfig(num_threads=1)) as engine:
            done = engine.generate(model, "The ball" + ", the ball" * 4, config.replace(prompt_lookup_num_tokens=most))
            assert len(done.tokens) == 80
            steps[most] = engine.activity(model).steps
    assert steps[None] == 80
    assert steps[8] < 70


@pytest.mark.usefixtures("always")
def test_a_grammar_holds(model):
    pytest.importorskip("llguidance")
    grammar = bitnet.Grammar.regex(r"(ball ){3,9}end")
    config = model.generation_config.replace(do_sample=False, repetition_penalty=1.0, max_new_tokens=60)
    with bitnet.InferenceEngine(bitnet.EngineConfig(num_threads=1)) as engine:
        found = [engine.generate(model, PROMPT, config.replace(prompt_lookup_num_tokens=most), grammar=grammar).text
                 for most in (None, 4)]  # fmt: skip
    assert found[0] == found[1] != ""


def ids(*numbers):
    return np.array(numbers, np.int32)


def test_the_latest_place_of_the_longest_run_is_taken():
    lookup = Lookup(3)
    text = ids(1, 2, 3, 9, 9, 2, 3, 8, 7, 2, 3)
    assert lookup.find(text, 11, 5).tolist() == [8, 7, 2]
    assert lookup.find(text, 11, 1).tolist() == [8]
    assert lookup.find(ids(1, 2, 3, 9, 9, 2, 3, 8, 7, 1, 2, 3), 12, 5).tolist() == [9, 9, 2]
    assert Lookup(3).find(ids(1, 2, 3, 4), 4, 5).tolist() == []
    assert Lookup(3).find(ids(1), 1, 5).tolist() == []
    assert Lookup(3).find(ids(4, 4, 4), 3, 5).tolist() == [4]  # no more is known


def measured(**seconds):
    costs = Costs()
    for tokens, one in seconds.items():
        costs.add(int(tokens[1:]), one)
    return costs


def test_so_many_are_tried_as_give_the_most_tokens_a_second():
    lookup = Lookup(10)
    assert lookup.worth(0, Costs(), 0) == 0
    assert lookup.worth(10, Costs(), 0) == 1  # to see what a step takes
    cheap, dear = measured(_1=1.0, _3=1.01, _11=1.1), measured(_1=1.0, _2=2.5, _11=12.0)
    kinked = measured(_1=1.0, _5=1.2, _6=4.0, _11=9.0)
    for _ in range(40):
        lookup.learn(10, 10)
    assert [lookup.worth(10, one, 0) for one in (cheap, dear, kinked)] == [10, 0, 4]
    assert lookup.worth(3, kinked, 0) == 3
    assert lookup.worth(10, measured(_1=1.0), 0) == 10  # a token more is thought to add a tenth
    for _ in range(40):
        lookup.learn(10, 1)  # of two that say something, one
    assert lookup.worth(10, measured(_1=1.0, _11=2.0), 0) == 2
    assert lookup.worth(10, measured(_9=1.0, _19=1.0), 8) == 10  # beside others, when it costs nothing
    assert lookup.worth(10, measured(_9=1.0, _11=3.0), 8) == 0


def test_it_is_done_while_it_pays():
    lookup, costs = Lookup(4), measured(_1=1.0, _5=1.2)
    assert lookup.worth(4, costs, 0) == 3  # half of them are thought to be right
    for _ in range(40):
        lookup.learn(4, 0)
    assert lookup.worth(4, costs, 0) == 0
    assert sum(lookup.worth(4, costs, 0) for _ in range(2 * PATIENCE + 2)) == 2  # now and then it looks again, with one
    for _ in range(40):
        lookup.learn(4, 4)
    assert lookup.worth(4, costs, 0) == 4
    for _ in range(60):
        costs.add(5, 60.0)
    assert lookup.worth(4, costs, 0) == 0
    assert (lookup.guessed, lookup.accepted) == (320, 160)


def test_one_slow_step_says_little():
    costs = measured(_1=1.0, _2=1.0)
    costs.add(2, 1000.0)
    assert costs.estimate(2) == pytest.approx(1.2)


def test_what_was_not_measured_is_estimated():
    costs = measured(_2=1.0, _4=2.0, _8=3.0)
    assert [costs.estimate(n) for n in (2, 3, 6, 8, 12)] == [1.0, 1.5, 2.5, 3.0, 4.0]
    assert costs.estimate(1) == 0.5
    assert measured(_2=1.0, _4=0.5).estimate(20) == 1.0  # a step with more tokens takes no less
    assert measured(_1=1.0).estimate(3) == pytest.approx(1.2)
