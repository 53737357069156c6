"""Keys and values in a file: what comes back is what was, and of nothing else."""

import numpy as np
import pytest
from checkpoints import DATA
from hypothesis import given
from hypothesis import strategies as st

import bitnet
from bitnet import EngineConfig, GenerationConfig, InferenceEngine

EXACT = {"kv_dtype": "float32", "head_dtype": "float32", "num_threads": 1}
FEW = GenerationConfig(max_new_tokens=6, eos_token_id=())
TEXT = np.random.default_rng(3).integers(3, 500, 100).tolist()


@pytest.fixture(scope="module")
def model():
    return InferenceEngine(EngineConfig(**EXACT)).load_model(DATA / "bitnet-packed-auto")


@pytest.fixture
def state(model, tmp_path):
    with InferenceEngine(EngineConfig(**EXACT)) as engine:
        assert engine.save_state(model, tmp_path / "state", TEXT) == 100
    return tmp_path / "state"


@pytest.mark.parametrize("length", [1, 63, 64, 65, 100])
def test_a_text_that_comes_back_is_not_computed(model, tmp_path, length):
    path = tmp_path / "state"
    with InferenceEngine(EngineConfig(**EXACT)) as engine:
        expected = engine.generate(model, [*TEXT[:length], 7], FEW)
        assert engine.save_state(model, path, TEXT[:length]) == length
    with InferenceEngine(EngineConfig(**EXACT)) as engine:
        assert engine.load_state(model, path) == length
        answer = engine.generate(model, [*TEXT[:length], 7], FEW)
        assert (answer.tokens, answer.cached_tokens) == (expected.tokens, length)
        assert engine.load_state(model, path) == length  # once more changes nothing
        assert engine._schedulers[model].cache.used == 0
    assert [one.name for one in tmp_path.iterdir()] == ["state"]


def test_another_model_or_other_keys_refuse_it(model, state):
    with InferenceEngine(EngineConfig(**{**EXACT, "kv_dtype": "float16"})) as engine:
        other = engine.load_model(DATA / "bitnet-packed-auto")
        with pytest.raises(bitnet.FormatError, match="the file belongs to another model"):
            engine.load_state(other, state)
    with InferenceEngine(EngineConfig(**EXACT)) as engine:
        other = engine.load_model(DATA / "bitnet-packed-bitlinear")
        with pytest.raises(bitnet.FormatError, match="the file belongs to another model"):
            engine.load_state(other, state)
        assert engine._schedulers[other].cache.used == 0


@given(st.data())
def test_a_damaged_file_is_refused_and_nothing_of_it_stays(model, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("state") / "state"
    with InferenceEngine(EngineConfig(**EXACT)) as engine:
        engine.save_state(model, path, TEXT[:70])
    whole = bytearray(path.read_bytes())
    at = data.draw(st.one_of(st.integers(0, 400), st.integers(0, len(whole) - 1)))
    how = data.draw(st.sampled_from(["flip", "cut", "add"]))
    if how == "flip":
        whole[at] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "cut":
        del whole[at:]
    else:
        whole[at:at] = b"\0"
    path.write_bytes(whole)
    with InferenceEngine(EngineConfig(**EXACT)) as engine:
        with pytest.raises(bitnet.FormatError):
            engine.load_state(model, path)
        assert engine._schedulers[model].cache.used == 0
        assert engine.generate(model, TEXT[:80], FEW).cached_tokens == 0


def test_too_little_room_is_an_error_and_loses_nothing(model, state):
    with InferenceEngine(EngineConfig(**EXACT, max_kv_tokens=64)) as engine:
        with pytest.raises(bitnet.MemoryError, match="all 1 pages"):
            engine.load_state(model, state)
        assert engine._schedulers[model].cache.used == 0
        assert len(engine.generate(model, [5], FEW).tokens) == 6


def test_files_that_cannot_be_written_or_read(model, tmp_path):
    with InferenceEngine(EngineConfig(**EXACT)) as engine:
        with pytest.raises(bitnet.ModelLoadError, match="cannot write"):
            engine.save_state(model, tmp_path / "none" / "state", [5])
        with pytest.raises(bitnet.ModelLoadError, match="cannot read"):
            engine.load_state(model, tmp_path / "none")
    with InferenceEngine(EngineConfig(**EXACT, prefix_cache=False)) as engine:
        for act in (lambda: engine.save_state(model, tmp_path / "a", [5]), lambda: engine.load_state(model, "a")):
            with pytest.raises(bitnet.ConfigurationError, match="only with prefix_cache"):
                act()
