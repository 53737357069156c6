"""The model families: one module for each ``model_type``, with the forward pass written once.

A module has ``config(raw)``, which reads the family's ``config.json``, and ``build(b, cfg)``, which writes the pass
with a `bitnet._core.program.Builder`. The table is explicit: no name from a file is ever imported.
"""

from bitnet.errors import ModelLoadError
from bitnet.models import bitnet, gemma3_text, llama, one_bit_llm, qwen3

MODELS = {"bitnet": bitnet, "gemma3_text": gemma3_text, "llama": llama, "qwen3": qwen3}
"""``model_type`` to module."""

BY_ARCHITECTURE = {one_bit_llm.ARCHITECTURE: one_bit_llm}
"""Families whose ``model_type`` is that of another one."""


def family(raw, path):
    """Find the module for a ``config.json``.

    Parameters
    ----------
    raw : dict
    path : str
        The checkpoint, for the error.

    Returns
    -------
    module

    Raises
    ------
    ModelLoadError
        If no family is known by its ``model_type``.
    """
    architectures = raw.get("architectures")
    for one in architectures if isinstance(architectures, list) else [architectures]:
        if isinstance(one, str) and one in BY_ARCHITECTURE:
            return BY_ARCHITECTURE[one]
    name = raw.get("model_type")
    if name not in MODELS:
        raise ModelLoadError.unknown_model(path, name, tuple(MODELS))
    return MODELS[name]
