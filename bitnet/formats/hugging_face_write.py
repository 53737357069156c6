"""Writes folders of packed ternary weights that Transformers loads, and this package.

Weights are uint8, four rows a byte, beside a scale in float32 that multiplies (``linear_class`` ``"autobitlinear"``,
``quantization_mode`` ``"offline"``), so that a scale is stored as it is and not as its reciprocal.

References
----------
.. [1] huggingface/transformers 5.23, integrations/bitnet.py (``pack_weights``, ``AutoBitLinear``).
"""

import os

import numpy as np

from bitnet.formats.sums import write_checksums
from bitnet.formats.writing import (
    NUMPY,
    Entry,
    is_float16,
    pack_quarters,
    storable,
    write_json,
    write_safetensors,
)

__all__ = ["packed_config", "write_packed_folder"]

CHECKED = 1 << 22  # numbers looked at together


TORCH = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def packed_config(config, dtype):
    """The ``config.json`` of a packed folder.

    Parameters
    ----------
    config : dict
        That of the model, however its weights were stored.
    dtype : {"BF16", "F16", "F32"}
        Of everything that is not packed.

    Returns
    -------
    dict
    """
    stored = dict(config.get("quantization_config") or {})
    kept = {name: stored[name] for name in ("use_rms_norm", "rms_norm_eps") if name in stored}
    skipped = stored.get("modules_to_not_convert")
    rest = {name: value for name, value in config.items() if name not in ("dtype", "torch_dtype")}
    return {**rest, "torch_dtype": TORCH[dtype], "quantization_config": {
        "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline",
        "modules_to_not_convert": skipped, **kept,
    }}  # fmt: skip


def write_packed_folder(folder, config, items, files=None, progress=None):
    """Write a folder with ``config.json`` and ``model.safetensors``.

    Parameters
    ----------
    folder : str
        Is made; `bitnet.formats.writing.new_path` gives one that appears when it is whole.
    config : dict
        The model's ``config.json``; what it says of quantisation is replaced.
    items : list of Item
        The model's tensors.
    files : dict of str to (str or dict), optional
        Other files: their content, as text or for JSON.
    progress : callable, optional
        Called as ``progress(done_bytes, total_bytes, name)``.

    Raises
    ------
    ModelLoadError
        If a weight cannot be stored so: its rows are no multiple of 4, or it has several scales.
    """
    os.mkdir(folder)
    dtype = _common_dtype([item for item in items if item.kind == "floats"])
    entries = [entry for item in items for entry in _entries(item, dtype)]
    write_safetensors(os.path.join(folder, "model.safetensors"), entries, {"format": "pt"},
                      progress or (lambda done, total, name: None))  # fmt: skip
    write_files(folder, {"config.json": packed_config(config, dtype), **(files or {})})
    write_checksums(folder)


def write_files(folder, files):
    """Write small files: text, or JSON."""
    for name, content in files.items():
        if isinstance(content, dict):
            write_json(folder, name, content)
        else:
            with open(os.path.join(folder, name), "w", encoding="utf-8", newline="") as file:
                file.write(content)


def _common_dtype(items):
    """The narrowest type that holds all numbers exactly: Transformers wants one for all."""
    known = {item.dtype for item in items}
    if len(known) == 1 and known != {"F32"}:
        return known.pop()
    fits = {"BF16": True, "F16": True}
    for item in items:
        bits = _float32(item.read(), item.dtype).reshape(-1)
        for start in range(0, bits.size, CHECKED):
            part = bits[start : start + CHECKED]
            fits["BF16"] = fits["BF16"] and not (part.view(np.uint32) & 0xFFFF).any()
            fits["F16"] = fits["F16"] and is_float16(part)
        if not any(fits.values()):
            break
    return next((dtype for dtype, does in fits.items() if does), "F32")


def _float32(array, dtype):
    if dtype == "BF16":
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.ascontiguousarray(array, np.float32)


def _as(array, dtype, wanted):
    """Numbers in another type that holds them."""
    if dtype == wanted:
        return array
    numbers = _float32(array, dtype)
    if wanted == "BF16":
        return (numbers.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return numbers.astype(NUMPY[wanted])


def _entries(item, dtype):
    if item.kind == "floats":
        size = int(np.prod(item.shape, dtype=object)) * np.dtype(NUMPY[dtype]).itemsize
        return [Entry(item.name, dtype, item.shape, size, lambda: _as(item.read(), item.dtype, dtype))]
    rows, cols = item.shape
    storable(rows % 4 == 0, item.name, f"it has {rows} rows, and four are packed into a byte")
    kept = {}

    def packed():
        found = item.read()
        count = found.scale.size
        storable(found.scale.ndim == 0, item.name, f"it has {count} scales, and the format has one for a weight")
        kept["scale"] = found.scale
        return pack_quarters(found.codes)

    # The weight is made first, and with it the scale is known.
    return [
        Entry(f"{item.name}.weight", "U8", (rows // 4, cols), rows // 4 * cols, packed),
        Entry(f"{item.name}.weight_scale", "F32", (1,), 4, lambda: kept["scale"].reshape(1)),
    ]
