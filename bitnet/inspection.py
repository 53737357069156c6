"""What a checkpoint has, what its model would read of it, and what is missing: also of one that cannot be loaded.

A model's forward pass is written here once more, by the same family, but with weights that only note what they are
asked for.
"""

import os
from types import SimpleNamespace
from typing import Any

import numpy as np

from bitnet._core.builder import Builder
from bitnet.assets import BUNDLED
from bitnet.checksums import files_of
from bitnet.errors import BitNetError
from bitnet.formats import open_checkpoint
from bitnet.formats.panels import HEAD
from bitnet.formats.sums import compare_sums
from bitnet.hub import local_path
from bitnet.models import family

__all__ = ["inspect_checkpoint"]

PACKED, MASTERS, OTHER = "packed ternary", "ternary masters", "ordinary"


def inspect_checkpoint(path: str | os.PathLike[str] | None = None, *, verify: bool = False) -> dict[str, Any]:
    """Look at a checkpoint; headers and scales are read, weights are not.

    Parameters
    ----------
    path : str, optional
        A Hugging Face folder, or a GGUF file; by default the model that comes with the package.
    verify : bool, optional
        Whether to read all files, and compare them with the checksums that are stored with them: ``SHA256SUMS`` in a
        folder, ``FILE.sha256`` beside a file.

    Returns
    -------
    dict
        What JSON can hold: ``path``, ``format``, ``model_type``, ``architectures``; ``config``, the fields of
        `ModelConfig`, or None where it cannot be read; ``tensors``, a list of ``name``, ``dtype``, ``shape``,
        ``bytes``, ``kind``, ``parameters``, ``scale`` (of a packed weight: what a code of 1 stands for; the mean where
        it has several; else None) and ``used`` (None where the family is not known); ``totals`` of ``tensors``,
        ``bytes``, ``parameters`` and ``ternary_parameters``; ``scales``, the ``count``, ``min``, ``median`` and ``max``
        of the packed weights' scales, or None; ``tokenizer``, ``chat_template`` and ``generation_config``, whether they
        are there; ``missing`` and ``unused``, names of tensors; ``problems``, sentences; ``notes``, what was decided
        although the files do not say it for certain; ``checksums``, None or, with `verify`, each file that has one and
        whether it agrees; and ``loads``, whether there are no problems.

    Raises
    ------
    FormatError
        If the files are not what their format demands.
    ModelLoadError
        If there is nothing, or it cannot be read.
    """
    with open_checkpoint(BUNDLED if path is None else local_path(path)) as checkpoint:
        problems: list[str] = []
        survey = _surveyed(checkpoint, problems)
        tensors = [_tensor(checkpoint, name, survey, problems) for name in checkpoint.names()]
        scales = [one["scale"] for one in tensors if one["scale"] is not None]
        sums = None
        if verify:
            sums = {os.path.basename(file): agrees
                    for file, agrees in compare_sums(checkpoint.path, files_of(checkpoint)).items()}  # fmt: skip
            problems += [f"'{file}' is not what its checksum was made of" for file in sums if not sums[file]]
        missing = [] if survey is None else survey.missing
        raw = checkpoint.config
        return {
            "path": checkpoint.path,
            "format": checkpoint.format,
            "model_type": raw.get("model_type"),
            "architectures": raw.get("architectures"),
            "config": None if survey is None else survey.config.to_dict(),
            "tensors": tensors,
            "totals": _totals(tensors),
            "scales": None if not scales else {
                "count": len(scales), "min": min(scales), "median": float(np.median(scales)), "max": max(scales)
            },
            "tokenizer": checkpoint.tokenizer_path is not None,
            "chat_template": checkpoint.chat_template is not None,
            "generation_config": bool(checkpoint.generation_config),
            "missing": missing,
            "unused": [one["name"] for one in tensors if one["used"] is False],
            "problems": problems,
            "notes": list(checkpoint.notes),
            "checksums": sums,
            "loads": not problems and not missing,
        }  # fmt: skip


def _surveyed(checkpoint, problems):
    """What the model asks for; None where nobody knows how it is built."""
    try:
        module = family(checkpoint.config, checkpoint.path)
        config = module.config(checkpoint.config)
    except BitNetError as error:
        problems.append(str(error))
        return None
    survey = _Survey(checkpoint, config)
    if config.num_hidden_layers > len(checkpoint.names()):  # a number that is not meant, and takes forever
        problems.append(
            f"num_hidden_layers is {config.num_hidden_layers}, more than the {len(checkpoint.names())} tensors there"
        )
        return survey
    try:
        module.build(_Tolerant(survey, config, problems), config)
    except BitNetError as error:
        problems.append(str(error))
    return survey


def _tensor(checkpoint, name, survey, problems):
    info, layer = checkpoint.info(name), name.removesuffix(".weight")
    kind, scale, shape = OTHER, None, info.shape
    try:
        is_matrix = name.endswith(".weight") and len(checkpoint.matrix_shape(layer)) == 2
        if is_matrix and checkpoint.is_quantized(layer):
            shape = checkpoint.matrix_shape(layer)
            stored = checkpoint.ternary(layer)
            kind = MASTERS if stored.kind == "masters" else PACKED
            scale = None if stored.scale is None else float(np.mean(stored.scale))
    except BitNetError as error:
        problems.append(str(error))
    count = 0 if name.endswith(".weight_scale") else int(np.prod(shape, dtype=object))
    return {
        "name": name, "dtype": info.dtype, "shape": list(info.shape), "bytes": info.nbytes, "kind": kind,
        "parameters": count, "scale": scale,
        "used": None if survey is None else name in survey.used,
    }  # fmt: skip


def _totals(tensors):
    return {
        "tensors": len(tensors),
        "bytes": sum(one["bytes"] for one in tensors),
        "parameters": sum(one["parameters"] for one in tensors),
        "ternary_parameters": sum(one["parameters"] for one in tensors if one["kind"] in (PACKED, MASTERS)),
    }


class _Survey:
    """Weights that only note what a `Builder` asks for."""

    def __init__(self, checkpoint, config):
        self.checkpoint, self.config = checkpoint, config
        self.used, self.missing = set(), []
        self._table = "model.embed_tokens.weight"

    def _shape(self, name, default):
        if name not in self.checkpoint:
            if name not in self.missing:
                self.missing.append(name)
            return default
        self.used.add(name)
        return self.checkpoint.info(name).shape

    def floats(self, name):
        return np.broadcast_to(np.float32(1), self._shape(name, (1,)))

    def own_norm(self, name):
        gain = next((one for one in (f"{name}.norm.weight", f"{name}.rms_norm.weight") if one in self.checkpoint), None)
        return (self.floats(gain), 1e-6) if gain is not None else None

    def packed(self, name):
        rows, cols = self._layer(name)
        return SimpleNamespace(rows=rows, cols=cols)

    def _layer(self, name):
        """The shape of a layer; where it is missing, by its name."""
        c = self.config
        rows = {"q_proj": c.num_attention_heads * c.head_dim, "k_proj": c.num_key_value_heads * c.head_dim,
                "v_proj": c.num_key_value_heads * c.head_dim, "gate_proj": c.intermediate_size,
                "up_proj": c.intermediate_size}.get(name.rpartition(".")[2], c.hidden_size)  # fmt: skip
        self._shape(f"{name}.weight", ())
        if f"{name}.weight" not in self.checkpoint or len(self.checkpoint.matrix_shape(name)) != 2:
            return rows, 0
        scale = f"{name}.weight_scale"
        if scale in self.checkpoint or self.checkpoint.info(f"{name}.weight").dtype == "U8":  # which needs one
            self._shape(scale, ())
        return self.checkpoint.matrix_shape(name)

    def embedding(self, name):
        self._table = f"{name}.weight"
        return self._matrix(self._table), "float32"

    def head(self, name):
        for part in (HEAD, f"{HEAD}_scale"):
            if part in self.checkpoint:
                self.used.add(part)
        own = f"{name}.weight"
        return self._matrix(own if own in self.checkpoint else self._table), "float32"

    def _matrix(self, name):
        shape = self._shape(name, (self.config.vocab_size, self.config.hidden_size))
        return SimpleNamespace(shape=shape if len(shape) == 2 else (0, 0))


class _Tolerant(Builder):
    """A builder that writes down what does not fit, and goes on."""

    @staticmethod
    def fuse(weights):
        return weights[0]


    def __init__(self, survey, config, problems):
        super().__init__(survey, config)
        self._problems = problems

    def _fits(self, name, got, needed):
        if not {name, f"{name}.weight"} & set(self.weights.missing) and tuple(got) != tuple(needed):
            self._problems.append(
                f"'{name}' has shape {tuple(map(int, got))}; the configuration needs {tuple(map(int, needed))}"
            )
