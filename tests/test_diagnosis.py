"""Diagnoses: what operations make, the first that goes wrong, and where two runs part."""

import numpy as np
import pytest
import tiny
from checkpoints import DATA

import bitnet
from bitnet import machine
from bitnet.diagnosis import Diagnosis, OperationValues

PROMPT = list(range(1, 21))


@pytest.fixture(scope="module")
def model():
    with bitnet.load(DATA / "bitnet-packed-auto", num_threads=1) as loaded:
        yield loaded.model


def test_the_values_of_each_operation(model):
    found = bitnet.diagnose(model, PROMPT, keep=True)
    assert (found.tokens, found.first_bad) == (20, None)
    assert tuple(one.name for one in found.operations) == model.program.names
    for one in found.operations:
        assert one.is_finite
        values = one.values.astype(np.float64)
        assert one.elements == values.size
        assert (one.minimum, one.maximum) == (values.min(), values.max())
        assert one.rms == pytest.approx(np.sqrt(np.mean(values**2)))
        assert one.zeros == np.mean(values == 0)
        assert (one.saturation is None) == (one.kind != "linear")
        if one.saturation is not None:
            assert 1 / 1000 < one.saturation < 0.5
    relu = next(one for one in found.operations if one.kind == "gate")
    assert relu.zeros > 0.1
    table = found.table().splitlines()
    assert table[0].split() == ["minimum", "maximum", "RMS", "zeros", "NaN", "inf", "saturation", "kind", "operation"]
    assert len(table) == len(found.operations) + 1


def test_values_are_kept_only_if_asked_for(model):
    found = bitnet.diagnose(model, PROMPT)
    assert all(one.values is None for one in found.operations)
    with pytest.raises(bitnet.ConfigurationError, match="the values were not kept; use keep=True"):
        list(found.differences(found))


class Tiny:
    """What `diagnose` needs of a model, around a tiny program."""

    def __init__(self, **how):
        self.program = tiny.program(**how)
        self.engine_config = bitnet.EngineConfig(num_threads=1)

    def encode(self, prompt):
        return np.array(prompt, np.int32)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["model.layers.0.input_layernorm", "model.layers.1.mlp.ffn_sub_norm", "model.norm"])
def test_the_first_operation_that_is_not_finite_ends_it(name, value):
    def plant(gain):
        gain[3] = value
        return gain

    found = bitnet.diagnose(Tiny(change={f"{name}.weight": plant}), PROMPT)
    bad = found.first_bad
    assert bad is found.operations[-1]
    assert (bad.name, bad.kind) == (name, "rms_norm")
    assert bad.nan + bad.inf == 20
    assert (bad.nan if np.isnan(value) else bad.inf) > 0
    assert np.isfinite([bad.minimum, bad.maximum, bad.rms]).all()


def test_where_two_models_part():
    def change(gain):
        gain[5] *= 2
        return gain

    mine = bitnet.diagnose(Tiny(), PROMPT, keep=True)
    other = bitnet.diagnose(Tiny(change={"model.layers.1.post_attention_layernorm.weight": change}), PROMPT, keep=True)
    differences = list(mine.differences(other))
    first = differences[0]
    assert (first.name, first.differing) == ("model.layers.1.post_attention_layernorm", 20)
    assert first.index[1] == 5
    assert first.largest == abs(first.mine - first.other) > 0
    assert 0 < first.relative < 10
    assert differences[-1].name == "lm_head"
    assert list(mine.differences(bitnet.diagnose(Tiny(), PROMPT, keep=True, num_threads=2))) == []


@pytest.mark.parametrize("isa", machine.possible_isas())
def test_an_instruction_set_and_another_packing_make_the_same_products(isa):
    mine = bitnet.diagnose(Tiny(), PROMPT, keep=True)
    before = machine.describe().isa
    machine.select_isa(isa)
    try:
        other = bitnet.diagnose(Tiny(kind="t5"), PROMPT, keep=True)
    finally:
        machine.select_isa(before)
    assert all(one.relative < 1e-4 for one in mine.differences(other))


def values(name, *numbers):
    array = np.array([numbers], np.float32)
    return OperationValues(name, "add", array.size, 0, 0, 1, 0, 0, 0, None, array)


def test_differences_of_what_is_not_finite_or_has_another_shape():
    nan, inf = np.nan, np.inf
    more = [values("c", 1, 2), values("d", 1), values("e", 0)]
    mine = Diagnosis([values("a", nan, inf, 1), values("b", nan, 1), *more], 1)
    other = Diagnosis([values("a", nan, inf, 1), values("b", 0, 1), values("c", 1), values("e", -0.0)], 1)
    found = list(mine.differences(other))
    assert [one.name for one in found] == ["b", "c", "e"]
    assert np.isnan(found[0].largest)
    assert (found[0].index, found[0].differing) == ((0, 0), 1)
    assert np.isnan(found[1].relative)
    assert (found[2].largest, found[2].differing) == (0, 0)


def test_prompts_that_cannot_be_run(model):
    with pytest.raises(bitnet.InferenceError, match="the prompt has no tokens"):
        bitnet.diagnose(model, [])
    with pytest.raises(bitnet.InferenceError, match=r"beyond the .* tokens of the context"):
        bitnet.diagnose(model, [1] * (model.program.context + 1))
