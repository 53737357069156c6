"""Checksums: a flipped bit, in a file or in memory, is found and the tensor named."""

import hashlib
import shutil

import numpy as np
import pytest
from checkpoints import DATA

import bitnet
from bitnet.checksums import SIDECAR

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
    operation = next(one for one in model._checksums._operations if one["name"] == name)
    bits = operation[part].packed_bytes
    address = bits.__array_interface__["data"][0]
    byte = (np.ctypeslib.ctypes.c_uint8 * 1).from_address(address + 77)
    byte[0] ^= 16
    with pytest.raises(bitnet.ModelLoadError, match=rf"'{name}\.{part}' in memory"):
        model.verify()
    byte[0] ^= 16
    model.verify()


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


def test_without_checksums_there_is_nothing_to_compare(folder):
    model = bitnet.load(folder, num_threads=1).model
    for use in (model.verify, model.save_checksums):
        with pytest.raises(bitnet.ModelLoadError, match="was loaded without checksums; load it with verify='load'"):
            use()
    with pytest.raises(bitnet.ConfigurationError, match="verify is 'always'; it must be one of 'load'"):
        bitnet.EngineConfig(verify="always")
