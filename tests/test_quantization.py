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
    assert len(json.loads(report.read_text())) == 7
    assert "<svg" in plot.read_text()
    assert main(["quantize", source, str(tmp_path / "b"), "--per-row", "--group-size", "64"]) == 2
