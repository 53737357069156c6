"""Float checkpoints to ternary: the report is that of the weights, and the result runs."""

import json

import numpy as np
import pytest
from checkpoints import bf16, write_folder

import bitnet
from bitnet import ConfigurationError, ModelLoadError, QuantizationConfig
from bitnet.cli import main
from bitnet.formats import open_checkpoint

SIZES = {"vocab_size": 32, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1,
         "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32, "model_type": "llama",
         "tie_word_embeddings": True}  # fmt: skip
LAYERS = [f"model.layers.0.{name}_proj" for name in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o",
                                                     "mlp.gate", "mlp.up", "mlp.down")]  # fmt: skip


def floats(tmp_path, rng):
    tensors = {f"{name}.weight": ("BF16", bf16(rng.normal(0, 1, (128, 128)))) for name in LAYERS}
    tensors["model.layers.0.mlp.up_proj.weight"] = ("BF16", bf16(rng.standard_t(2, (128, 128))))  # the worst
    for name in ("model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm"):
        tensors[f"{name}.weight"] = ("F32", np.ones(128, np.float32))
    tensors["model.embed_tokens.weight"] = ("BF16", bf16(rng.normal(0, 1, (32, 128))))
    return write_folder(tmp_path / "source", tensors, SIZES), tensors


@pytest.mark.parametrize("config", [{}, {"per_channel": True}, {"group_size": 64}])
def test_the_report_and_the_weights_are_those_of_absmean(tmp_path, rng, config):
    source, tensors = floats(tmp_path, rng)
    config = QuantizationConfig(**config)
    report = bitnet.quantize_checkpoint(source, tmp_path / "a", config)
    assert sorted(row["name"] for row in report) == sorted(LAYERS)
    assert report[0]["name"] == "model.layers.0.mlp.up_proj"
    assert [row["cosine"] for row in report] == sorted(row["cosine"] for row in report)
    with open_checkpoint(tmp_path / "a") as found:
        for row in report:
            w = (tensors[f"{row['name']}.weight"][1].astype(np.uint32) << 16).view(np.float32)
            codes, scale = bitnet.quantize_weights(w, config)
            got = bitnet.dequantize(codes, scale, group_size=config.group_size).astype(np.float64)
            stored = found.ternary(row["name"])
            assert (stored.scale == scale).all()
            signal, noise = (w.astype(np.float64) ** 2).sum(), ((w - got) ** 2).sum()
            assert row["mse"] == pytest.approx(((w - got) ** 2).mean())
            assert row["sqnr_db"] == pytest.approx(10 * np.log10(signal / noise))
            assert row["cosine"] == pytest.approx((w * got).sum() / np.sqrt(signal * (got**2).sum()))
            assert row["zeros"] == (codes == 0).mean()
            assert row["scales"] == np.size(scale)
    with bitnet.load(tmp_path / "a") as loaded:
        assert np.isfinite(loaded.infer([1, 2, 3])).all()


def test_weights_that_are_ternary_already_stay_as_they_are(tmp_path, rng):
    source, tensors = floats(tmp_path, rng)
    tensors["model.layers.0.mlp.up_proj.weight"] = ("F32", np.full((128, 128), 0.3, np.float32))
    write_folder(tmp_path / "source", tensors, SIZES)
    report = bitnet.quantize_checkpoint(source, tmp_path / "a")
    assert "model.layers.0.mlp.up_proj" not in [row["name"] for row in report]
    with open_checkpoint(tmp_path / "a") as found:
        assert found.ternary("model.layers.0.mlp.up_proj").scale == np.float32(0.3)


def test_what_cannot_be_done_is_refused(tmp_path, rng):
    source, tensors = floats(tmp_path, rng)
    with pytest.raises(ConfigurationError, match="to is 'x'; it must be one of 'bitnet', 'hugging_face', 'gguf'"):
        bitnet.quantize_checkpoint(source, tmp_path / "a", to="x")
    with pytest.raises(ModelLoadError, match="it has 128 scales, and the format has one for a weight"):
        bitnet.quantize_checkpoint(source, tmp_path / "a", QuantizationConfig(per_channel=True), to="hugging_face")
    others = {name: one for name, one in tensors.items() if "_proj" not in name}
    with pytest.raises(ModelLoadError, match="none' has no projections of floats; there is nothing to quantise"):
        bitnet.quantize_checkpoint(write_folder(tmp_path / "none", others, SIZES), tmp_path / "a")


def test_the_command_reports_and_draws(tmp_path, rng, capsys):
    pytest.importorskip("matplotlib")
    source, _ = floats(tmp_path, rng)
    report, plot = tmp_path / "report.json", tmp_path / "plot.svg"
    arguments = ["quantize", source, str(tmp_path / "a"), "--report", str(report), "--plot", str(plot), "--per-row"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["worst", "weights", "mse", "SQNR", "dB", "cosine", "zeros"]
    assert lines[1].startswith("model.layers.0.mlp.up_proj ")
    assert "loses much of its quality" in lines[-1]
    assert len(json.loads(report.read_text())["weights"]) == 7
    assert "<svg" in plot.read_text()
    assert main(["quantize", source, str(tmp_path / "b"), "--per-row", "--group-size", "64"]) == 2


# ---- what layers are given, and the perplexity before and after


def with_letters(source):
    """A tokenizer of 26 letters."""
    import tokenizers
    from tokenizers import models, pre_tokenizers

    letters = {chr(97 + i): i for i in range(26)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel({**letters, "?": 26}, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(f"{source}/tokenizer.json")


def inputs_in_numpy(tensors, ids):
    """What the layers of `floats` are given, in float64."""
    w = {name: bits_or_floats(*one) for name, one in tensors.items()}

    def rms(x):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)

    def rotated(x):
        angles = np.arange(len(ids))[:, None] * 10000.0 ** (-np.arange(0, 64, 2) / 64)
        cosine, sine, (a, b) = np.cos(angles)[:, None], np.sin(angles)[:, None], np.split(x, 2, -1)
        return np.concatenate([a * cosine - b * sine, b * cosine + a * sine], -1)

    found, at = {}, "model.layers.0."

    def linear(x, name):
        found[at + name] = x
        return x @ w[f"{at}{name}.weight"].T

    h = w["model.embed_tokens.weight"][ids]
    x = rms(h)
    q, k, v = (linear(x, f"self_attn.{one}_proj").reshape(-1, 2, 64) for one in "qkv")
    scores = np.einsum("ahd,bhd->hab", rotated(q), rotated(k)) / 8
    scores[:, ~np.tri(len(ids), dtype=bool)] = -np.inf
    power = np.exp(scores - scores.max(-1, keepdims=True))
    o = np.einsum("hab,bhd->ahd", power / power.sum(-1, keepdims=True), v).reshape(len(ids), -1)
    h = h + linear(o, "self_attn.o_proj")
    x = rms(h)
    gate, up = linear(x, "mlp.gate_proj"), linear(x, "mlp.up_proj")
    h = h + linear(gate / (1 + np.exp(-gate)) * up, "mlp.down_proj")
    return found, rms(h) @ w["model.embed_tokens.weight"].T


def bits_or_floats(dtype, array):
    return ((array.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else array).astype(np.float64)


TEXT = "thequickbrownfoxjumps" + "overthelazydogandback"  # 42 letters: a context of 32, and a part


def test_the_inputs_of_layers_are_measured_in_the_float_model(tmp_path, rng):
    source, tensors = floats(tmp_path, rng)
    with_letters(source)
    report = bitnet.quantize_checkpoint(source, tmp_path / "a", calibration=TEXT, num_threads=1)
    ids = [ord(letter) - 97 for letter in TEXT]
    parts = [inputs_in_numpy(tensors, part)[0] for part in (ids[:32], ids[32:])]
    assert {row["name"] for row in report} == set(parts[0])
    for row in report:
        x = np.concatenate([part[row["name"]] for part in parts])
        largest = np.abs(x).max(1)
        rounded = np.rint(x * (127 / largest[:, None])) * (largest[:, None] / 127)
        ratio = (x * x).sum(1) / ((x - rounded) ** 2).sum(1)
        rms = np.sqrt((x * x).mean(1))
        assert row["activations"] == pytest.approx({
            "absmax": largest.max(), "rms": np.sqrt((x * x).mean()), "crest": (largest / rms).mean(),
            "sqnr_db": 10 * np.log10((x * x).sum() / ((x - rounded) ** 2).sum()),
            "sqnr_db_min": 10 * np.log10(ratio.min()),
        }, rel=3e-3)  # fmt: skip


def test_inputs_of_ternary_layers_are_measured_too(rng):
    with bitnet.load() as loaded:
        seen = []
        found = bitnet.activation_statistics(loaded, "Once upon a time", progress=lambda *done: seen.append(done))
        linear = [name for name, kind in zip(loaded.model.program.names, loaded.model.program.kinds, strict=True)
                  if kind == "linear"]  # fmt: skip
        assert list(found) == linear
        assert seen[-1][0] == seen[-1][1] == len(loaded.model.encode("Once upon a time"))
        assert all(20 < one["sqnr_db"] < 60 and one["crest"] >= 1 for one in found.values())
        with pytest.raises(bitnet.InferenceError, match="the prompt has no tokens"):
            bitnet.activation_statistics(loaded.model, [])


def test_the_command_measures_before_and_after(tmp_path, rng, capsys):
    source, tensors = floats(tmp_path, rng)
    with_letters(source)
    text, report, plot = tmp_path / "text", tmp_path / "report.json", tmp_path / "plot.svg"
    text.write_text(TEXT[:32])
    arguments = ["quantize", source, str(tmp_path / "a"), "--report", str(report), "--calibration", str(text),
                 "--text", str(text), "--num-threads", "1", "--plot", str(plot)]  # fmt: skip
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    content = json.loads(report.read_text())
    before, after = content["perplexity"]["before"], content["perplexity"]["after"]
    ids = np.array([ord(letter) - 97 for letter in TEXT[:32]])
    logits = inputs_in_numpy(tensors, ids)[1][:-1]
    likelihoods = logits - logits.max(1, keepdims=True)
    likelihoods -= np.log(np.exp(likelihoods).sum(1, keepdims=True))
    # The engine's head is int8.
    assert before["nll"] == pytest.approx(-likelihoods[np.arange(31), ids[1:]].mean(), rel=0.02)
    assert after["nll"] != pytest.approx(before["nll"], rel=0.02)
    assert before["tokens"] == after["tokens"] == 31
    assert lines[-1].startswith(f"perplexity {before['perplexity']:.4f} with the weights of SRC as they are, "
                                f"{after['perplexity']:.4f} as ternary: ")  # fmt: skip
    at = lines.index(next(line for line in lines if line.startswith("worst inputs")))
    worst = min(content["weights"], key=lambda row: row["activations"]["sqnr_db"])
    assert lines[at + 1].split() == [worst["name"], *(f"{worst['activations'][name]:{form}}" for name, form in (
        ("absmax", ".4g"), ("rms", ".4g"), ("crest", ".2f"), ("sqnr_db", ".2f"), ("sqnr_db_min", ".2f")))]  # fmt: skip
    assert plot.read_text().count("axes_") >= 2


def test_a_calibration_that_fails_leaves_nothing(tmp_path, rng):
    source, _ = floats(tmp_path, rng)
    with pytest.raises(ModelLoadError, match="has no tokenizer"):
        bitnet.quantize_checkpoint(source, tmp_path / "a", calibration="text")
    assert not (tmp_path / "a").exists()
