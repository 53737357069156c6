"""Checksums: a flipped bit, in a file or in memory, is found and the tensor named."""

import hashlib
import re
import shutil

import numpy as np
import pytest
from checkpoints import DATA, flip_in_every_array

import bitnet
from bitnet.checksums import SIDECAR
from bitnet.cli import main

NAME = "llama-packed-bitlinear"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(DATA / NAME, tmp_path / "model")


def loaded(path, **settings):
    return bitnet.load(path, num_threads=1, verify="load", **settings).model


def flip(path, offset, bit=3):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def test_what_has_not_changed_passes(folder):
    model = loaded(folder)
    assert model.verify() == model.verify() > 30


@pytest.mark.parametrize(("name", "part"), [("model.layers.2.mlp.down_proj", "weight"), ("lm_head", "table")])
def test_a_bit_that_flips_in_memory(folder, name, part):
    model = loaded(folder)
    operation = next(one for one in model.program.operations if one["name"] == name)
    bits = operation[part].packed_bytes
    address = bits.__array_interface__["data"][0]
    byte = (np.ctypeslib.ctypes.c_uint8 * 1).from_address(address + 77)
    byte[0] ^= 16
    with pytest.raises(bitnet.ModelLoadError, match=rf"'{name}\.{part}' in memory"):
        model.verify()
    byte[0] ^= 16
    model.verify()


@pytest.mark.parametrize("settings", [{}, {"head_dtype": "float16"}, {"load": "copy"}], ids=str)
def test_a_bit_that_flips_in_any_array_in_memory(tmp_path, settings):
    bitnet.convert(DATA / NAME, tmp_path / "a")
    flip_in_every_array(loaded(tmp_path / "a" if "load" in settings else DATA / NAME, **settings))


def test_a_bit_that_flips_on_disk(folder):
    model = loaded(folder)
    flip(folder / "model.safetensors", -5)
    with pytest.raises(bitnet.ModelLoadError, match=r"the bytes of 'model\.\S+' in the file have changed"):
        model.verify()


def test_a_bit_that_flipped_before_loading_is_found_by_stored_checksums(folder):
    path = loaded(folder).save_checksums()
    assert path == str(folder / SIDECAR)
    loaded(folder)
    flip(folder / "model.safetensors", -5)
    with pytest.raises(bitnet.ModelLoadError, match="in the file have changed: their checksum differs"):
        loaded(folder)
    bitnet.load(folder, num_threads=1)  # not asked to look


def test_a_file_of_the_hub_is_held_to_its_name(folder, tmp_path):
    content = (folder / "model.safetensors").read_bytes()
    blob = tmp_path / hashlib.sha256(content).hexdigest()
    blob.write_bytes(content)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(blob)
    loaded(folder).verify()
    flip(blob, -5)
    with pytest.raises(bitnet.ModelLoadError, match=f"the bytes of '{blob.name}' in the cache have changed"):
        loaded(folder)


@pytest.mark.parametrize("to", ["bitnet", "hugging_face", "gguf"])
def test_what_is_written_is_held_to_its_checksum(tmp_path, capsys, to):
    path = tmp_path / ("a.gguf" if to == "gguf" else "a")
    said = bitnet.convert(DATA / NAME, path, to=to)
    file = path if to == "gguf" else path / "model.safetensors"
    settings = {"i2s_layout": "x86"}
    assert loaded(path, **settings).verify() > 30
    found = bitnet.inspect_checkpoint(path, verify=True)
    assert found["checksums"] == dict.fromkeys(said["sha256"], True)
    assert found["loads"]
    assert bitnet.inspect_checkpoint(path)["checksums"] is None
    assert main(["inspect", str(path), "--verify"]) == 0
    assert f"of {len(said['sha256'])} files agree: " in capsys.readouterr().out
    flip(file, -5)
    with pytest.raises(bitnet.ModelLoadError, match=f"the bytes of '{file.name}' in the file have changed"):
        loaded(path, **settings)
    assert main(["inspect", str(path), "--verify"]) == 1
    out = capsys.readouterr().out
    assert re.search(rf"^PROBLEM +'{file.name}' is not what its checksum was made of$", out, re.MULTILINE)
    assert bitnet.inspect_checkpoint(path, verify=True)["checksums"][file.name] is False
    # Written again it has another one.
    bitnet.convert(DATA / NAME, path, to=to, force=True)
    assert main(["inspect", str(path), "--verify", "--json"]) == 0


def test_a_list_of_checksums_that_is_none_is_refused(folder, capsys):
    assert main(["inspect", str(folder), "--verify"]) == 0
    assert "none are stored, so nothing was compared" in capsys.readouterr().out
    for text in ("nothing\n", f"{'0' * 64}  ../model.safetensors\n", f"{'0' * 64}  ..\n"):
        (folder / "SHA256SUMS").write_text(text)
        with pytest.raises(bitnet.FormatError, match=r"a line is .*; it must be 64 hexadecimal digits, two spaces and"):
            loaded(folder)
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  none\n")
    assert bitnet.inspect_checkpoint(folder, verify=True)["checksums"] == {"none": False}


def test_without_checksums_there_is_nothing_to_compare(folder):
    model = bitnet.load(folder, num_threads=1).model
    for use in (model.verify, model.save_checksums):
        with pytest.raises(bitnet.ModelLoadError, match="was loaded without checksums; load it with verify='load'"):
            use()
    with pytest.raises(bitnet.ConfigurationError, match="verify is 'always'; it must be one of 'load'"):
        bitnet.EngineConfig(verify="always")
