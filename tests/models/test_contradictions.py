"""A checkpoint that contradicts itself, or asks for a function that no program has, is refused when it is loaded."""

import json

import pytest
from checkpoints import DATA, write_safetensors

from bitnet.config import EngineConfig
from bitnet.errors import BitNetError
from bitnet.formats import open_checkpoint
from bitnet.model import load_model


def change(raw, fields):
    for name, value in fields.items():
        raw[name] = {**raw[name], **value} if isinstance(value, dict) and name in raw else value
    return raw


def write(folder, name, fields, without=()):
    """The checkpoint with other fields in its configuration, and without some tensors."""
    raw = change(json.loads((DATA / name / "config.json").read_text()), fields)
    (folder / "config.json").write_text(json.dumps(raw))
    with open_checkpoint(str(DATA / name)) as checkpoint:
        names = [one for one in checkpoint.names() if one not in without]
        tensors = {one: (checkpoint.info(one).dtype, checkpoint.raw(one)) for one in names}
        write_safetensors(folder / "model.safetensors", tensors)
    return str(folder)


@pytest.mark.parametrize(("name", "fields", "without"), [
    ("llama-packed-bitlinear", {"model_type": "mistral"}, ()),
    ("llama-packed-bitlinear", {"hidden_size": 128}, ()),
    ("llama-packed-bitlinear", {"intermediate_size": 512}, ()),
    ("llama-packed-bitlinear", {"num_hidden_layers": 5}, ()),
    ("llama-packed-bitlinear", {"num_key_value_heads": 4}, ()),
    ("llama-packed-bitlinear", {"vocab_size": 511}, ()),
    ("llama-packed-bitlinear", {"attention_bias": True}, ()),
    ("llama-packed-bitlinear", {"mlp_bias": True}, ()),
    ("llama-packed-bitlinear", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, ()),
    ("llama-packed-bitlinear", {"quantization_config": [1]}, ()),
    ("llama-packed-bitlinear", {}, ("lm_head.weight",)),
    ("llama-packed-bitlinear", {}, ("model.norm.weight",)),
    ("llama-packed-rmsnorm", {"quantization_config": {"rms_norm_eps": "small"}}, ()),
    ("llama-packed-rmsnorm", {"quantization_config": {"rms_norm_eps": -1}}, ()),
    ("llama-packed-rmsnorm", {}, ("model.layers.1.self_attn.k_proj.rms_norm.weight",)),
    ("bitnet-packed-auto", {"tie_word_embeddings": False}, ()),
], ids=str)  # fmt: skip
def test_a_contradiction_is_one_clear_error(tmp_path, name, fields, without):
    with pytest.raises(BitNetError):
        load_model(write(tmp_path, name, fields, without), EngineConfig(num_threads=1))


@pytest.mark.parametrize("name", ["llama-packed-bitlinear", "llama-packed-rmsnorm", "bitnet-packed-auto"])
def test_without_contradiction_it_is_loaded(tmp_path, name):
    assert load_model(write(tmp_path, name, {}), EngineConfig(num_threads=1)).config.num_hidden_layers == 4
