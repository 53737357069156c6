"""Checkpoints of this package: weights lie in the file as kernels read them, so that nothing is left to do.

A folder in the Hugging Face format whose ``quantization_config`` has ``"quant_method": "bitnet_panels"``. A ternary
weight ``X.weight`` is one row of uint8, the bytes of a packing (``_core/packings``), at a multiple of 64 in the file;
``X.weight_scale`` is float32 of shape (), (rows,) or (rows, groups). The file's ``__metadata__`` has, for each layer,
the packing, rows, columns and columns of a group, as ``"i2 2560 6912 0"``; and ``panels``, the version of the layout.
The output head is there a second time, in 8 bits, as `bitnet._core.head` has it.

The file is mapped, and weights are used where they are: processes share them. So nobody looks at every byte when it is
opened; ``SHA256SUMS`` beside it is for those who want to.
"""

import math
import os
import re

import numpy as np

from bitnet.errors import ModelLoadError
from bitnet.formats.base import StoredTernary, need, parsed_json, quoted, read_bytes
from bitnet.formats.hugging_face import HuggingFaceCheckpoint
from bitnet.formats.hugging_face_write import write_files
from bitnet.formats.sums import write_checksums
from bitnet.formats.writing import NUMPY, Entry, write_safetensors

__all__ = ["HEAD", "PanelsCheckpoint", "write_panels_folder"]

METHOD = "bitnet_panels"
VERSION = "2"  # of the layout of the packings' bytes, and of the head's
HEAD = "lm_head.weight_int8"
"""The 8-bit head: one row of uint8; its scales are beside it, as those of weights are."""

ORDER = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")  # as they lie side by side, to be used as one weight


class PanelsCheckpoint(HuggingFaceCheckpoint):
    """A folder that `write_panels_folder` wrote.

    Parameters
    ----------
    path : str
        The folder.
    """

    format = "bitnet"
    LOOKED_FOR = f"a folder whose config.json names '{METHOD}' (bitnet)"

    def __init__(self, path):
        super().__init__(path)
        with self._resources as resources:  # is left open below, when nothing went wrong
            self._layers = self._read_layers()
            self._resources = resources.pop_all()

    @classmethod
    def knows(cls, path):
        """Whether `path` is a folder with such a ``config.json``."""
        config = os.path.join(path, "config.json")
        if not super().knows(path):
            return False
        stored = parsed_json(read_bytes(config), config, "the file", unique=False).get("quantization_config")
        return isinstance(stored, dict) and stored.get("quant_method") == METHOD

    @property
    def activations(self):
        """Which function the weights were made for, as the folder says."""
        found = self.config["quantization_config"].get("activations", "int8")
        need(found in ("int8", "float32"), self._at("config.json"), "quantization_config.activations", found,
             "'int8' or 'float32'")  # fmt: skip
        return found

    def matrix_shape(self, name):
        """Say how many rows and columns a weight stands for."""
        return self._layers[name][1:3] if name in self._layers else self.info(f"{name}.weight").shape

    def is_quantized(self, name):
        """Whether a layer is ternary."""
        return name in self._layers

    def ternary(self, name):
        """Find a ternary weight, and what its codes stand for."""
        weight = f"{name}.weight"
        info = self.info(weight)
        if name not in self._layers:
            raise ModelLoadError.not_bitnet(info.file, weight, info.dtype, "the file lists it as no ternary weight")
        packing, rows, cols, group = self._layers[name]
        scale = self.floats(f"{weight}_scale")
        return StoredTernary("panels", rows, cols, data=self.raw(weight), scale=scale, packing=packing,
                             group_size=group or None)  # fmt: skip

    def _read_layers(self):
        found, file = {}, None
        for file in dict.fromkeys(self._files.values()):
            version = file.metadata.get("panels")
            need(version == VERSION, file.path, "the version of the panels", version, f"{VERSION}; convert it again")
            for name, text in file.metadata.items():
                if name in ("panels", "format"):
                    continue
                told = re.fullmatch(r"(\w{1,20}) ([1-9]\d{0,18}) ([1-9]\d{0,18}) (0|64|128)", text)
                is_there = f"{name}.weight" in file.tensors and f"{name}.weight_scale" in file.tensors
                need(told is not None and is_there, file.path, f"what is said of {quoted(name)}", text,
                     "a packing, rows, columns and columns of a group, of a weight and a scale there")  # fmt: skip
                info = file.tensors[f"{name}.weight"]
                need(info.dtype == "U8" and len(info.shape) == 1, file.path, f"the shape of {quoted(name)}",
                     (info.dtype, info.shape), "one row of U8")  # fmt: skip
                found[name] = (told[1], int(told[2]), int(told[3]), int(told[4]))
        return found


def write_panels_folder(folder, config, items, pack, activations, files=None, progress=None):
    """Write a folder of weights in a packing.

    Parameters
    ----------
    folder : str
        Is made.
    config : dict
        The model's ``config.json``.
    items : list of Item
        The model's tensors.
    pack : callable
        ``pack(codes)`` of a `Codes` gives a `bitnet._core.packing.PackedWeight`; ``pack.size(rows, cols, group_size)``
        its packing's name and how many bytes it will have.
    activations : {"int8", "float32"}
        Which function the weights were made for.
    files : dict, optional
        As of `write_packed_folder`.
    progress : callable, optional
        Called as ``progress(done_bytes, total_bytes, name)``.
    """
    os.mkdir(folder)
    metadata, weights, panels, scales, floats = {"format": "pt", "panels": VERSION}, [], [], [], []
    for item in sorted(items, key=_order):
        if item.kind == "floats":
            size = math.prod(item.shape) * _itemsize(item.dtype)
            floats.append(Entry(item.name, item.dtype, item.shape, size, item.read))
        elif item.kind == "panels":
            panels.append(Entry(item.name, "U8", item.shape, item.shape[0], item.read))
        else:
            found = item.read()  # scales are needed for the header; codes are read once more
            packing, nbytes = pack.size(*item.shape, found.group_size)
            metadata[item.name] = f"{packing} {item.shape[0]} {item.shape[1]} {found.group_size or 0}"
            weights.append(Entry(f"{item.name}.weight", "U8", (nbytes,), nbytes,
                                 lambda item=item: pack(item.read()).packed_bytes))  # fmt: skip
            scale = found.scale
            scales.append(
                Entry(f"{item.name}.weight_scale", "F32", scale.shape, scale.nbytes, lambda scale=scale: scale)
            )
    # Weights first: their bytes are multiples of 64, and so are their places.
    write_safetensors(os.path.join(folder, "model.safetensors"), [*weights, *panels, *floats, *scales], metadata,
                      progress or (lambda done, total, name: None))  # fmt: skip
    stored = config.get("quantization_config") or {}
    kept = {name: stored[name] for name in ("use_rms_norm", "rms_norm_eps") if name in stored}
    said = {**config, "quantization_config": {"quant_method": METHOD, "activations": activations, **kept}}
    write_files(folder, {"config.json": said, **(files or {})})
    write_checksums(folder)


def _itemsize(dtype):
    return np.dtype(NUMPY[dtype]).itemsize


def _order(item):
    """Layers as they come; within one, what is used as one weight side by side."""
    numbers = [int(part) for part in item.name.split(".") if part.isdigit()]
    last = item.name.rpartition(".")[2]
    return (numbers or [10**9], ORDER.index(last) if last in ORDER else len(ORDER), item.name)
