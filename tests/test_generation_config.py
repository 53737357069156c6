"""How tokens are chosen: the checks of GenerationConfig."""

import math

import pytest
from test_config import BIG, FULL, refusal

from bitnet import GenerationConfig


@pytest.mark.parametrize(
    ("name", "refused", "needed"),
    [
        ("max_new_tokens", [0, None, 1.5], f"a whole number from 1 to {BIG}"),
        ("min_new_tokens", [-1, None, True], f"a whole number from 0 to {BIG}"),
        ("do_sample", [1, None, "yes"], "True or False"),
        ("temperature", [0, -1, math.nan, math.inf, None, "1", True],
         "a finite number above 0 (do_sample=False draws nothing)"),
        ("top_k", [-1, 1.5, "all", True], f"a whole number from 0 to {BIG}, or None"),
        ("top_p", [0, 1.01, -0.1, math.nan, None, True], "above 0 and at most 1"),
        ("min_p", [-0.1, 1.01, math.nan, "0", False], "from 0 to 1, or None"),
        ("typical_p", [0, 1.5, None], "above 0 and at most 1"),
        ("frequency_penalty", [-3, 2.1, None], "from -2 to 2"),
        ("presence_penalty", [-3, "a"], "from -2 to 2"),
        ("no_repeat_ngram_size", [-1, 1.5], f"a whole number from 0 to {BIG}"),
        ("logit_bias", [{-1: 1.0}, {1: float("nan")}, [1, 2], 3, {"a": 1}, [(1, 2), (1, 3)]],
         f"a dictionary of token ids from 0 to {BIG} to finite numbers"),
        ("prompt_lookup_num_tokens", [-1, 65, 1.5], "a whole number from 0 to 64, or None"),
        ("num_return_sequences", [0, 1025], "a whole number from 1 to 1024"),
        ("logprobs", [-1, 1025, True], "a whole number from 0 to 1024, or None"),
        ("repetition_penalty", [0, -1, math.inf, None], "a finite number above 0"),
        ("eos_token_id", [-1, [2, -1], 2**31, "</s>", 1.0, True], f"a token id from 0 to {BIG}, or a list of them"),
        ("stop_strings", ["", ["a", ""], [1], 3, b"a", {"a": 1}], "a string or a list of strings, none of them empty"),
        ("seed", [-1, 2**64, 0.5, "1", True], "a whole number from 0 to 18446744073709551615, or None"),
    ],
)  # fmt: skip
def test_generation_is_checked(name, refused, needed):
    for got in refused:
        sentence = f"GenerationConfig.{name} is {got!r}; it must be {needed}"
        assert refusal(GenerationConfig, **{"do_sample": True, name: got}) == sentence


def test_the_ends_of_each_range_can_be_used():
    least = GenerationConfig(do_sample=True, max_new_tokens=1, min_new_tokens=1, temperature=5e-324, top_k=1, seed=0)
    most = GenerationConfig(do_sample=True, top_p=1, min_p=1, seed=2**64 - 1, top_k=2**31 - 1, eos_token_id=2**31 - 1)
    assert (least.min_new_tokens, least.temperature, least.seed) == (1, 5e-324, 0)
    assert (most.min_p, most.seed, most.eos_token_id) == (1.0, 2**64 - 1, (2**31 - 1,))


def test_each_meaning_is_stored_in_one_way():
    assert GenerationConfig(top_k=0, min_p=0.0) == GenerationConfig(top_k=None, min_p=None)
    assert GenerationConfig(top_k=0).top_k is None
    assert [GenerationConfig(eos_token_id=ids).eos_token_id for ids in (0, [], None)] == [(0,), (), None]
    assert [GenerationConfig(stop_strings=one).stop_strings for one in ("ab", ("a", "b"))] == [("ab",), ("a", "b")]


@pytest.mark.parametrize(("name", "value"), [("temperature", 0.7), ("top_k", 40), ("top_p", 0.9), ("min_p", 0.1)])
def test_what_only_drawing_reads_is_refused_without_drawing(name, value):
    sentence = f"GenerationConfig: {name} is {value}, which is of use only with do_sample=True"
    assert refusal(GenerationConfig, **{name: value}) == sentence
    assert getattr(GenerationConfig(do_sample=True, **{name: value}), name) == value
    # Asked for in one call, it is a contradiction all the same.
    assert refusal(GenerationConfig(do_sample=True).replace, do_sample=False, **{name: value}) == sentence


def test_what_changes_nothing_may_be_said_without_drawing():
    cfg = GenerationConfig(temperature=1, top_k=0, top_p=1.0, min_p=0, seed=3, repetition_penalty=1.2)
    assert (cfg.top_k, cfg.seed, cfg.repetition_penalty) == (None, 3, 1.2)


def test_turning_drawing_off_resets_what_only_drawing_reads():
    full = FULL[-1]
    greedy = full.replace(do_sample=False)
    reset = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None,
             "typical_p": 1.0, "num_return_sequences": 1}
    assert greedy.to_dict() == {**full.to_dict(), **reset}
    assert full.replace(top_p=0.5).temperature == full.temperature
    assert refusal(full.replace, do_sample=0) == "GenerationConfig.do_sample is 0; it must be True or False"
