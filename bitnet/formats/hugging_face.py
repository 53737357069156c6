"""The folders of Hugging Face: ``config.json``, safetensors, and what the tokenizer needs.

The weights are in ``model.safetensors``, or in several files, and then ``model.safetensors.index.json`` says which
tensor is in which. A ternary weight ``X.weight`` comes in two kinds:

- *packed*: uint8 of shape (rows // 4, cols) beside ``X.weight_scale``. The scale has two meanings, and only
  ``quantization_config.linear_class`` of the configuration tells which: with ``"autobitlinear"`` a product is
  multiplied by it, with ``"bitlinear"``, the default, divided. `ternary` gives the factor in either case.
- *masters*: floats to be quantised when they are loaded. Ordinary models look the same, so the configuration has to say
  that they are masters: by ``quantization_mode`` ``"online"``, or by a family that has nothing else.

References
----------
.. [1] huggingface/transformers 5.23, integrations/bitnet.py and quantizers/quantizers_utils.py
   (``should_convert_module``).
"""

import functools
import os
import re
from typing import NamedTuple

import numpy as np

from bitnet.errors import ModelLoadError
from bitnet.formats.base import FLOATS, Checkpoint, StoredTernary, need, parsed_json, quoted, read_bytes
from bitnet.formats.safetensors import SafetensorsFile
from bitnet.formats.ternary import codes_of_floats

__all__ = ["HuggingFaceCheckpoint"]

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"

LINEAR_CLASSES = ("bitlinear", "autobitlinear")
MODES = ("offline", "online")
ARCHITECTURES = ("BitNetForCausalLM", "BitnetForCausalLM")  # of masters; the second is 1bitLLM's


class _Quantization(NamedTuple):
    """The fields of ``quantization_config`` that say what weights are."""

    linear_class: str
    mode: str
    skipped: tuple | None  # names or parts of names of the layers that are ordinary


class HuggingFaceCheckpoint(Checkpoint):
    """A folder in the Hugging Face format.

    Parameters
    ----------
    path : str
        The folder.
    """

    format = "hugging_face"
    LOOKED_FOR = f"a folder with 'config.json' and '{ONE_FILE}' or '{INDEX}' (hugging_face)"

    def __init__(self, path):
        super().__init__(path)
        self._ternary_floats = {}
        with self._resources as resources:  # is left open below, when nothing went wrong
            self.config = self._json("config.json")
            self.generation_config = self._json("generation_config.json")
            self.tokenizer_config = self._json("tokenizer_config.json")
            self.chat_template = self._chat_template()
            tokenizer = self._at("tokenizer.json")
            self.tokenizer_path = tokenizer if os.path.isfile(tokenizer) else None
            self.pooling = self._read_pooling()
            self._open_weights()
            self._complete_names()
            self._resources = resources.pop_all()

    @classmethod
    def knows(cls, path):
        """Whether `path` is a folder with a ``config.json`` and weights in safetensors."""
        config, *weights = (os.path.isfile(os.path.join(path, name)) for name in ("config.json", ONE_FILE, INDEX))
        return config and any(weights)

    def matrix_shape(self, name):
        """Say how many rows and columns a weight stands for, packed or not."""
        info = self.info(f"{name}.weight")
        return (4 * info.shape[0], *info.shape[1:]) if info.dtype == "U8" and info.shape else info.shape

    def is_quantized(self, name):
        """Whether a layer is ternary, to be read by `ternary`, and no ordinary one, to be read by `floats`.

        Parameters
        ----------
        name : str
            The layer: the name of its weight without ``.weight``.

        Returns
        -------
        bool
        """
        info = self.info(name + ".weight")
        return info.dtype == "U8" or (
            info.dtype in FLOATS and (self._why_ordinary(name) is None or self._found_ternary(name))
        )

    def ternary(self, name):
        """Find a ternary weight, and what its codes stand for.

        Parameters
        ----------
        name : str
            The layer: the name of its weight without ``.weight``, as ``"model.layers.0.self_attn.q_proj"``.

        Returns
        -------
        StoredTernary

        Raises
        ------
        FormatError
            If the weight and its scale contradict each other or the configuration.
        ModelLoadError
            If there is no such weight, or nothing says that it is ternary.
        """
        weight = name + ".weight"
        info, label = self.info(weight), quoted(weight)
        need(info.dtype == "U8" or info.dtype in FLOATS, info.file, f"the dtype of {label}", info.dtype,
             "U8, which is packed ternary weights, or BF16, F16, F32 or F64, which is masters")  # fmt: skip
        is_matrix = len(info.shape) == 2 and 0 not in info.shape
        need(is_matrix, info.file, f"the shape of {label}", info.shape, "two sizes above 0")
        rows, cols = info.shape if is_matrix else (0, 0)
        if info.dtype == "U8":
            return StoredTernary("packed", 4 * rows, cols, data=self.raw(weight), scale=self._scale(name))
        reason = self._why_ordinary(name)
        if reason and self._found_ternary(name):
            codes, scale, group_size = codes_of_floats(self.floats(weight))
            return StoredTernary("codes", rows, cols, scale=scale, codes=lambda: codes, group_size=group_size)
        if reason:
            raise ModelLoadError.not_bitnet(info.file, weight, info.dtype, reason)
        need(f"{weight}_scale" not in self, info.file, f"the dtype of {label}", info.dtype,
             f"U8, because {quoted(weight + '_scale')} is there, which masters do not have")  # fmt: skip
        return StoredTernary("masters", rows, cols, floats=functools.partial(self.floats, weight))

    @functools.cached_property
    def activations(self):
        """Which function the weights were made for.

        Models whose files hold floats that are ternary as they stand, and whose configuration says nothing of BitNet,
        were trained without quantised activations: TriLM, Ternary-Bonsai.
        """
        if self._quantization is None:
            for name in self._files:
                layer = name.removesuffix(".weight")
                if name.endswith("_proj.weight") and self.is_quantized(layer):
                    return "float32" if self._why_ordinary(layer) is not None else "int8"
        return "int8"

    # ---- what weights are

    def _found_ternary(self, name):
        """Whether floats of a projection are ternary as they stand."""
        if name not in self._ternary_floats:
            weight, is_it = f"{name}.weight", False
            is_matrix = len(self.info(weight).shape) == 2 and 0 not in self.info(weight).shape
            if self._quantization is None and name.endswith("_proj") and is_matrix:
                # A sample first, which settles it for weights that are not.
                sample = self.floats(weight, slice(0, 16))
                is_it = codes_of_floats(sample) is not None and codes_of_floats(self.floats(weight)) is not None
            self._ternary_floats[name] = is_it
        return self._ternary_floats[name]

    @functools.cached_property
    def _quantization(self):
        """`quantization_config`, checked; None if there is none."""
        file, found = self._at("config.json"), self.config.get("quantization_config")
        if found is None:
            return None
        need(isinstance(found, dict), file, "quantization_config", found, "an object")
        fields = {"quant_method": ("bitnet",), "linear_class": LINEAR_CLASSES, "quantization_mode": MODES}
        for name, known in fields.items():
            value = found.get(name)
            need(value is None or (isinstance(value, str) and value in known), file, f"quantization_config.{name}",
                 value, f"one of {', '.join(map(repr, known))}")  # fmt: skip
        skipped = found.get("modules_to_not_convert")
        # Transformers takes them for regular expressions as well. Those of a stranger can take forever, and no
        # BitNet checkpoint has any, so only names are read; a dot is a dot.
        is_plain = skipped is None or (
            isinstance(skipped, list) and all(isinstance(one, str) and re.fullmatch(r"[\w.-]+", one) for one in skipped)
        )
        need(is_plain, file, "quantization_config.modules_to_not_convert", skipped, "null or a list of plain names")
        return _Quantization(
            found.get("linear_class") or LINEAR_CLASSES[0],
            found.get("quantization_mode") or MODES[0],
            None if skipped is None else tuple(skipped),
        )

    def _why_ordinary(self, name):
        """Why a layer of floats is an ordinary one, the end of a sentence; None if its weights are masters."""
        quantization = self._quantization
        listed = quantization.skipped if quantization else None
        if name.endswith("embed_tokens") or (listed is None and name.endswith("lm_head")):
            return "embeddings and the output head are ordinary"
        # As Transformers does [1], a name is the beginning or the end of the whole.
        if listed and any(name.startswith(one) or name.endswith(one) for one in listed):
            return "quantization_config.modules_to_not_convert lists it"
        if quantization and quantization.mode == "online" and quantization.linear_class == "autobitlinear":
            return None
        if f"{name}.norm.weight" in self:  # of BitNet-embedding, which says nothing of quantisation
            return None
        architectures = self.config.get("architectures")
        names = architectures if isinstance(architectures, list) else [architectures]
        if self.config.get("model_type") == "bitnet" or any(one in ARCHITECTURES for one in names):
            return None
        if quantization is None:
            return f"config.json has no quantization_config and model_type {quoted(self.config.get('model_type'))}"
        return (
            f"quantization_config of config.json says '{quantization.linear_class}' and '{quantization.mode}', "
            "for which weights are packed in U8"
        )

    def _scale(self, name):
        """What a code of 1 stands for in a packed weight."""
        config, at = self._at("config.json"), f"{name}.weight_scale"
        quantization = self._quantization
        need(quantization is not None, config, "quantization_config", None,
             "there, because weights are packed: its linear_class says whether 'weight_scale' multiplies "
             "('autobitlinear') or divides ('bitlinear')")  # fmt: skip
        info, label = self.info(at), quoted(at)
        size = int(np.prod(info.shape, dtype=object))
        need(size == 1, info.file, f"the shape of {label}", info.shape, f"(1,), one scale for all of {quoted(name)}")
        stored = self.floats(at).reshape(())
        need(np.isfinite(stored), info.file, label, float(stored), "a finite number")
        if quantization.linear_class == "autobitlinear":
            return float(stored)
        with np.errstate(all="ignore"):
            scale = np.float32(1) / stored
        need(np.isfinite(scale), info.file, label, float(stored),
             "a number with a reciprocal in float32, because linear_class 'bitlinear' divides by it")  # fmt: skip
        return float(scale)

    # ---- files

    def _at(self, name):
        return os.path.join(self.path, name)

    def _json(self, name):
        """The content of a file of the folder; empty if there is none."""
        path = self._at(name)
        return parsed_json(read_bytes(path), path, "the file", unique=False) if os.path.isfile(path) else {}

    def _chat_template(self):
        """The template in a file of its own, else the one in ``tokenizer_config.json``."""
        path = self._at("chat_template.jinja")
        if os.path.isfile(path):
            text = read_bytes(path).decode("utf-8", errors="surrogateescape")
            need(not re.search("[\udc80-\udcff]", text), path, "the encoding of the text", "unknown", "UTF-8")
            return text
        path, found = self._at("tokenizer_config.json"), self.tokenizer_config.get("chat_template")
        if isinstance(found, list):  # of named templates
            named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)
                     and isinstance(one.get("name"), str)}  # fmt: skip
            found = named.get("default")
        need(found is None or isinstance(found, str), path, "chat_template", found, "a string, or a list of named ones")
        return found

    def _read_pooling(self):
        """As sentence-transformers writes it."""
        path = self._at(os.path.join("1_Pooling", "config.json"))
        if not os.path.isfile(path):
            return None
        said = parsed_json(read_bytes(path), path, "the file", unique=False)
        modes = {"pooling_mode_lasttoken": "last", "pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
        asked = [name for name, on in said.items() if name.startswith("pooling_mode_") and on is True]
        need(len(asked) == 1 and asked[0] in modes, path, "what is true", asked, f"one of {', '.join(modes)}")
        return modes[asked[0]]

    def _open_weights(self):
        if os.path.isfile(self._at(ONE_FILE)):
            file = self._open(ONE_FILE)
            self._files = dict.fromkeys(file.tensors, file)
        else:
            self._open_parts()

    def _open_parts(self):
        index = self._at(INDEX)
        where = parsed_json(read_bytes(index), index, "the file").get("weight_map")
        need(isinstance(where, dict), index, "'weight_map'", where, "an object of tensors' names to files' names")
        there, opened = set(os.listdir(self.path)), {}
        for name, part in where.items():
            if not (isinstance(part, str) and part in opened):
                # One of the folder's own names: not a path, which could lead anywhere.
                is_here = isinstance(part, str) and part.endswith(".safetensors") and part in there
                need(is_here and os.path.isfile(self._at(part)), index, f"'weight_map' of {quoted(name)}", part,
                     "the name of a .safetensors file in the same folder; is the download complete?")  # fmt: skip
                opened[part] = self._open(part)
            need(name in opened[part].tensors, index, f"'weight_map' of {quoted(name)}", part,
                 "the file that has the tensor, which this one does not")  # fmt: skip
        self._files = {name: opened[part] for name, part in where.items()}

    def _complete_names(self):
        """Files of models that embed texts leave out the name of the whole."""
        if "embed_tokens.weight" in self._files and not any(name.startswith("model.") for name in self._files):
            self._stored_names = {f"model.{name}": name for name in self._files}
            self._files = {f"model.{name}": file for name, file in self._files.items()}

    def _open(self, name):
        file = SafetensorsFile(self._at(name))
        self._resources.callback(file.close)
        return file
