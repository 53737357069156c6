"""``bitnet inspect``: also of what cannot be loaded."""

import json
import shutil

import numpy as np
import pytest
from checkpoints import DATA, PACKED, layer, write_folder
from cli_checkpoints import KNOWN, changed_config, with_tokenizer

from bitnet.cli import main


def inspected(path, capsys):
    assert main(["inspect", path, "--json"]) == 0
    output, complaints = capsys.readouterr()
    assert complaints == ""
    return json.loads(output)


def lines_of(output):
    rows = [line.split("  ", 1) for line in output.splitlines() if "  " in line]
    return {row[0]: row[1].strip() for row in rows}


@pytest.mark.parametrize("name", PACKED)
def test_a_checkpoint_that_loads(name, capsys):
    found = inspected(str(DATA / name), capsys)
    assert found["loads"]
    assert (found["problems"], found["missing"], found["unused"]) == ([], [], [])
    assert found["config"]["num_hidden_layers"] == 4
    assert found["totals"]["ternary_parameters"] == 3145728
    assert found["totals"]["bytes"] == sum(one["bytes"] for one in found["tensors"])
    assert found["scales"]["count"] == 28
    assert found["scales"]["min"] <= found["scales"]["median"] <= found["scales"]["max"]
    assert (found["tokenizer"], found["chat_template"], found["generation_config"]) == (False, False, False)


def test_one_line_a_layer_or_a_tensor(capsys):
    path = str(DATA / "bitnet-packed-auto")
    assert main(["inspect", path]) == 0
    output = capsys.readouterr().out
    rows = lines_of(output)
    assert rows["model_type"] == "bitnet"
    assert rows["parameters"] == "3,283,200, of which 3,145,728 ternary (packed ternary)"
    assert rows["can be loaded"] == "yes"
    assert "model.layers.3" in rows
    assert "model.layers.3.mlp.up_proj.weight" not in output
    assert main(["inspect", path, "--tensors"]) == 0
    rows = lines_of(capsys.readouterr().out)
    assert rows["model.layers.3.mlp.up_proj.weight"].split()[:2] == ["U8", "192x256"]


def test_what_is_there_beside_the_weights(tmp_path, capsys):
    found = inspected(with_tokenizer(tmp_path / "model"), capsys)
    assert (found["tokenizer"], found["chat_template"]) == (True, True)


def test_an_unknown_model_type_is_told(tmp_path, capsys):
    path = changed_config(tmp_path / "model", model_type="mamba")
    assert main(["inspect", path]) == 0
    output, complaints = capsys.readouterr()
    rows = lines_of(output)
    assert complaints == ""
    assert rows["PROBLEM"] == f"'{path}' is of model_type 'mamba'; known are {KNOWN}"
    assert (rows["can be loaded"], rows["missing"], rows["not used"]) == ("no", "unknown", "unknown")
    assert rows["scales"].startswith("28: min ")


def test_missing_and_unused_tensors_and_wrong_shapes(tmp_path, capsys):
    more = changed_config(tmp_path / "more", num_hidden_layers=5)
    found = inspected(more, capsys)
    assert not found["loads"]
    assert "model.layers.4.self_attn.q_proj.weight" in found["missing"]
    assert found["problems"] == []
    found = inspected(changed_config(tmp_path / "fewer", num_hidden_layers=3), capsys)
    assert len(found["unused"]) == 18
    assert found["loads"]
    found = inspected(changed_config(tmp_path / "wide", intermediate_size=512), capsys)
    assert not found["loads"]
    assert any("mlp.up_proj' has shape (768, 256)" in sentence for sentence in found["problems"])
    found = inspected(changed_config(tmp_path / "vocabulary", vocab_size=500), capsys)
    assert "'model.embed_tokens' has shape (512, 256); the configuration needs (500, 256)" in found["problems"]
    found = inspected(changed_config(tmp_path / "endless", num_hidden_layers=2**31 - 1), capsys)
    assert found["problems"] == ["num_hidden_layers is 2147483647, more than the 74 tensors there"]


def test_a_config_that_cannot_be_used(tmp_path, capsys):
    found = inspected(changed_config(tmp_path / "model", hidden_act="swish"), capsys)
    assert found["config"] is None
    assert "swish" in found["problems"][0]


def test_names_cannot_write_to_the_terminal(tmp_path, capsys):
    tensors = {"a\x1b[31m\nb": ("F32", np.zeros(3, np.float32)), **layer()}
    assert main(["inspect", write_folder(tmp_path / "odd", tensors, {"model_type": "x\x1b[2J"}), "--tensors"]) == 0
    output = capsys.readouterr().out
    assert "\x1b" not in output
    assert "a\\x1b[31m\\nb" in output


def test_what_is_no_checkpoint(tmp_path, capsys):
    missing = str(tmp_path / "nothing")
    assert main(["inspect", missing]) == 1
    assert capsys.readouterr() == ("", f"bitnet: cannot read '{missing}': there is no such file or folder\n")
    shutil.copytree(DATA / "bitnet-packed-auto", tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert main(["inspect", str(tmp_path / "cut")]) == 1
    output, complaints = capsys.readouterr()
    assert output == ""
    assert complaints.startswith(f"bitnet: '{file}': ")
    assert complaints.count("\n") == 1
