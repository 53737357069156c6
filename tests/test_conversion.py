"""From one format to another and back: the same bits, or a refusal with the reason; whole, or not at all."""

import hashlib
import itertools
import json
import os
import warnings
from pathlib import Path

import gguf_files
import numpy as np
import pytest
from checkpoints import DATA, bf16, layer, quantized, write_folder

import bitnet
from bitnet import ConfigurationError, EngineConfig, FormatError, ModelLoadError
from bitnet._core import packing as packings
from bitnet._core.fusion import fuse
from bitnet.cli import main
from bitnet.formats import open_checkpoint
from bitnet.tokenizer import Tokenizer

VOCAB = DATA.parent / "vocab"
MODELS = ("bitnet-packed-auto", "llama-packed-bitlinear")
WAYS = {
    "bitnet": {"to": "bitnet"}, "bitnet-t5": {"to": "bitnet", "packing": "t5"}, "hugging_face": {"to": "hugging_face"},
    "I2_S": {"to": "gguf"}, "TQ1_0": {"to": "gguf", "gguf_type": "TQ1_0"},
    "TQ2_0": {"to": "gguf", "gguf_type": "TQ2_0"},
}  # fmt: skip
TEMPLATE = {"tokenizer.chat_template": "{{ 'x' }}"}
FLOAT32 = EngineConfig(kv_dtype="float32", head_dtype="float32", num_threads=1)


def opened(path):
    return open_checkpoint(path, "x86")


def content(path):
    """Everything there is: codes and scales of ternary weights, and the numbers of the others."""
    found = {}
    with opened(path) as checkpoint:
        for name in checkpoint.names():
            base = name.removesuffix(".weight")
            if name.endswith((".weight_scale", "_int8", "_int8_scale")):
                continue
            is_weight = name != base and len(checkpoint.matrix_shape(base)) == 2
            if is_weight and checkpoint.is_quantized(base):
                stored = bitnet.conversion._codes(checkpoint, base)
                found[name] = (stored.codes.tobytes(), stored.codes.shape, stored.scale.tobytes(), stored.group_size)
            else:
                numbers = checkpoint.floats(name)
                found[name] = (numbers.tobytes(), numbers.shape)
        config = {name: one for name, one in checkpoint.config.items() if name in SAME}
    return found, config


SAME = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
        "num_key_value_heads", "rms_norm_eps", "model_type", "tie_word_embeddings",
        "max_position_embeddings")  # fmt: skip


def converted(source, target, **how):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bitnet.convert(source, target, i2s_layout="x86", **how)


def half_scales(source, folder):
    """The model with scales that float16 holds."""
    with opened(source) as checkpoint:
        given = {}
        for name in checkpoint.names():
            scale = name.endswith("_scale")
            data = np.array([0.125], np.float32) if scale else checkpoint.raw(name)
            given[name] = ("F32" if scale else checkpoint.info(name).dtype, data)
        config = dict(checkpoint.config)
    return write_folder(folder, given, config)


# ---- the same bits


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(WAYS, 2)))
def test_there_and_back_are_the_same_bits(tmp_path, model, first, second):
    source = half_scales(DATA / model, tmp_path / "source")
    names = {"gguf": "{}.gguf"}
    one, two, three = (str(tmp_path / names.get(WAYS[way]["to"], "{}").format(i))
                       for i, way in enumerate((first, second, first)))  # fmt: skip
    converted(source, one, **WAYS[first])
    converted(one, two, **WAYS[second])
    converted(two, three, **WAYS[first])
    assert content(one) == content(two) == content(three) == content(source)
    if WAYS[first]["to"] == "gguf" and WAYS[second]["to"] == "gguf":
        assert Path(one).read_bytes() == Path(three).read_bytes()


@pytest.mark.parametrize("way", ["bitnet", "bitnet-t5", "hugging_face", "I2_S"])
@pytest.mark.parametrize("model", [*MODELS, "bitnet-packed-bitlinear", "llama-packed-rmsnorm"])
def test_logits_are_the_same_bits(tmp_path, model, way):
    target = str(tmp_path / ("a.gguf" if way == "I2_S" else "a"))
    if model.endswith("rmsnorm") and way == "I2_S":
        with pytest.raises(ModelLoadError, match="cannot hold 'rms_norm': GGUF files have no name for the norms"):
            converted(DATA / model, target, **WAYS[way])
        return
    converted(DATA / model, target, **WAYS[way])
    for config in (FLOAT32, FLOAT32.replace(head_dtype="int8")):
        with bitnet.load(DATA / model, config) as one, bitnet.load(target, config.replace(i2s_layout="x86")) as other:
            assert (one.infer([1, 2, 3, 4]) == other.infer([1, 2, 3, 4])).all()


@pytest.mark.parametrize("packing", ["i2", "t5"])
def test_mapped_and_copied_weights_give_the_same_bits(tmp_path, packing):
    target = str(tmp_path / "a")
    bitnet.convert(DATA / MODELS[0], target, to="bitnet", packing=packing)
    found = {}

    def taken(tag):
        by_tag = bitnet.HybridMemoryPool.instance().get_stats().by_tag
        return by_tag[tag].bytes if tag in by_tag else 0

    for load in ("mmap", "copy"):
        before = {tag: taken(tag) for tag in ("weights", "head")}
        with bitnet.load(target, load=load) as model:
            found[load] = model.infer([1, 2, 3, 4])
            for tag, least in {"weights": model.model.weight_bytes, "head": 512 * 256}.items():
                more = taken(tag) - before[tag]
                assert (more >= least) if load == "copy" else (more < least / 2), (load, tag, more)
    assert (found["mmap"] == found["copy"]).all()


def test_masters_are_quantised_as_they_are_loaded(tmp_path, rng):
    masters = bf16(rng.normal(0, 1, (8, 64)))
    tensors = {
        "model.layers.0.mlp.up_proj.weight": ("BF16", masters), "model.norm.weight": ("F16", np.ones(4, np.float16)),
    }  # fmt: skip
    config = {"model_type": "bitnet", "hidden_act": "relu2", "vocab_size": 8, "hidden_size": 64, "intermediate_size": 8,
              "num_hidden_layers": 1, "num_attention_heads": 2, "tie_word_embeddings": True}  # fmt: skip
    tensors["model.embed_tokens.weight"] = ("BF16", bf16(rng.normal(0, 1, (8, 64))))
    source = write_folder(tmp_path / "source", tensors, config)
    converted(source, tmp_path / "a", to="hugging_face")
    codes, scale = bitnet.quantize_weights((masters.astype(np.uint32) << 16).view(np.float32))
    with open_checkpoint(tmp_path / "a") as found:
        stored = bitnet.conversion._codes(found, "model.layers.0.mlp.up_proj")
        assert (stored.codes == codes).all()
        assert stored.scale == scale
        # Of one type, which holds all of them.
        assert found.info("model.norm.weight").dtype == found.info("model.embed_tokens.weight").dtype == "BF16"
        assert found.config["torch_dtype"] == "bfloat16"


def groups(tmp_path, rng, scales, cols=256):
    """A small GGUF file whose down projection has several scales."""
    metadata, tensors = gguf_files.tiny("llama")
    codes = rng.integers(-1, 2, (128, cols)).astype(np.int8)
    tensors["blk.0.ffn_down.weight"] = gguf_files.q2_0(codes, scales)
    return gguf_files.write_gguf(tmp_path / "source.gguf", metadata, tensors)


def test_scales_of_groups_stay_where_the_format_has_them(tmp_path, rng):
    source = groups(tmp_path, rng, np.arange(512) % 5 + 1)
    converted(source, tmp_path / "a")
    assert content(tmp_path / "a")[0] == content(source)[0]
    for how, reason in (({"to": "hugging_face"}, "it has 512 scales, and the format has one for a weight"),
                        ({"to": "gguf"}, "it has 512 scales, and I2_S one for a weight")):  # fmt: skip
        with pytest.raises(ModelLoadError, match=f"cannot hold 'model.layers.0.mlp.down_proj': {reason}"):
            converted(source, tmp_path / "b", **how)
    assert sorted(os.listdir(tmp_path)) == ["a", "source.gguf"]


# ---- mapped weights


def test_weights_are_used_where_they_are_mapped(tmp_path):
    converted(DATA / "llama-packed-bitlinear", tmp_path / "a")
    file = str(tmp_path / "a" / "model.safetensors")
    with open_checkpoint(tmp_path / "a") as found:
        stored = {name.removesuffix(".weight"): found.ternary(name.removesuffix(".weight"))
                  for name in found.names() if name.endswith("_proj.weight")}  # fmt: skip
        weights = {
            name: packings.view_packed_bytes(one.data, one.rows, one.cols, one.scale, one.packing)
            for name, one in stored.items()
        }
        at = "model.layers.1.self_attn."
        parts = [weights[f"{at}{letter}_proj"] for letter in "qkv"]
        together = fuse(parts)  # one weight, of which nothing is copied
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(file)]
        spans = [tuple(int(end, 16) for end in one[0].split("-")) for one in maps]
        for weight in (*weights.values(), together):
            begin = weight.packed_bytes.ctypes.data
            assert any(first <= begin and begin + weight.nbytes <= last for first, last in spans)
            assert begin % 64 == 0
        assert (together.unpack() == np.concatenate([part.unpack() for part in parts])).all()
        assert together.scale.shape == (512,)
    assert together.packed_bytes.sum() > 0  # the mapping lives as long as what is in it


@pytest.mark.parametrize("way", ["bitnet", "bitnet-t5", "hugging_face", "I2_S"])
def test_what_is_written_is_inspected(tmp_path, way):
    converted(DATA / "bitnet-packed-auto", tmp_path / "a", **WAYS[way])
    found = bitnet.inspect_checkpoint(tmp_path / "a")
    assert (found["problems"], found["missing"], found["unused"], found["loads"]) == ([], [], [], True)
    assert found["totals"]["ternary_parameters"] == 4 * 786432
    assert found["scales"]["count"] == 28


def test_a_file_that_says_something_else_of_its_weights_is_refused(tmp_path):
    converted(DATA / "llama-packed-bitlinear", tmp_path / "a")
    path = tmp_path / "a" / "model.safetensors"
    whole = path.read_bytes()
    at = '"model.layers.0.mlp.up_proj":"'
    start = whole.index(at.encode()) + len(at)
    old = whole[start : whole.index(b'"', start)].decode()
    packing, rows, cols, group = old.split()
    for new, error, sentence in (
        (f"{packing} {rows} {cols} 8", FormatError, "what is said of 'model.layers.0.mlp.up_proj' is"),
        (f"{packing} {int(rows) - 100} {cols} {group}", bitnet.ShapeError, r"data has shape \(\d+,\); it must be"),
        (f"zz {rows} {cols} {group}", bitnet.KernelError, "no packing is known as 'zz'"),
    ):
        path.write_bytes(whole.replace((at + old).encode(), (at + new.ljust(len(old))[: len(old)]).encode()))
        if len(new) != len(old) and " " * (len(old) - len(new)):
            error, sentence = FormatError, "what is said of 'model.layers.0.mlp.up_proj'"
        with pytest.raises(error, match=sentence):
            bitnet.load(tmp_path / "a")
    path.write_bytes(whole.replace(b'"panels":"2"', b'"panels":"1"'))
    with pytest.raises(FormatError, match="the version of the panels is '1'; it must be 2; convert it again"):
        bitnet.load(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    config["quantization_config"]["activations"] = "int4"
    path.write_bytes(whole)
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    with open_checkpoint(tmp_path / "a") as found, pytest.raises(FormatError, match="it must be 'int8' or 'float32'"):
        found.activations  # noqa: B018


# ---- whole or not at all


class Stop(Exception):
    pass


def stopping(done, total, name):
    if done > total // 2:
        raise Stop


@pytest.mark.parametrize("to", ["bitnet", "hugging_face", "gguf"])
def test_an_interrupted_conversion_leaves_nothing(tmp_path, to):
    for stop in (Stop, KeyboardInterrupt):
        def progress(done, total, name, stop=stop):
            if done > total // 2:
                raise stop

        with pytest.raises(stop):
            converted(DATA / MODELS[0], tmp_path / "a", to=to, progress=progress)
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("to", ["bitnet", "gguf"])
def test_what_is_there_is_replaced_only_if_that_is_allowed_and_only_by_a_whole_one(tmp_path, to):
    target = tmp_path / "a"
    converted(DATA / MODELS[0], target, to=to)
    before = content(target)
    with pytest.raises(ModelLoadError, match=r"a' exists already; give another name, or allow that it is replaced"):
        converted(DATA / MODELS[1], target, to=to)
    with pytest.raises(Stop):
        converted(DATA / MODELS[1], target, to=to, force=True, progress=stopping)
    assert content(target) == before
    converted(DATA / MODELS[1], target, to=to, force=True)
    assert content(target) == content(DATA / MODELS[1])
    assert sorted(os.listdir(tmp_path)) == (["a", "a.sha256"] if to == "gguf" else ["a"])


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ModelLoadError, match=r"cannot write '.*/none/a': No such file or directory"):
        converted(DATA / MODELS[0], tmp_path / "none" / "a")


def test_checksums_are_those_of_the_files(tmp_path):
    for to in ("bitnet", "gguf"):
        found = converted(DATA / MODELS[0], tmp_path / to, to=to)
        folder = tmp_path if to == "gguf" else tmp_path / to
        for name, digest in found["sha256"].items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
        assert found["bytes"] == sum((folder / name).stat().st_size for name in found["sha256"])


@pytest.mark.parametrize("name", ["to", "gguf_type"])
def test_words_that_nobody_knows_are_refused(tmp_path, name):
    with pytest.raises(ConfigurationError, match=f"{name} is 'x'; it must be one of '"):
        converted(DATA / MODELS[0], tmp_path / "a", **{name: "x"})


def test_damaged_codes_are_refused(tmp_path):
    tensors = layer(name="model.layers.0.mlp.up_proj")
    tensors["model.layers.0.mlp.up_proj.weight"][1][0, 0] = 255
    tensors["model.embed_tokens.weight"] = ("F32", np.ones((4, 4), np.float32))
    config = {"model_type": "bitnet", "vocab_size": 4, "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1,
              "num_attention_heads": 1, "tie_word_embeddings": True, **quantized()}  # fmt: skip
    with pytest.raises(FormatError, match=r"a code of 'model\.layers\.0\.mlp\.up_proj' is 3; it must be 0, 1 or 2"):
        converted(write_folder(tmp_path / "s", tensors, config), tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "how", "reason"),
    [({"hidden_act": "gelu"}, {}, "'bitnet': no architecture of GGUF files means this family with hidden_act 'gelu'"),
     ({"tie_word_embeddings": False}, {}, "'lm_head': the architecture 'bitnet-b1.58' takes the embedding as the head"),
     ({}, {}, "'model.layers.0.mlp.up_proj': it has 4 columns, and I2_S blocks of 128"),
     ({}, {"gguf_type": "TQ1_0"}, "'model.layers.0.mlp.up_proj': it has 4 columns, and TQ1_0 blocks of 256"),
     ({"extra": True}, {}, "'strange.weight': GGUF files have no name for it"),
     ({"rows": 6}, {"to": "hugging_face"}, "'model.layers.0.mlp.up_proj': it has 6 rows, and four are packed")],
)  # fmt: skip
def test_what_a_format_cannot_hold_is_refused(tmp_path, change, how, reason):
    tensors = layer(name="model.layers.0.mlp.up_proj")
    if change.pop("extra", False):
        tensors = {"strange.weight": ("F32", np.ones(4, np.float32)), **tensors}
    if rows := change.pop("rows", 0):
        tensors = {"model.layers.0.mlp.up_proj.weight": ("F32", np.ones((rows, 4), np.float32))}
    config = {"model_type": "bitnet", "vocab_size": 4, "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1,
              "num_attention_heads": 1, "tie_word_embeddings": True, **quantized(), **change}  # fmt: skip
    with pytest.raises(ModelLoadError, match=f"the format cannot hold {reason}"):
        converted(write_folder(tmp_path / "s", tensors, config), tmp_path / "a", **{"to": "gguf", **how})


def test_rounding_of_scales_has_to_be_allowed(tmp_path):
    source = DATA / "llama-packed-bitlinear"
    with pytest.raises(ModelLoadError, match=r"TQ2_0 would round its scale, 0\.0.*, to float16; allow"):
        converted(source, tmp_path / "a", to="gguf", gguf_type="TQ2_0")
    converted(source, tmp_path / "a", to="gguf", gguf_type="TQ2_0", round_scales=True)
    name = "model.layers.0.self_attn.q_proj.weight"
    own, found = content(source)[0][name], content(tmp_path / "a")[0][name]
    assert own[0] == found[0]
    assert np.frombuffer(own[2], np.float32).astype(np.float16) == np.frombuffer(found[2], np.float32)


# ---- vocabularies


def with_vocabulary(tmp_path, name):
    """A small GGUF model with one of the vocabularies of tests/data."""
    from bitnet.formats.gguf_file import GGUFFile

    found = GGUFFile(str(VOCAB / f"ggml-vocab-{name}.gguf")).metadata
    kept = {key: [one.item() for one in value] if isinstance(value, np.ndarray) else value
            for key, value in found.items() if key.startswith("tokenizer.")}  # fmt: skip
    count = len(kept["tokenizer.ggml.tokens"])
    table = gguf_files.f32(np.zeros((count, 128), np.float32))
    metadata, tensors = gguf_files.tiny("llama", tensors={"token_embd.weight": table})
    return gguf_files.write_gguf(tmp_path / "v.gguf", {**metadata, **kept, **TEMPLATE}, tensors)


@pytest.mark.parametrize("name", ["llama-bpe-reduced", "qwen2-reduced", "gpt-2-reduced", "llama-spm"])
def test_a_vocabulary_goes_along_from_file_to_folder_to_file(tmp_path, name):
    source = with_vocabulary(tmp_path, name)
    for to in ("hugging_face", "bitnet"):
        assert converted(source, tmp_path / to, to=to)["notes"] == []
    assert converted(tmp_path / "hugging_face", tmp_path / "b.gguf", to="gguf")["notes"] == []
    assert converted(tmp_path / "bitnet", tmp_path / "c.gguf", to="gguf")["notes"] == []
    texts = (VOCAB / "texts.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    own = Tokenizer.from_gguf(source)
    for path in ("hugging_face", "b.gguf", "c.gguf"):
        other = Tokenizer.from_pretrained(tmp_path / path)
        assert [other.encode(text) for text in texts] == [own.encode(text) for text in texts]
        assert other.eos_token_ids == own.eos_token_ids
        with open_checkpoint(tmp_path / path) as found:
            assert found.chat_template == "{{ 'x' }}"


def test_a_vocabulary_that_has_no_name_is_left_out_and_that_is_said(tmp_path):
    import tokenizers

    converted(DATA / MODELS[0], tmp_path / "a", to="hugging_face")
    path = tmp_path / "a" / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")).save(str(path))
    (note,) = converted(tmp_path / "a", tmp_path / "b.gguf", to="gguf")["notes"]
    assert note == (f"without a vocabulary: '{path}': the model of the tokenizer is 'WordLevel'; it must be 'BPE', "
                    "which GGUF files have names for")  # fmt: skip
    tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, [])).save(str(path))
    (note,) = converted(tmp_path / "a", tmp_path / "c.gguf", to="gguf")["notes"]
    assert note.startswith(f"without a vocabulary: '{path}': how the tokenizer cuts words is (); it must be a way")


# ---- the command


def test_the_command_writes_and_says_what(tmp_path, capsys):
    target = str(tmp_path / "model.gguf")
    assert main(["convert", str(DATA / MODELS[0]), target]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "note: without a vocabulary: there is no tokenizer.json"
    assert out[1] == f"{hashlib.sha256(Path(target).read_bytes()).hexdigest()}  model.gguf"
    assert out[2] == f"{target}: {os.path.getsize(target):,} bytes"
    assert main(["convert", str(DATA / MODELS[0]), target]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["convert", str(DATA / MODELS[0]), target, "--force", "--quiet", "--gguf-type", "TQ2_0"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["convert", target, str(tmp_path / "folder"), "--packing", "t5"]) == 0
    with open_checkpoint(tmp_path / "folder") as found:
        assert (found.format, found.ternary("model.layers.0.mlp.up_proj").packing) == ("bitnet", "t5")
    assert main(["convert", target, str(tmp_path / "x"), "--packing", "t6"]) == 2
