"""GGUF checkpoints: known answers, names, and what a file does not say."""

import json
import warnings

import gguf_files
import numpy as np
import pytest
from checkpoints import DATA
from gguf_files import f32, gguf_bytes, tiny, write_gguf

import bitnet
from bitnet import ConfigurationError, EngineConfig, FormatError, ModelLoadError
from bitnet.formats import open_checkpoint
from bitnet.formats.gguf import LAYER

GGUF = DATA.parent / "gguf"
FLOAT32 = EngineConfig(kv_dtype="float32", head_dtype="float32", num_threads=1)
BOUND = 1e-4  # of the issue; the answers were computed in float32 too, in other orders of addition
OURS = {ours: theirs for theirs, ours in LAYER.items()}


def theirs(name):
    """The GGUF name of a tensor of a Hugging Face checkpoint."""
    top = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
           "lm_head.weight": "output.weight"}  # fmt: skip
    if name in top:
        return top[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{OURS[rest.removesuffix('.weight')]}.weight"


def permuted(w, heads):
    """The rows of queries or keys as llama.cpp wants them: the formula of its converter."""
    return w.reshape(heads, 2, -1, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def metadata_of(config, arch):
    return {
        "general.architecture": arch, f"{arch}.vocab_size": config["vocab_size"],
        f"{arch}.context_length": config["max_position_embeddings"], f"{arch}.embedding_length": config["hidden_size"],
        f"{arch}.block_count": config["num_hidden_layers"], f"{arch}.feed_forward_length": config["intermediate_size"],
        f"{arch}.attention.head_count": config["num_attention_heads"],
        f"{arch}.attention.head_count_kv": config["num_key_value_heads"],
        f"{arch}.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        f"{arch}.rope.freq_base": float(config.get("rope_theta") or config["rope_parameters"]["rope_theta"]),
    }  # fmt: skip


def converted(folder, arch, store):
    """The checkpoint of a Hugging Face folder as the bytes of a GGUF file; `store` writes a weight."""
    with open_checkpoint(DATA / folder) as source:
        tensors = {}
        for name in source.names():
            if name.endswith("_scale"):
                continue
            if not name.endswith("_proj.weight"):
                tensors[theirs(name)] = f32(source.floats(name))
                continue
            stored = source.ternary(name.removesuffix(".weight"))
            codes = np.concatenate([(stored.data >> 2 * k & 3).astype(np.int8) - np.int8(1) for k in range(4)])
            heads = {"q": "num_attention_heads", "k": "num_key_value_heads"}.get(name[-len("q_proj.weight")])
            if arch == "llama" and heads:
                codes = permuted(codes, source.config[heads])
            tensors[theirs(name)] = store(codes, stored.scale)
        return gguf_bytes(metadata_of(source.config, arch), tensors)


def loaded(path, config=FLOAT32, notes=None):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = bitnet.load(path, config)
    if notes is not None:
        assert [str(one.message) for one in caught if one.category is UserWarning] == notes
    return model


def away(path, folder, **how):
    with loaded(path, FLOAT32.replace(**how)) as model:
        logits = model.infer(np.load(DATA / folder / "prompt.npy"))
    return np.abs(logits - np.load(DATA / folder / "logits_float32.npy")).max()


# ---- known answers


@pytest.mark.parametrize(
    ("name", "folder", "layout"),
    [("bitnet-packed-auto-i2_s-x86", "bitnet-packed-auto", "auto"),
     ("bitnet-packed-auto-i2_s-x86", "bitnet-packed-auto", "x86"),
     ("llama-packed-bitlinear-i2_s-rows4", "llama-packed-bitlinear", "rows4")],
)  # fmt: skip
def test_files_of_others_have_the_known_logits(isa, name, folder, layout):
    assert away(GGUF / f"{name}.gguf", folder, i2s_layout=layout) < BOUND


@pytest.mark.parametrize("layout", ["x86", "arm", "rows4"])
@pytest.mark.parametrize(("folder", "arch"), [
    ("bitnet-packed-auto", "bitnet-b1.58"), ("bitnet-packed-auto", "bitnet-25"), ("llama-packed-bitlinear", "llama"),
])  # fmt: skip
def test_a_model_has_the_known_logits_in_every_layout(tmp_path, folder, arch, layout):
    path = tmp_path / "model.gguf"
    path.write_bytes(converted(folder, arch, lambda codes, scale: gguf_files.i2_s(codes, scale, layout)))
    assert away(path, folder, i2s_layout=layout) < BOUND
    other = {"x86": "arm", "arm": "rows4", "rows4": "x86"}[layout]
    assert away(path, folder, i2s_layout=other) > 1  # the layouts do differ


@pytest.mark.parametrize("scale", [0.25, 0.5])
def test_blocks_of_ternary_types_are_the_same_function_as_one_scale(tmp_path, scale):
    # A scale that float16 holds, so that both files hold the same numbers.
    stores = {
        "i2_s": lambda codes, _: gguf_files.i2_s(codes, scale),
        "tq2_0": lambda codes, _: gguf_files.tq2_0(codes, scale),
    }
    logits = []
    for name, store in stores.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(converted("llama-packed-bitlinear", "llama", store))
        with loaded(path) as model:
            logits.append(model.infer([1, 2, 3]))
    assert (logits[0] == logits[1]).all()


def test_the_weights_of_a_file_of_others_are_those_of_its_model():
    path = GGUF / "bitnet-packed-auto-bitnet-TQ1_0.gguf"
    with open_checkpoint(path) as found, open_checkpoint(DATA / "bitnet-packed-auto") as source:
        assert set(found.names()) == {name for name in source.names() if not name.endswith("_scale")}
        for name in found.names():
            if not name.endswith("_proj.weight"):
                assert (found.floats(name) == source.floats(name)).all()
                continue
            ours, own = found.ternary(name.removesuffix(".weight")), source.ternary(name.removesuffix(".weight"))
            codes = np.concatenate([(own.data >> 2 * k & 3).astype(np.int8) - 1 for k in range(4)])
            assert (ours.codes() == codes).all()
            assert ours.scale == np.float16(own.scale)  # one for all, rounded
            assert (found.floats(name) == codes * np.float32(ours.scale)).all()


def test_the_logits_of_tq_weights_are_those_of_the_same_weights_in_numpy(tmp_path):
    # As function A: activations rounded to 8 bits, not llama.cpp's blocks of 256.
    path = GGUF / "bitnet-packed-auto-bitnet-TQ1_0.gguf"
    with open_checkpoint(path) as found:
        scales = {name: float(found.ternary(name.removesuffix(".weight")).scale)
                  for name in found.names() if name.endswith("_proj.weight")}  # fmt: skip
    scaled = iter(scales.items())

    def rescaled(codes, _):
        return gguf_files.i2_s(codes, next(scaled)[1])

    with open_checkpoint(DATA / "bitnet-packed-auto") as source:
        order = [name for name in source.names() if name in scales]
    scaled = iter([(name, scales[name]) for name in order])
    same = tmp_path / "same.gguf"
    same.write_bytes(converted("bitnet-packed-auto", "bitnet", rescaled))
    prompt = np.load(DATA / "bitnet-packed-auto" / "prompt.npy")
    with loaded(path) as one, loaded(same) as other:
        assert (one.infer(prompt) == other.infer(prompt)).all()
        assert one.model.config.hidden_act == "silu"


# ---- what a file says


def written(tmp_path, *args, extra=None, **how):
    metadata, tensors = tiny(*args, **how)
    return write_gguf(tmp_path / "model.gguf", {**metadata, **(extra or {})}, tensors)


def test_metadata_become_a_configuration(tmp_path):
    more = {"attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 500000.0, "rope.dimension_count": 32,
            "rope.scaling.type": "linear", "rope.scaling.factor": 1.0}  # fmt: skip
    extra = {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}
    with open_checkpoint(written(tmp_path, **more, extra=extra)) as checkpoint:
        assert checkpoint.config == {
            "model_type": "bitnet", "architectures": ["BitNetForCausalLM"], "vocab_size": 96, "hidden_size": 128,
            "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 32, "hidden_act": "relu2", "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
            "max_position_embeddings": 64, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
        }  # fmt: skip


def test_the_head_is_the_embedding_unless_the_family_has_its_own(tmp_path):
    head = {"output.weight": f32(np.zeros((96, 128)))}
    for arch, is_tied in (("bitnet-b1.58", True), ("bitnet", True), ("llama", False)):
        with open_checkpoint(written(tmp_path, arch, tensors=head)) as checkpoint:
            assert checkpoint.config["tie_word_embeddings"] is is_tied
    with open_checkpoint(written(tmp_path, "llama")) as checkpoint:
        assert checkpoint.config["tie_word_embeddings"] is True


@pytest.mark.parametrize(
    ("arch", "vocabulary", "act", "forced"),
    [("bitnet", "gpt2", "silu", "relu2"), ("bitnet-25", "gpt2", "relu2", "silu"),
     ("bitnet-b1.58", "gpt2", "relu2", "silu"), ("bitnet-b1.58", "llama", "silu", "relu2")],
)  # fmt: skip
def test_the_gate_is_the_architectures_but_for_sentencepiece_and_can_be_given(tmp_path, arch, vocabulary, act, forced):
    path = written(tmp_path, arch, extra={"tokenizer.ggml.model": vocabulary})
    with loaded(path) as model, loaded(path, FLOAT32.replace(hidden_act=forced)) as other:
        assert (model.model.config.hidden_act, other.model.config.hidden_act) == (act, forced)
        assert (model.infer([1, 2]) != other.infer([1, 2])).any()
    with open_checkpoint(path) as checkpoint:
        assert any("1bitLLM's models have" in note for note in checkpoint.notes) is (vocabulary == "llama")


def test_a_scale_tensor_multiplies(tmp_path):
    scale = {"blk.0.attn_q.scale": f32(np.array([3.0]))}
    with open_checkpoint(written(tmp_path, tensors=scale)) as checkpoint:
        assert checkpoint.ternary("model.layers.0.self_attn.q_proj").scale == np.float32(0.1) * np.float32(3)
        assert checkpoint.ternary("model.layers.1.self_attn.q_proj").scale == np.float32(0.1)


def test_scales_of_blocks_are_merged_as_far_as_they_are_one(tmp_path, rng):
    codes = rng.integers(-1, 2, (128, 256)).astype(np.int8)
    codes[:, 0] = 1
    cases = {
        "one": (gguf_files.tq2_0(codes, 0.5), np.float32(0.5), None),
        "rows": (gguf_files.tq2_0(codes, np.arange(1, 129)), np.arange(1, 129, dtype=np.float32), None),
        "groups": (gguf_files.q2_0(codes, np.arange(512) % 7 + 1), (np.arange(512) % 7 + 1).reshape(128, 4), 64),
        "pairs": (gguf_files.q2_0(codes, np.repeat(np.arange(256) % 7 + 1, 2)),
                  (np.arange(256) % 7 + 1).reshape(128, 2), 128),
    }  # fmt: skip
    for stored, scale, group_size in cases.values():
        path = written(tmp_path, "qwen3", tensors={"blk.0.ffn_down.weight": stored})
        with open_checkpoint(path) as checkpoint:
            found = checkpoint.ternary("model.layers.0.mlp.down_proj")
            assert (found.scale == scale).all()
            assert np.shape(found.scale) == np.shape(scale)
            assert found.group_size == group_size
            numbers = checkpoint.floats("model.layers.0.mlp.down_proj.weight")
            assert (found.codes() == codes).all()
            wide = found.scale if group_size is None else np.repeat(found.scale, group_size, 1)
            assert (numbers == codes * (wide[:, None] if wide.ndim == 1 else wide)).all()


def test_a_block_of_zeros_needs_no_scale(tmp_path):
    codes = np.ones((128, 256), np.int8)
    codes[3] = 0
    scales = np.full(128, 0.5)
    scales[3] = 0
    path = written(tmp_path, tensors={"blk.0.ffn_down.weight": gguf_files.tq2_0(codes, scales)})
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.ternary("model.layers.0.mlp.down_proj").scale == 0.5


@pytest.mark.parametrize(
    ("numbers", "kind"),
    [(lambda codes: codes * 0.5, "codes"), (lambda codes: codes + 0.25, "masters"),
     (lambda codes: codes * (1 + np.arange(128) // 64), "codes")],
)  # fmt: skip
def test_floats_are_codes_if_they_are_ternary_as_they_stand_and_masters_if_not(tmp_path, rng, numbers, kind):
    codes = rng.integers(-1, 2, (128, 128)).astype(np.int8)
    given = numbers(codes).astype(np.float32)
    with open_checkpoint(written(tmp_path, tensors={"blk.0.attn_q.weight": f32(given)})) as checkpoint:
        found = checkpoint.ternary("model.layers.0.self_attn.q_proj")
        assert found.kind == kind
        if kind == "codes":
            assert (found.codes() == codes).all()
            assert np.size(found.scale) in (1, 256)


def test_ordinary_numbers_of_another_family_are_refused(tmp_path, rng):
    for kind, content in (("F32", f32(rng.normal(0, 1, (128, 128)))), ("Q8_0", ("Q8_0", (128, 128), bytes(512 * 34)))):
        path = written(tmp_path, "llama", tensors={"blk.0.attn_q.weight": content})
        with pytest.raises(
            ModelLoadError, match=f"not a BitNet checkpoint: 'blk.0.attn_q.weight' in .* is {kind}, and only"
        ):
            loaded(path)


def test_ordinary_numbers_can_be_run_as_they_are(tmp_path, rng):
    codes, scales = rng.integers(-127, 128, (512, 32)).astype(np.int8), rng.uniform(0.01, 0.02, 512).astype(np.float16)
    blocks = np.concatenate([scales.view(np.uint8).reshape(-1, 2), codes.view(np.uint8)], 1)
    numbers = (codes * scales.astype(np.float32)[:, None]).reshape(128, 128)
    found, names = [], ("blk.0.attn_q.weight", "blk.1.attn_output.weight")
    for one in (("Q8_0", (128, 128), blocks.tobytes()), f32(numbers)):
        path = written(tmp_path, "llama", tensors=dict.fromkeys(names, one))
        with loaded(path, FLOAT32.replace(weights="float", i2s_layout="x86")) as model:
            assert model.model.program.kinds.count("dense") == 2
            found.append(model.infer([1, 2, 3]))
    assert (found[0] == found[1]).all()
    assert np.isfinite(found[0]).all()


# ---- what a file does not say


def test_a_doubt_about_the_layout_is_told_once_and_not_when_it_is_given(tmp_path):
    path = written(tmp_path)
    note = ("the weights do not tell in which layout their I2_S is; taken for 'x86', as of all official files. If the "
            "model answers nonsense, try i2s_layout 'arm' or 'rows4'")  # fmt: skip
    loaded(path, notes=[f"'{path}': {note}"]).close()
    loaded(path, FLOAT32.replace(i2s_layout="x86"), notes=[]).close()
    assert bitnet.inspect_checkpoint(path)["notes"] == [note]


def trained(rng, layout):
    """Weights whose columns have as many zeros as a gain says: what training makes of them."""
    gain, codes = rng.uniform(0.5, 1.5, 1024), np.zeros((512, 1024), np.int8)
    codes[:] = np.where(rng.random(codes.shape) < 0.4 + 0.3 * (gain - 1), 0, rng.choice([-1, 1], codes.shape))
    return {"blk.0.ffn_norm.weight": f32(gain), "blk.0.ffn_gate.weight": gguf_files.i2_s(codes, 0.1, layout)}, codes


@pytest.mark.parametrize("layout", ["x86", "arm", "rows4"])
def test_the_layout_is_detected_from_the_weights_of_a_file(tmp_path, rng, layout):
    tensors, codes = trained(rng, layout)
    with open_checkpoint(written(tmp_path, tensors=tensors)) as checkpoint:
        assert (checkpoint.ternary("model.layers.0.mlp.gate_proj").codes() == codes).all()
        assert checkpoint.notes == ([] if layout == "x86" else [f"I2_S in the layout '{layout}', as the weights tell"])


def test_a_layout_that_nobody_knows_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="i2s_layout is 'x'; it must be one of 'auto', 'x86', 'arm', 'rows4'"):
        open_checkpoint(written(tmp_path), "x")


def test_the_chat_template_of_2b4t_replaces_the_wrong_one_of_its_file(tmp_path):
    llama3 = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["<|begin_of_text|>", "<|eot_id|>", "a"],
              "tokenizer.ggml.eos_token_id": 2}  # fmt: skip
    for template, wrong in (("Human: {{ x }} BITNETAssistant: ", True), ("{{ 'mine' }}", False), (None, True)):
        extra = llama3 | ({"tokenizer.chat_template": template} if template else {})
        with open_checkpoint(written(tmp_path, extra=extra)) as checkpoint:
            assert ("Assistant: " in checkpoint.chat_template) is wrong
            assert ("mine" in checkpoint.chat_template) is not wrong
            assert "BITNET" not in checkpoint.chat_template
            assert checkpoint.generation_config == {"eos_token_id": [2, 1]}


def test_a_model_runs_without_a_vocabulary_that_can_be_used(tmp_path):
    extra = {"tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": ["a"]}
    with loaded(written(tmp_path, extra=extra)) as model:
        assert model.model.tokenizer is None
        assert np.isfinite(model.infer([1])).all()
        with pytest.raises(ModelLoadError, match="has no tokenizer that can be used; give token ids instead"):
            model.infer("text")


def test_text_goes_in_and_comes_out(tmp_path):
    tokens = [chr(c) for c in range(33, 127)] + ["Ġ", "<|begin_of_text|>"]
    extra = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": [],
             "tokenizer.ggml.token_type": [1] * 95 + [3], "tokenizer.ggml.bos_token_id": 95}  # fmt: skip
    with loaded(written(tmp_path, extra=extra)) as model:
        assert model.model.encode("a b").tolist() == [95, 64, 94, 65]
        done = model.generate("a b", max_new_tokens=8)
        assert len(done.tokens) == 8
        assert done.text == "".join(" " if id == 94 else tokens[id] for id in done.tokens if id < 95)


# ---- files and parts


def split(tmp_path, count=2, **change):
    metadata, tensors = tiny()
    names = sorted(tensors)
    paths = []
    for part in range(count):
        mine = {name: tensors[name] for name in names[part::count]}
        said = {"split.no": part, "split.count": count, "split.tensors.count": len(tensors), **change}
        paths.append(write_gguf(tmp_path / f"m-{part + 1:05d}-of-{count:05d}.gguf", {**metadata, **said}, mine))
    return paths


def test_parts_are_one_model_whichever_is_named(tmp_path):
    paths = split(tmp_path)
    whole = loaded(written(tmp_path / ".."))
    for path in (*paths, tmp_path):
        with loaded(path) as model:
            assert (model.infer([1, 2, 3]) == whole.infer([1, 2, 3])).all()


def test_parts_that_do_not_belong_together_are_refused(tmp_path):
    paths = split(tmp_path)
    (tmp_path / "other.gguf").write_bytes((tmp_path / "m-00001-of-00002.gguf").read_bytes())
    with pytest.raises(FormatError, match=r"it must be one that ends in -00001-of-00002\.gguf, because it has 2 parts"):
        open_checkpoint(tmp_path / "other.gguf")
    (tmp_path / "m-00002-of-00002.gguf").write_bytes((tmp_path / "m-00001-of-00002.gguf").read_bytes())
    with pytest.raises(FormatError, match=r"split\.no is 0; it must be 1"):
        open_checkpoint(paths[0])
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(ModelLoadError, match=r"m-00002-of-00002\.gguf': No such file"):
        open_checkpoint(paths[0])
    paths = split(tmp_path, **{"split.tensors.count": 99})
    with pytest.raises(FormatError, match=r"split\.tensors\.count is 99; it must be 24, the tensors of all parts"):
        open_checkpoint(paths[0])


def test_a_folder_with_two_models_is_refused(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        write_gguf(tmp_path / name, *tiny())
    with pytest.raises(FormatError, match=r"has 2 models, 'a\.gguf', 'b\.gguf'; give the path of one of them"):
        open_checkpoint(tmp_path)


def test_a_file_of_any_name_is_known_by_its_first_bytes(tmp_path):
    path = tmp_path / "blob"
    path.write_bytes(gguf_bytes(*tiny()))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format == "gguf"


@pytest.mark.parametrize(
    ("more", "arch", "sentence"),
    [({}, "mamba", "general.architecture is 'mamba'; it must be one of bitnet, bitnet-25, bitnet-b1.58, llama"),
     ({"block_count": None}, "llama", "llama.block_count is None; it must be there"),
     ({"block_count": 2.0}, "llama", "llama.block_count is 2.0; it must be of the type int, one value for all layers"),
     ({"attention.head_count": [4, 2]}, "llama", "llama.attention.head_count is array.*; it must be of the type int"),
     ({"attention.head_count": 0}, "llama", "llama.attention.head_count is 0; it must be above 0"),
     ({"rope.dimension_count": 16, "attention.key_length": 32}, "llama", "rope.dimension_count is 16; it must be 32"),
     ({"attention.value_length": 16}, "llama", "attention.value_length is 16; it must be 32, the width of a head")],
)  # fmt: skip
def test_metadata_that_do_not_fit_are_refused(tmp_path, more, arch, sentence):
    with pytest.raises(FormatError, match=sentence):
        open_checkpoint(written(tmp_path, arch, **more))


@pytest.mark.parametrize(
    ("more", "tensors", "sentence"),
    [({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, {}, "rope_scaling is 'yarn'; it must be absent"),
     ({}, {"rope_freqs.weight": f32(np.ones(16))}, "rope_scaling is 'llama3'; it must be absent or of the type"),
     ({}, {"blk.0.attn_q.bias": f32(np.ones(128))}, "attention_bias is True; it must be false")],
)  # fmt: skip
def test_functions_that_are_not_computed_are_refused(tmp_path, more, tensors, sentence):
    with pytest.raises(ModelLoadError, match=sentence):
        loaded(written(tmp_path, "llama", tensors=tensors, **more))


def test_values_given_for_each_layer_may_be_one(tmp_path):
    with open_checkpoint(written(tmp_path, **{"attention.head_count": [4, 4]})) as checkpoint:
        assert checkpoint.config["num_attention_heads"] == 4


def test_inspection_tells_what_a_file_has(tmp_path):
    found = bitnet.inspect_checkpoint(written(tmp_path, without=["blk.1.ffn_up.weight"]))
    assert json.loads(json.dumps(found)) == found
    assert found["format"] == "gguf"
    assert found["missing"] == ["model.layers.1.mlp.up_proj.weight"]
    assert not found["loads"]
    weights = {one["name"]: one for one in found["tensors"]}
    up = weights["model.layers.0.mlp.up_proj.weight"]
    assert (up["dtype"], up["kind"], up["parameters"], up["shape"]) == ("I2_S", "packed ternary", 256 * 128, [256, 128])
    assert up["scale"] == np.float32(0.1)
    assert found["totals"]["ternary_parameters"] == 2 * (2 * 128 * 128 + 2 * 64 * 128 + 3 * 256 * 128) - 256 * 128


def test_rows_of_a_quantised_table_are_read_alone(tmp_path, rng):
    table = rng.integers(0, 256, (96 * 4, 34)).astype(np.uint8)
    table[:, 1] &= 0x3B
    path = written(tmp_path, tensors={"token_embd.weight": ("Q8_0", (96, 128), table.tobytes())})
    with open_checkpoint(path) as checkpoint:
        whole = checkpoint.floats("model.embed_tokens.weight")
        assert (checkpoint.floats("model.embed_tokens.weight", slice(5, 9)) == whole[5:9]).all()
        q = checkpoint.floats("model.layers.0.self_attn.q_proj.weight")
        assert (checkpoint.floats("model.layers.0.self_attn.q_proj.weight", slice(5, 9)) == q[5:9]).all()
    with loaded(path) as model:
        assert np.isfinite(model.infer([1, 2])).all()
