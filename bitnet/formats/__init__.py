"""Formats: bytes in files to named tensors.

`open_checkpoint` asks the formats of the table `FORMATS` in turn and opens the path with the first that knows it. What
it returns is a `Checkpoint`, whatever the format::

    with open_checkpoint("BitNet-b1.58-2B-4T") as checkpoint:
        checkpoint.config["hidden_size"]
        checkpoint.floats("model.norm.weight")
        checkpoint.ternary("model.layers.0.self_attn.q_proj").scale

To add a format, write `formats/<name>.py` with a class derived from `Checkpoint` and name it in `FORMATS`. Whatever a
file says is checked before it is believed; `base.py` has the checks that the readers share.
"""

import os
from typing import Any

from bitnet.errors import FormatError, ModelLoadError
from bitnet.formats.base import Checkpoint, StoredTernary, TensorInfo
from bitnet.formats.gguf import GGUFCheckpoint
from bitnet.formats.hugging_face import HuggingFaceCheckpoint
from bitnet.formats.panels import PanelsCheckpoint

__all__ = ["FORMATS", "Checkpoint", "StoredTernary", "TensorInfo", "open_checkpoint"]

FORMATS = (PanelsCheckpoint, HuggingFaceCheckpoint, GGUFCheckpoint)  # in the order they are asked
MAX_SHOWN = 6  # of the files that are there instead


def open_checkpoint(path: Any, i2s_layout: str = "auto") -> Any:
    """Open the checkpoint at a path, for reading.

    Only headers are read; tensors stay in the files, which are mapped into memory, until they are asked for.

    Parameters
    ----------
    path : str or os.PathLike
        A folder in the Hugging Face format, or a GGUF file.
    i2s_layout : {"auto", "x86", "arm", "rows4"}, optional
        Of a GGUF file: the layout of I2_S weights (``i2s.py``); ``"auto"`` detects it.

    Returns
    -------
    Checkpoint
        To be closed, for which it is a context manager.

    Raises
    ------
    FormatError
        If no format knows what is there, or its bytes are not what the format demands.
    ModelLoadError
        If there is nothing, or it cannot be read.
    """
    path = os.fsdecode(path)
    if not os.path.exists(path):
        raise ModelLoadError.unreadable(path, "there is no such file or folder")
    try:
        cls = next((cls for cls in FORMATS if cls.knows(path)), None)
    except OSError as error:
        raise ModelLoadError.unreadable(path, error.strerror) from error
    if cls is not None:
        return cls(path, i2s_layout) if cls is GGUFCheckpoint else cls(path)
    there = sorted(os.listdir(path))[:MAX_SHOWN] if os.path.isdir(path) else []
    looked_for = [cls.LOOKED_FOR for cls in FORMATS if cls is not PanelsCheckpoint]  # which is one in its form
    raise FormatError.unknown(path, looked_for, there)
