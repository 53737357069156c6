"""Ternary weights in folders of Hugging Face: what they mean, which layers have them, and what contradicts itself."""

import os

import numpy as np
import pytest
from checkpoints import DATA, PACKED, bf16, layer, quantized, write_folder
from safetensors.numpy import save_file

import bitnet
from bitnet import BitNetError, FormatError, ModelLoadError
from bitnet._core import packing
from bitnet.formats import StoredTernary, open_checkpoint

LAYER = "model.layers.0.self_attn.q_proj"


def file(folder, name="model.safetensors"):
    return os.path.join(folder, name)


def refused(cls, action, *arguments):
    """What is said when an action is refused by exactly this class."""
    with pytest.raises(BitNetError) as caught:
        action(*arguments)
    assert type(caught.value) is cls
    return str(caught.value)


def unpacked(data):
    """The codes of packed bytes, as FORMATS 2.1 has it: quarters of the rows, from the lowest bits."""
    return np.concatenate([((data >> 2 * k) & 3).astype(np.int8) - 1 for k in range(4)])


# ---- what they mean


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_weight_has_one_meaning(name):
    with open_checkpoint(DATA / name) as checkpoint:
        found = checkpoint.ternary(LAYER)
        assert (found.kind, found.rows, found.cols, found.floats) == ("packed", 256, 256, None)
        assert (found.data.dtype, found.data.shape) == (np.uint8, (64, 256))
        assert type(found.scale) is float
        assert 0.06 < found.scale < 0.07  # the mean of the absolute masters, whether the file multiplies or divides
        codes = unpacked(found.data)
        assert set(np.unique(codes)) == {-1, 0, 1}
        weight = packing.pack_hugging_face_bytes(found.data, found.scale, "i2")
        assert (weight.rows, weight.cols) == (256, 256)


def test_both_meanings_of_the_scale_give_the_same_weight():
    with open_checkpoint(DATA / PACKED[0]) as one, open_checkpoint(DATA / PACKED[1]) as other:
        layers = [name.removesuffix(".weight_scale") for name in one.names() if name.endswith("_scale")]
        assert len(layers) == 28
        for name in layers:
            first, second = one.ternary(name), other.ternary(name)
            np.testing.assert_array_equal(first.data, second.data)
            assert first.scale == pytest.approx(second.scale, rel=2**-23)


def test_a_scale_that_divides_is_taken_as_float32(tmp_path):
    config = {"quantization_config": {"quant_method": "bitnet"}}  # no linear_class: it divides
    with open_checkpoint(write_folder(tmp_path, layer(scale=3.0), config)) as checkpoint:
        assert checkpoint.ternary("q_proj").scale == float(np.float32(1) / np.float32(3))


@pytest.mark.parametrize("linear_class", [None, "bitlinear", "autobitlinear"])
@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_scale_may_have_any_float_dtype_and_one_element(tmp_path, linear_class, dtype, shape):
    number = np.full(shape, 0.25, {"F16": np.float16, "F64": np.float64}.get(dtype, np.float32))
    tensors = {**layer(), "q_proj.weight_scale": (dtype, bf16(number) if dtype == "BF16" else number)}
    with open_checkpoint(write_folder(tmp_path, tensors, quantized(linear_class))) as checkpoint:
        assert checkpoint.ternary("q_proj").scale == (0.25 if linear_class == "autobitlinear" else 4.0)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_masters_are_quantised_to_the_packed_weight(tmp_path, dtype, rng):
    with open_checkpoint(DATA / PACKED[0]) as checkpoint:
        found = checkpoint.ternary(LAYER)
        codes, scale = unpacked(found.data), np.float32(found.scale)
    masters = (codes * 1.5 * scale + rng.uniform(-0.2, 0.2, codes.shape) * scale).astype(np.float32)
    if dtype == "BF16":
        write_folder(tmp_path, {f"{LAYER}.weight": ("BF16", bf16(masters))}, {"model_type": "bitnet"})
        masters = (bf16(masters).astype(np.uint32) << 16).view(np.float32)
    else:
        masters = masters.astype({"F16": np.float16, "F32": np.float32}[dtype])
        save_file({f"{LAYER}.weight": masters}, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text('{"model_type": "bitnet"}')
    with open_checkpoint(tmp_path) as checkpoint:
        stored = checkpoint.ternary(LAYER)
        assert isinstance(stored, StoredTernary)
        assert (stored.kind, stored.rows, stored.cols) == ("masters", 256, 256)
        assert (stored.data, stored.scale) == (None, None)
        np.testing.assert_array_equal(stored.floats(), masters.astype(np.float32))
        np.testing.assert_array_equal(stored.floats(slice(3, 9)), masters[3:9].astype(np.float32))
        np.testing.assert_array_equal(bitnet.quantize_weights(stored.floats())[0], codes)


# ---- packed weights that contradict themselves

SMALL = np.array([1e-45], np.float32)

# (what is there instead, the configuration, what is said)
CONTRADICTIONS = [
    ({"q_proj.weight": ("I8", np.zeros((2, 4), np.int8))}, quantized(),
     "the dtype of 'q_proj.weight' is 'I8'; it must be U8, which is packed ternary weights, or BF16, F16, F32 or F64, "
     "which is masters"),
    ({"q_proj.weight": ("U8", np.zeros(8, np.uint8))}, quantized(),
     "the shape of 'q_proj.weight' is (8,); it must be two sizes above 0"),
    ({"q_proj.weight": ("U8", np.zeros((0, 4), np.uint8))}, quantized(),
     "the shape of 'q_proj.weight' is (0, 4); it must be two sizes above 0"),
    ({"q_proj.weight": ("F32", np.zeros((8, 4), np.float32))}, quantized(quantization_mode="online"),
     "the dtype of 'q_proj.weight' is 'F32'; it must be U8, because 'q_proj.weight_scale' is there, which masters do "
     "not have"),
    ({"q_proj.weight_scale": ("F32", np.ones(8, np.float32))}, quantized(),
     "the shape of 'q_proj.weight_scale' is (8,); it must be (1,), one scale for all of 'q_proj'"),
    ({"q_proj.weight_scale": ("F32", np.ones(0, np.float32))}, quantized(),
     "the shape of 'q_proj.weight_scale' is (0,); it must be (1,), one scale for all of 'q_proj'"),
    ({"q_proj.weight_scale": ("I32", np.ones(1, np.int32))}, quantized(),
     "the dtype of 'q_proj.weight_scale' is 'I32'; it must be BF16, F16, F32 or F64, because it is read as real "
     "numbers"),
    ({"q_proj.weight_scale": ("F32", np.array([np.nan], np.float32))}, quantized(),
     "'q_proj.weight_scale' is nan; it must be a finite number"),
    ({"q_proj.weight_scale": ("BF16", bf16([-np.inf]))}, quantized("bitlinear"),
     "'q_proj.weight_scale' is -inf; it must be a finite number"),
    ({"q_proj.weight_scale": ("F32", np.zeros(1, np.float32))}, quantized("bitlinear"),
     "'q_proj.weight_scale' is 0.0; it must be a number with a reciprocal in float32, because linear_class 'bitlinear' "
     "divides by it"),
    ({"q_proj.weight_scale": ("F32", SMALL)}, quantized("bitlinear"),
     f"'q_proj.weight_scale' is {float(SMALL[0])}; it must be a number with a reciprocal in float32, because "
     "linear_class 'bitlinear' divides by it"),
]  # fmt: skip


@pytest.mark.parametrize(("tensors", "config", "said"), CONTRADICTIONS)
def test_a_weight_that_contradicts_itself_is_refused(tmp_path, tensors, config, said):
    path = write_folder(tmp_path, {**layer(), **tensors}, config)
    with open_checkpoint(path) as checkpoint:
        assert refused(FormatError, checkpoint.ternary, "q_proj") == f"'{file(path)}': {said}"


def test_a_scale_that_multiplies_may_be_zero(tmp_path):
    with open_checkpoint(write_folder(tmp_path, layer(scale=0.0), quantized())) as checkpoint:
        assert checkpoint.ternary("q_proj").scale == 0


def test_a_packed_weight_without_its_scale_is_refused(tmp_path):
    tensors = layer()
    del tensors["q_proj.weight_scale"]
    path = write_folder(tmp_path, tensors, quantized())
    with open_checkpoint(path) as checkpoint:
        assert refused(ModelLoadError, checkpoint.ternary, "q_proj") == (
            f"'{path}' has no tensor 'q_proj.weight_scale'; did you mean 'q_proj.weight'"
        )


QUANTIZATIONS = [
    ({}, "quantization_config is None; it must be there, because weights are packed: its linear_class says whether "
         "'weight_scale' multiplies ('autobitlinear') or divides ('bitlinear')"),
    ({"quantization_config": "bitnet"}, "quantization_config is 'bitnet'; it must be an object"),
    ({"quantization_config": {"quant_method": "gptq"}},
     "quantization_config.quant_method is 'gptq'; it must be one of 'bitnet'"),
    (quantized("linear"), "quantization_config.linear_class is 'linear'; it must be one of 'bitlinear', "
                          "'autobitlinear'"),
    (quantized(quantization_mode=1), "quantization_config.quantization_mode is 1; it must be one of 'offline', "
                                     "'online'"),
    (quantized(modules_to_not_convert="lm_head"),
     "quantization_config.modules_to_not_convert is 'lm_head'; it must be null or a list of plain names"),
    (quantized(modules_to_not_convert=["(a+)+$"]),
     "quantization_config.modules_to_not_convert is ['(a+)+$']; it must be null or a list of plain names"),
    (quantized(modules_to_not_convert=[""]),
     "quantization_config.modules_to_not_convert is ['']; it must be null or a list of plain names"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "said"), QUANTIZATIONS)
def test_a_configuration_that_says_nothing_clear_is_refused(tmp_path, config, said):
    path = write_folder(tmp_path, layer(), config)
    with open_checkpoint(path) as checkpoint:
        assert refused(FormatError, checkpoint.ternary, "q_proj") == f"'{file(path, 'config.json')}': {said}"


# ---- which layers are ternary

ONLINE = quantized(quantization_mode="online")
NONE_SAID = "config.json has no quantization_config and model_type 'llama'"

# (the configuration, the layer, why it is an ordinary one, or None for masters)
DECISIONS = [
    ({"model_type": "bitnet"}, "q_proj", None),
    ({"model_type": "bitnet", **quantized("bitlinear")}, "q_proj", None),
    ({"model_type": "llama", "architectures": ["BitnetForCausalLM"]}, "q_proj", None),
    ({"model_type": "llama", "architectures": "BitNetForCausalLM"}, "q_proj", None),
    ({"model_type": "llama", **ONLINE}, "q_proj", None),
    ({"model_type": "llama", **quantized(quantization_mode="online", modules_to_not_convert=["lm_head"])}, "q_proj",
     None),
    ({"model_type": "llama", **quantized(quantization_mode="online", modules_to_not_convert=["embed"])}, "lm_head",
     None),
    ({"model_type": "llama"}, "q_proj", NONE_SAID),
    ({"model_type": "llama", "quantization_config": None}, "q_proj", NONE_SAID),
    ({"architectures": None}, "q_proj", "config.json has no quantization_config and model_type None"),
    ({"model_type": "llama", **quantized()}, "q_proj",
     "quantization_config of config.json says 'autobitlinear' and 'offline', for which weights are packed in U8"),
    ({"model_type": "llama", **quantized("bitlinear", quantization_mode="online")}, "q_proj",
     "quantization_config of config.json says 'bitlinear' and 'online', for which weights are packed in U8"),
    ({"model_type": "bitnet"}, "lm_head", "embeddings and the output head are ordinary"),
    (ONLINE, "model.embed_tokens", "embeddings and the output head are ordinary"),
    ({"model_type": "bitnet", **quantized(modules_to_not_convert=["q_proj"])}, "layers.0.q_proj",
     "quantization_config.modules_to_not_convert lists it"),
    (quantized(quantization_mode="online", modules_to_not_convert=["layers.0"]), "layers.0.q_proj",
     "quantization_config.modules_to_not_convert lists it"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "name", "reason"), DECISIONS)
def test_floats_are_masters_where_the_configuration_says_so(tmp_path, config, name, reason):
    path = write_folder(tmp_path, {f"{name}.weight": ("BF16", bf16([[1, 2, 3], [4, 5, 6]]))}, config)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.is_quantized(name) == (reason is None)
        if reason is None:
            assert checkpoint.ternary(name).kind == "masters"
        else:
            assert refused(ModelLoadError, checkpoint.ternary, name) == (
                f"not a BitNet checkpoint: '{name}.weight' in '{file(path)}' is BF16, and {reason}"
            )


def test_packed_weights_are_ternary_whatever_is_said(tmp_path):
    config = {"model_type": "llama", **quantized(modules_to_not_convert=["q_proj"])}
    with open_checkpoint(write_folder(tmp_path, layer(), config)) as checkpoint:
        assert checkpoint.is_quantized("q_proj")
        assert checkpoint.ternary("q_proj").kind == "packed"
        assert refused(ModelLoadError, checkpoint.is_quantized, "k_proj").startswith(f"'{checkpoint.path}' has no ")
