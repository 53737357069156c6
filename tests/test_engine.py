"""The engine on the reference checkpoints: logits, answers, and what it keeps."""

import gc
import json
import shutil
import threading

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


def test_a_cancelled_stream_stops_and_the_engine_goes_on(loaded, prompt):
    stream = loaded.stream(prompt, max_new_tokens=16, eos_token_id=())
    expected = [next(stream).token, next(stream).token]
    loaded.engine.cancel()  # between two runs: nothing is running
    with pytest.raises(bitnet.InferenceError, match="cancelled"):
        next(stream)
    assert stream.completion.finish_reason == "cancelled"
    assert stream.completion.tokens == expected
    assert loaded.generate(prompt, max_new_tokens=2, eos_token_id=()).tokens == expected


def test_cancel_from_another_thread_stops_an_inference_in_progress(loaded, prompt):
    is_over = threading.Event()

    def cancel():
        while not is_over.wait(1e-3):
            loaded.engine.cancel()

    def infer():
        for _ in range(100_000):
            loaded.infer(prompt)

    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        with pytest.raises(bitnet.InferenceError, match="cancelled"):
            infer()
    finally:
        is_over.set()
        thread.join()
    assert loaded.infer(prompt).shape == (len(prompt), 512)


def with_generation_config(tmp_path, **fields):
    folder = tmp_path / "model"
    shutil.copytree(DATA / NAME, folder)
    (folder / "generation_config.json").write_text(json.dumps(fields))
    return folder


def test_a_checkpoints_own_settings_are_the_defaults(tmp_path, prompt):
    folder = with_generation_config(tmp_path, do_sample=True, temperature=5.0, top_k=0, max_length=4096, top_p=0.9,
                                    max_new_tokens=4, eos_token_id=[510, 511], bos_token_id=None)  # fmt: skip
    with bitnet.load(folder, **EXACT) as model:
        own = model.model.generation_config
        assert own == bitnet.GenerationConfig(do_sample=True, temperature=5.0, top_k=0, top_p=0.9, max_new_tokens=4)
        assert set(model.model.eos_token_ids) >= {510, 511}
        answers = {tuple(model.generate(prompt, seed=seed).tokens) for seed in range(20)}
        assert len(answers) > 5  # drawn, and hot
        assert all(len(answer) <= 4 for answer in answers)
        greedy = np.load(DATA / NAME / "greedy16.npy").tolist()
        assert model.generate(prompt, do_sample=False, max_new_tokens=16, eos_token_id=()).tokens == greedy
        assert model.generate(prompt, bitnet.GenerationConfig(max_new_tokens=3, eos_token_id=())).tokens == greedy[:3]


def test_what_a_checkpoint_does_not_draw_with_does_not_count(tmp_path):
    folder = with_generation_config(tmp_path, do_sample=False, temperature=0.6, top_p=0.9)
    with bitnet.load(folder, **EXACT) as model:
        assert model.model.generation_config == bitnet.GenerationConfig()


def test_settings_of_a_checkpoint_that_cannot_be_used_are_refused(tmp_path):
    folder = with_generation_config(tmp_path, do_sample=True, temperature=-1)
    with pytest.raises(bitnet.ModelLoadError) as caught:
        bitnet.load(folder, **EXACT)
    assert str(caught.value) == (
        f"the generation_config.json of '{folder}' cannot be used: GenerationConfig.temperature is -1; it must be a "
        "finite number above 0 (do_sample=False draws nothing)"
    )
