"""Families beyond bitnet and llama, and activations that are not quantised, against NumPy."""

import json

import numpy as np
import pytest
import reference
import tiny
from checkpoints import DATA, bf16, flip_in_every_array, write_folder

import bitnet
from bitnet import EngineConfig, KernelError, ModelLoadError, TernaryWeight
from bitnet._core import cpu

FLOAT32 = EngineConfig(kv_dtype="float32", head_dtype="float32", num_threads=1)
SIZES = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
         "rms_norm_eps": 1e-6}  # fmt: skip
IDS = np.array([3, 1, 4, 1, 5, 9, 2, 6])


# ---- products with floats as they are


@pytest.mark.parametrize(("rows", "cols"), [(1, 4), (16, 64), (33, 100), (40, 256), (7, 65)])
@pytest.mark.parametrize("scales", ["one", "rows", "groups"])
def test_floats_are_multiplied_as_they_are(isa, rng, rows, cols, scales):
    codes = rng.integers(-1, 2, (rows, cols)).astype(np.int8)
    shape = {"one": (), "rows": (rows,), "groups": (rows, -(-cols // 64))}[scales]
    scale = rng.uniform(0.5, 2, shape).astype(np.float32)
    weight = TernaryWeight.from_codes(codes, scale, "i2", group_size=64 if scales == "groups" else None)
    x = rng.normal(0, 1, (11, cols)).astype(np.float32)
    found = weight.matmul_float(x)
    exact = x.astype(np.float64) @ weight.dequantize().T.astype(np.float64)
    assert np.abs(found - exact).max() < 1e-5 * cols**0.5
    for threads in (1, 3):
        assert (weight.matmul_float(x, num_threads=threads) == found).all()
    assert (np.concatenate([weight.matmul_float(row[None]) for row in x]) == found).all()


def test_floats_give_the_same_bits_on_every_instruction_set(rng):
    codes, x = rng.integers(-1, 2, (48, 200)).astype(np.int8), rng.normal(0, 1, (9, 200)).astype(np.float32)
    weight, before, found = TernaryWeight.from_codes(codes, 0.3, "i2"), cpu.isa(), []
    for one in cpu.possible_isas():
        cpu.select_isa(one)
        found.append(weight.matmul_float(x).tobytes())
    cpu.select_isa(before)
    assert len(set(found)) == 1


def test_another_packing_is_refused(rng):
    weight = TernaryWeight.from_codes(np.ones((2, 4), np.int8), 1, "t5")
    with pytest.raises(KernelError, match="packing 't5' cannot multiply floats as they are; use packing 'i2'"):
        weight.matmul_float(np.ones((1, 4), np.float32))


# ---- the families in NumPy, in float64


def rms(x, gain, eps=1e-6):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * gain


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


class Model:
    """Random weights of a family, as masters, and its function."""

    def __init__(self, rng, kind, head_dim=32):
        self.kind, self.head_dim, self.tensors, self.stays_float = kind, head_dim, {}, False
        c = SIZES
        heads, keys = c["num_attention_heads"] * head_dim, c["num_key_value_heads"] * head_dim
        hidden, inner = c["hidden_size"], c["intermediate_size"]
        shapes = {"self_attn.q_proj": (heads, hidden), "self_attn.k_proj": (keys, hidden),
                  "self_attn.v_proj": (keys, hidden), "self_attn.o_proj": (hidden, heads),
                  "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
                  "mlp.down_proj": (hidden, inner)}  # fmt: skip
        norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
        if kind == "1bitllm":
            norms |= {"self_attn.inner_attn_ln": heads, "mlp.ffn_layernorm": inner}
        else:
            norms |= {"self_attn.q_norm": head_dim, "self_attn.k_norm": head_dim}
        if kind == "gemma3":
            norms |= {"pre_feedforward_layernorm": hidden, "post_feedforward_layernorm": hidden}
        self.add("model.embed_tokens", rng.normal(0, 1, (c["vocab_size"], hidden)))
        for i in range(c["num_hidden_layers"]):
            at = f"model.layers.{i}."
            for name, shape in shapes.items():
                self.add(at + name, rng.normal(0, 1, shape))
                if kind in ("qwen3", "gemma3"):
                    self.add(f"{at}{name}.norm", rng.uniform(0.5, 1.5, shape[1]))
            for name, size in norms.items():
                self.add(at + name, rng.uniform(0.5, 1.5, size) - (kind == "gemma3"))
        self.add("model.norm", rng.uniform(0.5, 1.5, hidden) - (kind == "gemma3"))

    def add(self, name, numbers):
        self.tensors[f"{name}.weight"] = ("BF16", bf16(numbers))

    def numbers(self, name):
        return (self.tensors[f"{name}.weight"][1].astype(np.uint32) << 16).view(np.float32)

    def gain(self, name):
        return self.numbers(name).astype(np.float64) + (self.kind == "gemma3" and "_proj." not in name)

    def linear(self, x, name):
        if self.kind in ("qwen3", "gemma3"):
            x = rms(x, self.numbers(f"{name}.norm").astype(np.float64))
        if self.stays_float:
            return x @ self.numbers(name).astype(np.float64).T
        codes, scale = bitnet.quantize_weights(self.numbers(name))
        return reference.matmul(codes, scale, x.astype(np.float32)).astype(np.float64)

    def hidden(self, ids, theta, second=None, window=None):
        """`second` is the base of the second layer's frequencies, `window` what a token of the first layer sees."""
        n, dim, kind = len(ids), self.head_dim, self.kind
        table = self.numbers("model.embed_tokens")
        factor = np.float32(8) if kind == "gemma3" else np.float32(1)  # the root of 64
        h = (table[ids] * factor).astype(np.float64)

        def rotated(x):
            angles = np.arange(n)[:, None] * (theta if i == 0 else second or theta) ** (-np.arange(0, dim, 2) / dim)
            cosine, sine = np.cos(angles)[:, None], np.sin(angles)[:, None]
            a, b = np.split(x, 2, -1)
            return np.concatenate([a * cosine - b * sine, b * cosine + a * sine], -1)

        for i in range(SIZES["num_hidden_layers"]):
            at = f"model.layers.{i}."
            x = rms(h, self.gain(at + "input_layernorm"))
            q, k, v = (self.linear(x, f"{at}self_attn.{one}_proj").reshape(n, -1, dim) for one in "qkv")
            if kind != "1bitllm":
                q, k = (rms(x, self.gain(f"{at}self_attn.{one}_norm")) for x, one in ((q, "q"), (k, "k")))
            k, v = (np.repeat(x, 2, 1) for x in (rotated(k), v))
            scores = np.einsum("ahd,bhd->hab", rotated(q), k) * dim**-0.5
            scores[:, ~np.tri(n, dtype=bool)] = -np.inf
            if window and i == 0:
                scores[:, np.tri(n, k=-window, dtype=bool)] = -np.inf
            power = np.exp(scores - scores.max(-1, keepdims=True))
            o = np.einsum("hab,bhd->ahd", power / power.sum(-1, keepdims=True), v).reshape(n, -1)
            if kind == "1bitllm":
                o = rms(o, self.gain(at + "self_attn.inner_attn_ln"))
            o = self.linear(o, at + "self_attn.o_proj")
            h = h + (rms(o, self.gain(at + "post_attention_layernorm")) if kind == "gemma3" else o)
            own = "pre_feedforward_layernorm" if kind == "gemma3" else "post_attention_layernorm"
            x = rms(h, self.gain(at + own))
            gate = self.linear(x, at + "mlp.gate_proj")
            f = (gelu(gate) if kind == "gemma3" else gate / (1 + np.exp(-gate))) * self.linear(x, at + "mlp.up_proj")
            if kind == "1bitllm":
                f = rms(f, self.gain(at + "mlp.ffn_layernorm"))
            f = self.linear(f, at + "mlp.down_proj")
            h = h + (rms(f, self.gain(at + "post_feedforward_layernorm")) if kind == "gemma3" else f)
        return rms(h, self.gain("model.norm"))


CONFIGS = {
    "1bitllm": ({"model_type": "llama", "architectures": ["BitnetForCausalLM"], "head_dim": 16}, 10000.0),
    "qwen3": ({"model_type": "qwen3", "architectures": ["Qwen3Model"], "head_dim": 32}, 1e6),
    "gemma3": ({"model_type": "gemma3_text", "head_dim": 32, "query_pre_attn_scalar": 32, "rope_theta": 10000.0,
                "hidden_activation": "gelu_pytorch_tanh"}, 10000.0),
}  # fmt: skip


def family(tmp_path, kind, strip=False, **more):
    # A seed at whose activations no rounding is near a tie.
    raw, theta = CONFIGS[kind]
    model = Model(np.random.default_rng(11), kind, raw["head_dim"])
    tensors = {name.removeprefix("model.") if strip else name: one for name, one in model.tensors.items()}
    return write_folder(tmp_path / kind, tensors, {**SIZES, **raw, **more}), model, theta


@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_are_those_of_the_family_in_numpy(isa, tmp_path, kind):
    path, model, theta = family(tmp_path, kind)
    with bitnet.load(path, FLOAT32) as loaded:
        found = loaded.infer(IDS)
    expected = model.hidden(IDS, theta) @ model.numbers("model.embed_tokens").T.astype(np.float64)
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()
    assert (found.argmax(1) == expected.argmax(1)).all()


@pytest.mark.parametrize("kind", ["qwen3", "gemma3"])
def test_embeddings_are_pooled_and_of_length_1(tmp_path, kind):
    path, model, theta = family(tmp_path, kind, strip=True)  # as embedding models' files are named
    with bitnet.load(path, FLOAT32) as loaded:
        one, engine = loaded.model, loaded.engine
        one.tokenizer = Letters()
        hidden = model.hidden(IDS, theta)
        text = "".join(chr(97 + id) for id in IDS)
        pooled = {"last": hidden[-1], "cls": hidden[0], "mean": hidden.mean(0)}
        for pooling, vector in pooled.items():
            (found,) = engine.embed(one, [text], pooling=pooling)
            assert np.abs(found - vector / np.linalg.norm(vector)).max() < 1e-3
        raw = engine.embed(one, [text], normalize=False)[0]
        assert np.abs(raw - hidden[-1]).max() < 1e-2
        # Together as alone, bit for bit, and in any cutting into batches.
        texts = [text, "a", text[:3], text * 5, "zz"]
        alone = np.concatenate([engine.embed(one, [each]) for each in texts])
        seen = []
        together = engine.embed(one, texts, batch_size=2, progress=lambda *done: seen.append(done))
        assert (together == alone).all()
        assert (engine.embed(one, texts) == alone).all()
        assert seen == [(2, 5), (4, 5), (5, 5)]
        assert (loaded.encode(texts) == alone).all()
        assert (loaded.encode("b", prompt="a") == engine.embed(one, ["ab"])[0]).all()
        assert engine.embed(one, []).shape == (0, 64)


class Letters:
    def encode(self, text):
        return [ord(letter) - 97 for letter in text]


def test_pooling_is_what_the_folder_says(tmp_path):
    path, _, _ = family(tmp_path, "qwen3")
    (tmp_path / "qwen3" / "1_Pooling").mkdir()
    said = tmp_path / "qwen3" / "1_Pooling" / "config.json"
    said.write_text(json.dumps({"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": False}))
    assert bitnet.load(path).model.pooling == "mean"
    said.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(bitnet.FormatError, match=r"what is true is .*; it must be one of pooling_mode_lasttoken"):
        bitnet.load(path)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [({"layer_types": ["full_attention"]}, "layer_types is .*; it must be a list of 'full_attention' and"),
     ({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}}, "it must be 'default'"),
     ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0; it must be absent, null or false")],
)  # fmt: skip
def test_functions_of_gemma_that_are_not_computed_are_refused(tmp_path, more, sentence):
    path, _, _ = family(tmp_path, "gemma3", **more)
    with pytest.raises(ModelLoadError, match=sentence):
        bitnet.load(path)


@pytest.mark.parametrize(
    "more",
    [{"rope_local_base_freq": 1e4, "rope_theta": 1e6},
     {"rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                          "full_attention": {"rope_type": "default", "rope_theta": 1e6}}}],
)  # fmt: skip
def test_layers_of_gemma_have_frequencies_of_their_own(tmp_path, more):
    kinds = {"sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]}
    path, model, _ = family(tmp_path, "gemma3", **kinds, **more)
    with bitnet.load(path, FLOAT32) as loaded:
        found = loaded.infer(IDS)
    expected = model.hidden(IDS, 1e4, 1e6) @ model.numbers("model.embed_tokens").T.astype(np.float64)
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()
    other = model.hidden(IDS, 1e6) @ model.numbers("model.embed_tokens").T.astype(np.float64)
    assert np.abs(found - other).max() > 0.01 * np.abs(expected).max()


@pytest.mark.parametrize("window", [1, 16, 63, 64, 65, 100, 150, 270])
def test_a_layer_with_a_window_sees_no_more(isa, tmp_path, window):
    path, model, _ = family(
        tmp_path, "gemma3", sliding_window=window, layer_types=["sliding_attention", "full_attention"],
        max_position_embeddings=400, rope_local_base_freq=1e4, rope_theta=1e6,
    )  # fmt: skip
    ids = np.random.default_rng(2).integers(0, 64, 390)
    head = model.numbers("model.embed_tokens").T.astype(np.float64)
    with bitnet.load(path, FLOAT32) as loaded:
        found = loaded.infer(ids)
        with bitnet.profile() as measured:
            loaded.infer(ids[:100])
        # Token by token, threads divide what is seen.
        runner = tiny.Runner(loaded.model.program, 400)
        np.testing.assert_array_equal(runner.alone(ids.astype(np.int32), [380, *[1] * 10], 3), found)
    expected = model.hidden(ids, 1e4, 1e6, window) @ head
    away = np.abs(found - expected).max(1) / np.abs(expected).max()
    # An activation near a tie may be rounded the other way, and moves what comes after it.
    assert np.median(away) < 1e-4
    assert np.quantile(away, 0.9) < 0.03
    other = np.abs(found - model.hidden(ids, 1e4, 1e6) @ head).max(1) / np.abs(expected).max()
    assert np.median(other[:window]) < 1e-4  # they are within it
    assert np.median(other[window:]) > 0.005
    # Multiply-accumulates: two for each number of a head, query head and position that is seen.
    seen = sum(min(t + 1, window) for t in range(100))
    macs = {row.name: row.macs for row in measured.operations() if row.name.endswith("self_attn")}
    assert macs["model.layers.0.self_attn"] == 2 * seen * 4 * 32
    assert macs["model.layers.1.self_attn"] == 2 * 5050 * 4 * 32


@pytest.mark.parametrize("window", [0, "all", True])
def test_a_window_that_is_none_is_refused(tmp_path, window):
    path, _, _ = family(tmp_path, "gemma3", sliding_window=window, layer_types=["sliding_attention"] * 2)
    with pytest.raises(ModelLoadError, match=r"sliding_window is .*; it must be a number of positions above 0"):
        bitnet.load(path)


# ---- weights as they are


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("stored", ["BF16", "F16", "F32"])
def test_weights_can_be_left_as_they_are(isa, tmp_path, kind, stored):
    path, model, theta = family(tmp_path, kind)
    of = {"BF16": bf16, "F16": np.float16, "F32": np.float32}[stored]
    tensors = dict(model.tensors)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        numbers = model.numbers(name.removesuffix(".weight")) * np.float32(0.125)
        tensors[name] = (stored, of(numbers))
        model.tensors[name] = ("BF16", bf16(numbers))  # float16 holds those, too, but for the smallest
    raw, _ = CONFIGS[kind]
    path = write_folder(tmp_path / "b", tensors, {**SIZES, **raw})
    model.stays_float = True
    expected = model.hidden(IDS, theta) @ model.numbers("model.embed_tokens").T.astype(np.float64)
    with bitnet.load(path, FLOAT32.replace(weights="float")) as loaded:
        found = loaded.infer(IDS)
        assert (loaded.engine.infer_batch(loaded.model, [IDS[:3], IDS])[1] == found).all()
        assert set(loaded.model.program.kinds) == {"embed", "rms_norm", "dense", "rope", "attention", "gate", "add",
                                                   "head"}  # fmt: skip
        diagnosis = bitnet.diagnose(loaded.model, IDS)
        assert diagnosis.first_bad is None
        with bitnet.profile() as measured:
            loaded.infer(IDS)
        assert next(row.macs for row in measured.operations() if row.name.endswith("0.mlp.up_proj")) == 8 * 128 * 64
    with bitnet.load(path, FLOAT32.replace(weights="float", num_threads=3)) as loaded:
        assert (loaded.infer(IDS) == found).all()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_weights_that_are_stored_ternary_stay_so():
    path = DATA / "llama-packed-bitlinear"
    with bitnet.load(path, FLOAT32) as one, bitnet.load(path, FLOAT32.replace(weights="float")) as other:
        assert one.model.program.kinds == other.model.program.kinds
        assert (one.infer(IDS) == other.infer(IDS)).all()


# ---- activations as they are


def test_ternary_floats_that_nothing_calls_bitnet_are_run_without_quantised_activations(tmp_path, rng):
    # As TriLM's unpacked files: several scales in a weight.
    model = Model(np.random.default_rng(5), "1bitllm", 16)
    tensors = {name: one for name, one in model.tensors.items() if "inner_attn" not in name and "ffn_layer" not in name}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        shape = tensors[name][1].shape
        scales = np.where(np.arange(shape[0]) < shape[0] // 2, 0.5, 0.25)[:, None]
        tensors[name] = ("F16", (rng.integers(-1, 2, shape) * scales).astype(np.float16))
    path = write_folder(tmp_path / "trilm", tensors, {**SIZES, "model_type": "llama", "tie_word_embeddings": True})
    found = {}
    for activations in ("auto", "float32", "int8"):
        with bitnet.load(path, FLOAT32.replace(activations=activations)) as loaded:
            found[activations] = loaded.infer(IDS)
    assert (found["auto"] == found["float32"]).all()
    assert (found["auto"] != found["int8"]).any()
    bitnet.convert(path, tmp_path / "panels")
    with bitnet.load(tmp_path / "panels", FLOAT32) as loaded:
        assert (loaded.infer(IDS) == found["auto"]).all()
    x, name = rng.normal(0, 1, (3, 64)).astype(np.float32), "model.layers.0.mlp.up_proj"
    weight = tensors[f"{name}.weight"][1].astype(np.float64)
    with bitnet.load(path, FLOAT32) as loaded:
        del loaded
    codes, scale = np.sign(weight).astype(np.int8), np.abs(weight).max(1).astype(np.float32)
    product = TernaryWeight.from_codes(codes, scale, "i2").matmul_float(x)
    assert np.abs(product - x @ weight.T).max() < 1e-4


@pytest.mark.parametrize("name", ["bitnet-packed-auto", "llama-packed-bitlinear"])
def test_activations_can_be_left_as_they_are(name):
    prompt, known = (np.load(DATA / name / f"{what}.npy") for what in ("prompt", "logits_float32"))
    with bitnet.load(DATA / name, FLOAT32.replace(activations="float32")) as loaded:
        away = np.abs(loaded.infer(prompt) - known).max()
    assert 0.1 < away < 8  # the rounding to 8 bits is most of the difference between the functions


@pytest.mark.parametrize("settings", [{}, {"weights": "float"}], ids=str)
def test_checksums_know_every_array(tmp_path, settings):
    path, _, _ = family(tmp_path, "qwen3")
    with bitnet.load(path, num_threads=1, verify="load", **settings) as loaded:
        flip_in_every_array(loaded.model)
