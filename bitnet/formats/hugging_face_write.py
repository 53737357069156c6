"""Writes folders of packed ternary weights that Transformers loads, and this package.

Weights are uint8, four rows a byte, beside a scale in float32 that multiplies (``linear_class`` ``"autobitlinear"``,
``quantization_mode`` ``"offline"``), so that a scale is stored as it is and not as its reciprocal.

References
----------
.. [1] huggingface/transformers 5.23, integrations/bitnet.py (``pack_weights``, ``AutoBitLinear``).
"""

import os

import numpy as np

from bitnet.formats.writing import (
    NUMPY,
    Entry,
    pack_quarters,
    storable,
    write_checksums,
    write_json,
    write_safetensors,
)

__all__ = ["packed_config", "write_packed_folder"]


def packed_config(config):
    """The ``config.json`` of a packed folder.

    Parameters
    ----------
    config : dict
        That of the model, however its weights were stored.

    Returns
    -------
    dict
    """
    stored = dict(config.get("quantization_config") or {})
    kept = {name: stored[name] for name in ("use_rms_norm", "rms_norm_eps") if name in stored}
    skipped = stored.get("modules_to_not_convert")
    return {**config, "quantization_config": {
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
    entries = [entry for item in items for entry in _entries(item)]
    write_safetensors(os.path.join(folder, "model.safetensors"), entries, {"format": "pt"},
                      progress or (lambda done, total, name: None))  # fmt: skip
    write_files(folder, {"config.json": packed_config(config), **(files or {})})
    write_checksums(folder)


def write_files(folder, files):
    """Write small files: text, or JSON."""
    for name, content in files.items():
        if isinstance(content, dict):
            write_json(folder, name, content)
        else:
            with open(os.path.join(folder, name), "w", encoding="utf-8", newline="") as file:
                file.write(content)


def _entries(item):
    if item.kind == "floats":
        itemsize = np.dtype(NUMPY[item.dtype]).itemsize
        size = int(np.prod(item.shape, dtype=object)) * itemsize
        return [Entry(item.name, item.dtype, item.shape, size, item.read)]
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
