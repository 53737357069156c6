"""Checkpoints for tests: those of tests/data, and writers of small ones, also of ones that no writer would write."""

import ctypes
import json
import math
from pathlib import Path

import numpy as np
import pytest

from bitnet.errors import ModelLoadError

DATA = Path(__file__).resolve().parent / "data" / "hf"
PACKED = ("bitnet-packed-auto", "bitnet-packed-bitlinear", "llama-packed-bitlinear", "llama-packed-rmsnorm")
ITEMSIZE = {"U8": 1, "I8": 1, "F16": 2, "BF16": 2, "I32": 4, "F32": 4, "F64": 8}


def bf16(numbers):
    """The bytes of numbers as bfloat16, cut off, as uint16."""
    return (np.asarray(numbers, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def header_of(tensors):
    """The header for ``{name: (dtype, shape)}``, which lie one after another, and how many bytes they take."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + math.prod(shape) * ITEMSIZE[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    return header, end


def safetensors_bytes(header, data=b"", length=None):
    """A file with such a header, which may be text, and such data, and any length of the header in front."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def write_safetensors(path, tensors):
    """Write ``{name: (dtype, array)}``; BF16 is given as uint16."""
    header, _ = header_of({name: (dtype, array.shape) for name, (dtype, array) in tensors.items()})
    Path(path).write_bytes(safetensors_bytes(header, b"".join(array.tobytes() for _, array in tensors.values())))


def write_folder(folder, tensors, config=None, parts=None):
    """Write a folder in the Hugging Face format, and give its path as a string.

    `parts` gives the number of the file for each name; without it there is one file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {}))
    if parts is None:
        write_safetensors(folder / "model.safetensors", tensors)
        return str(folder)
    where = {name: f"model-{parts[name]}.safetensors" for name in tensors}
    for part in set(where.values()):
        write_safetensors(folder / part, {name: tensors[name] for name in tensors if where[name] == part})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return str(folder)


def layer(codes=None, scale=0.5, name="q_proj"):
    """A packed layer of 8 x 4, or of these codes, with a scale in float32."""
    codes = np.arange(32).reshape(8, 4) % 3 - 1 if codes is None else np.asarray(codes)
    quarters = (codes + 1).astype(np.uint8).reshape(4, -1, codes.shape[1])
    packed = quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6
    return {f"{name}.weight": ("U8", packed), f"{name}.weight_scale": ("F32", np.array([scale], np.float32))}


def quantized(linear_class="autobitlinear", **fields):
    """A config.json with a ``quantization_config``."""
    return {"quantization_config": {"quant_method": "bitnet", "linear_class": linear_class, **fields}}


def _arrays_in(value, found):
    """Every array that there is: found by looking into all, not by asking the checksums."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            _arrays_in(one, found)
    elif isinstance(value, np.ndarray):
        found.append(value)
    elif hasattr(value, "packed_bytes"):
        _arrays_in([value.packed_bytes, getattr(value, "scale", None), getattr(value, "scales", None)], found)
    return found


def flip_in_every_array(model):
    """A bit in each array that a model reads, in turn: `Model.verify` finds it."""
    model.verify()
    arrays = _arrays_in([model.program.operations, model.program._angles], [])
    assert len(arrays) > 20
    for array in arrays:
        byte = (ctypes.c_uint8 * array.nbytes).from_address(array.__array_interface__["data"][0])
        byte[array.nbytes // 2] ^= 1
        with pytest.raises(ModelLoadError, match="in memory have changed"):
            model.verify()
        byte[array.nbytes // 2] ^= 1
    model.verify()
