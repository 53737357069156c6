"""The model families: one module for each ``model_type``, with the forward pass written once.

A module has ``config(raw)``, which reads the family's ``config.json``, and ``build(b, cfg)``, which writes the pass
with a `bitnet._core.program.Builder`. The table is explicit: no name from a file is ever imported.
"""

from bitnet.errors import ModelLoadError
from bitnet.models import bitnet, llama

MODELS = {"bitnet": bitnet, "llama": llama}
"""``model_type`` to module."""


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
    name = raw.get("model_type")
    if name not in MODELS:
        raise ModelLoadError.unknown_model(path, name, tuple(MODELS))
    return MODELS[name]
