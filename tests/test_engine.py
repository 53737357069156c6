"""The engine on the reference checkpoints: logits, answers, and what it keeps."""

import gc

import numpy as np
import pytest
from checkpoints import DATA

import bitnet
from bitnet._core import memory

NAME = "bitnet-packed-auto"
EXACT = {"kv_dtype": "float32", "head_dtype": "float32", "num_threads": 1}


@pytest.fixture(scope="module")
def loaded():
    with bitnet.load(DATA / NAME, **EXACT) as model:
        yield model


@pytest.fixture(scope="module")
def prompt():
    return np.load(DATA / NAME / "prompt.npy").tolist()


def test_infer_gives_the_references_logits(loaded, prompt):
    expected = np.load(DATA / NAME / "logits_float32.npy")
    np.testing.assert_allclose(loaded.infer(prompt), expected, atol=1e-4)
    assert loaded.infer(prompt, last_only=True).tolist() == loaded.infer(prompt)[-1].tolist()


def test_a_batch_has_the_bits_of_each_alone(loaded, prompt):
    parts = [prompt[:5], prompt, prompt[3:9]]
    for together, part in zip(loaded.engine.infer_batch(loaded.model, parts), parts, strict=True):
        np.testing.assert_array_equal(together, loaded.infer(part))


def test_generate_gives_the_references_tokens_and_stream_the_same(loaded, prompt):
    expected = np.load(DATA / NAME / "greedy16.npy").tolist()
    answer = loaded.generate(prompt, max_new_tokens=16, eos_token_id=())
    assert (answer.tokens, answer.finish_reason, answer.prompt_tokens) == (expected, "length", len(prompt))
    assert [piece.token for piece in loaded.stream(prompt, max_new_tokens=16, eos_token_id=())] == expected


def test_a_token_that_ends_the_text_is_not_part_of_it(loaded, prompt):
    expected = np.load(DATA / NAME / "greedy16.npy").tolist()
    end = expected[4]
    answer = loaded.generate(prompt, max_new_tokens=16, eos_token_id=end)
    assert (answer.tokens, answer.finish_reason) == (expected[: expected.index(end)], "eos")


def test_an_engine_does_not_keep_a_model():
    engine = bitnet.InferenceEngine(bitnet.EngineConfig(**EXACT))
    gc.collect()
    before = memory.statistics()["live_bytes"]
    model = engine.load_model(DATA / NAME)
    engine.infer(model, [1, 2])
    assert memory.statistics()["live_bytes"] > before
    del model
    gc.collect()
    assert memory.statistics()["live_bytes"] == before
