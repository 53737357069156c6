"""GGUF checkpoints: llama.cpp's, bitnet.cpp's and their forks', under Hugging Face names.

The container is read by ``gguf_file.py``, the types of tensors by ``ggml.py`` and ``i2s.py``, and metadata become a
configuration in ``gguf_metadata.py``. Here tensors get the names that model families ask for, and what a file does
differently is undone: queries and keys of the architecture ``llama`` are permuted for rotation in pairs, and Gemma's
norms have 1 added.

What is decided although a file does not say it for certain is told in `Checkpoint.notes`: the gate's function, the
layout of I2_S, and the chat template of BitNet-b1.58-2B-4T, whose own file has a wrong one.

References
----------
.. [1] ggml-org/llama.cpp, gguf-py/gguf/constants.py (keys and tensor names), conversion/llama.py (``permute``).
.. [2] microsoft/BitNet, utils/convert-hf-to-gguf-bitnet.py, utils/convert-bitnet-embedding-to-gguf.py.
"""

import functools
import os
import re

import numpy as np

from bitnet.chat import BITNET_2B_4T
from bitnet.errors import ConfigurationError, FormatError, ModelLoadError
from bitnet.formats import i2s
from bitnet.formats.base import Checkpoint, StoredTernary, TensorInfo, need, quoted
from bitnet.formats.ggml import I2_S, TERNARY, ternary_blocks
from bitnet.formats.gguf_file import MAGIC, GGUFFile
from bitnet.formats.gguf_metadata import GGUFMetadata
from bitnet.formats.ternary import codes_of_floats, merged_scales

__all__ = ["GGUFCheckpoint"]

LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "attn_sub_norm": "self_attn.attn_sub_norm",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "ffn_sub_norm": "mlp.ffn_sub_norm",
}  # fmt: skip
"""Names within a block, theirs to ours."""

LINEAR = tuple(name for name in LAYER if "norm" not in name)
NORM_IN = {f"{name}_norm_in": f"{LAYER[name]}.norm" for name in LINEAR}  # a norm of a projection's own input, of [2]
GEMMA = {"ffn_norm": "pre_feedforward_layernorm", "post_attention_norm": "post_attention_layernorm",
         "post_ffw_norm": "post_feedforward_layernorm"}  # fmt: skip
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
FLOAT_TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
PROBED_LAYERS, PROBED_ROWS = 2, 1024  # of I2_S weights, for the detection of their layout


class GGUFCheckpoint(Checkpoint):
    """A GGUF file, the parts of one, or a folder with one.

    Parameters
    ----------
    path : str
        The file, any of its parts, or the folder.
    i2s_layout : {"auto", "x86", "arm", "rows4"}, optional
        The layout of I2_S weights; ``"auto"`` detects it where the weights tell.

    Attributes
    ----------
    metadata : dict
        What the file says, by its keys.
    """

    format = "gguf"
    LOOKED_FOR = "a .gguf file or a folder with one (gguf)"

    def __init__(self, path, i2s_layout="auto"):
        super().__init__(path)
        if i2s_layout not in ("auto", *i2s.LAYOUTS):
            raise ConfigurationError.choice("i2s_layout", i2s_layout, ("auto", *i2s.LAYOUTS))
        self._forced_layout = i2s_layout
        with self._resources as resources:  # is left open below, when nothing went wrong
            self._open_parts(_file_at(path))
            said = GGUFMetadata(self.metadata, self._first)
            self._arch = said.architecture
            self._name_tensors()
            self.config = said.config({name: tensor.shape for name, (_, tensor) in self._tensors.items()}, self.notes)
            self._read_tokenizer(said)
            self.pooling = {1: "mean", 2: "cls", 3: "last"}.get(said.value("pooling_type", 0))
            self._resources = resources.pop_all()

    @classmethod
    def knows(cls, path):
        """Whether `path` is a file that begins with ``GGUF``, or a folder with one GGUF file and no config.json."""
        if os.path.isdir(path):
            return not os.path.isfile(os.path.join(path, "config.json")) and _file_at(path) is not None
        if path.endswith(".gguf"):
            return True
        with open(path, "rb") as file:
            return file.read(4) == MAGIC

    # ---- tensors

    def info(self, name):
        """Say what the file says about a tensor, under our name."""
        return self._infos[name] if name in self._infos else super().info(name)

    def place(self, name):
        """Say where a tensor lies: the open file, and its first byte there."""
        self.info(name)
        file, tensor = self._tensors[name]
        return file.place(tensor.name)

    def matrix_shape(self, name):
        """Say how many rows and columns the weight of a layer has."""
        return self.info(f"{name}.weight").shape

    def raw(self, name):
        """View a tensor in the file: floats as they are, all other types as their bytes."""
        self.info(name)
        file, tensor = self._tensors[name]
        data = file.raw(tensor.name)
        if tensor.type.name in FLOAT_TYPES:
            return data.view(FLOAT_TYPES[tensor.type.name]).reshape(tensor.shape)
        return data

    def floats(self, name, rows=None):
        """Read a tensor as float32: of quantised types the numbers that they stand for.

        Parameters
        ----------
        name : str
            The name of a tensor.
        rows : slice, optional
            Of the first axis; None for all of it.

        Returns
        -------
        ndarray of float32
            A copy, C-contiguous.
        """
        info = self.info(name)
        file, tensor = self._tensors[name]
        if tensor.type is I2_S:
            numbers = self._i2s_codes(name) * np.float32(i2s.scale_of(file.raw(tensor.name), info.file, name))
        else:
            numbers = self._decoded(name, None if self._is_permuted(name) else rows)
        numbers = self._unpermuted(name, numbers)
        if self._arch == "gemma3" and name.endswith("norm.weight") and "_proj." not in name:
            numbers -= np.float32(1)  # exact: the file's numbers have few bits
        is_whole = tensor.type is I2_S or self._is_permuted(name)
        return np.ascontiguousarray(numbers[rows]) if rows is not None and is_whole else numbers

    def _decoded(self, name, rows):
        file, tensor = self._tensors[name]
        kind, shape = tensor.type, tensor.shape
        data = file.raw(tensor.name).reshape(*shape[:-1], -1)
        data = data if rows is None else data[rows]
        shape = (*data.shape[:-1], shape[-1])
        return kind.decode(data.reshape(-1, kind.nbytes)).reshape(shape).astype(np.float32)  # a copy of F32 as well

    def is_quantized(self, name):
        """Whether a layer is ternary: by its type, or because its numbers are.

        Parameters
        ----------
        name : str
            The layer: the name of its weight without ``.weight``.

        Returns
        -------
        bool
        """
        kind = self.info(f"{name}.weight").dtype
        if name in TOP.values() or not name.endswith("_proj"):
            return False
        return kind == "I2_S" or kind in TERNARY or (kind in FLOAT_TYPES and self._floats_are(name) is not None)

    def ternary(self, name):
        """Find a ternary weight, and what its codes stand for.

        Parameters
        ----------
        name : str
            The layer: the name of its weight without ``.weight``.

        Returns
        -------
        StoredTernary
        """
        weight = f"{name}.weight"
        info = self.info(weight)
        file, tensor = self._tensors[weight]
        need(len(info.shape) == 2, info.file, f"the shape of {quoted(weight)}", info.shape, "two sizes")
        rows, cols = info.shape
        if tensor.type is I2_S:
            scale = np.float32(i2s.scale_of(file.raw(tensor.name), info.file, weight)) * self._own_scale(name)
            self._layout  # noqa: B018  so that whoever looks hears of a doubt, before codes are read
            codes = functools.partial(self._i2s_codes, weight, undone=True)
            return StoredTernary("codes", rows, cols, scale=float(scale), codes=codes)
        if tensor.type.name in TERNARY:
            scales, group_size = self._block_scales(name)
            codes = functools.partial(self._block_codes, weight)
            return StoredTernary("codes", rows, cols, scale=scales, codes=codes, group_size=group_size)
        found = self._floats_are(name) if tensor.type.name in FLOAT_TYPES else None
        if found == "masters":
            return StoredTernary("masters", rows, cols, floats=functools.partial(self.floats, weight))
        if found is not None:
            codes, scales, group_size = codes_of_floats(self.floats(weight))
            scales = scales * self._own_scale(name)
            return StoredTernary("codes", rows, cols, scale=scales, codes=lambda: codes, group_size=group_size)
        raise ModelLoadError.not_bitnet(
            info.file, tensor.name, tensor.type.name,
            f"only {', '.join(('I2_S', *TERNARY))}, and floats that are ternary, are run by ternary kernels",
        )  # fmt: skip

    @functools.cached_property
    def activations(self):
        """Which function the weights were made for: ``"int8"`` activations, or ``"float32"``, which are not quantised.

        Files do not say. Several scales in one weight are what models have that were trained without quantised
        activations (TriLM, Ternary-Bonsai).
        """
        if self._arch.startswith("bitnet"):
            return "int8"
        for name in self._files:
            layer = name.removesuffix(".weight")
            is_told = self.info(name).dtype in TERNARY or self.info(name).dtype in FLOAT_TYPES
            if name.endswith("_proj.weight") and is_told and self.is_quantized(layer):
                return "float32" if np.ndim(self.ternary(layer).scale) else "int8"
        return "int8"

    def _floats_are(self, name):
        """What floats are: ``"ternary"`` as they stand, ``"masters"`` that are still to be quantised, or None."""
        if name not in self._kinds_of_floats:
            # A sample first, which settles it for weights that are not.
            sample = self._decoded(f"{name}.weight", slice(0, 16))
            if codes_of_floats(sample) is not None and codes_of_floats(self._decoded(f"{name}.weight", None)):
                kind = "ternary"
            else:
                kind = "masters" if self._arch.startswith("bitnet") else None
            self._kinds_of_floats[name] = kind
        return self._kinds_of_floats[name]

    def _own_scale(self, name):
        """The factor of a scale tensor beside the weight; 1 where there is none."""
        at = f"{name}.weight_scale"
        if at not in self:
            return np.float32(1)
        stored = self.floats(at).reshape(-1)
        need(stored.size == 1 and np.isfinite(stored).all(), self.info(at).file, quoted(self._tensors[at][1].name),
             stored, "one finite number")  # fmt: skip
        return stored[0]

    def _i2s_codes(self, name, undone=False):
        file, tensor = self._tensors[name]
        codes = i2s.codes_of(file.raw(tensor.name)[: -i2s.TAIL], *tensor.shape, self._layout, file.path, tensor.name)
        return self._unpermuted(name, codes) if undone else codes

    def _blocks(self, name):
        file, tensor = self._tensors[name]
        return file.raw(tensor.name).reshape(-1, tensor.type.nbytes), tensor

    def _block_scales(self, name):
        """One scale, or one a row, or one a group, whichever says it all; and the columns of a group."""
        blocks, tensor = self._blocks(f"{name}.weight")
        at = TERNARY[tensor.type.name][1]
        scales = np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)
        need(np.isfinite(scales).all(), self.info(f"{name}.weight").file, f"a scale of {quoted(tensor.name)}",
             scales[~np.isfinite(scales)][:1], "a finite number")  # fmt: skip
        scales = self._unpermuted(f"{name}.weight", scales.reshape(tensor.shape[0], -1))
        return merged_scales(scales * self._own_scale(name), tensor.type.elements)

    def _block_codes(self, name):
        blocks, tensor = self._blocks(name)
        codes, scales = ternary_blocks(tensor.type.name, blocks)
        need((codes <= 1).all(), self.info(name).file, f"a code of {quoted(tensor.name)}", 3, "0, 1 or 2")
        codes[scales == 0] = 0
        return self._unpermuted(name, codes.reshape(tensor.shape))

    # ---- the permutation of queries and keys

    def _is_permuted(self, name):
        return self._arch == "llama" and name.endswith(("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias"))

    def _unpermuted(self, name, array):
        """Put the rows of queries and keys into the order in which the halves of a head are rotated."""
        if not self._is_permuted(name):
            return array
        heads = self.config["num_attention_heads" if ".q_proj" in name else "num_key_value_heads"]
        need(len(array) % (2 * heads) == 0, self.info(name).file, f"the rows of {quoted(name)}", len(array),
             f"a multiple of {2 * heads}, for two halves of {heads} heads")  # fmt: skip
        paired = array.reshape(heads, -1, 2, *array.shape[1:])
        return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(array.shape)

    # ---- the layout of I2_S

    @functools.cached_property
    def _layout(self):
        if self._forced_layout != "auto":
            return self._forced_layout
        layout, is_certain = i2s.detect(self._pairs_of_columns())
        if not is_certain:
            self.notes.append(
                "the weights do not tell in which layout their I2_S is; taken for 'x86', as of all official files. If "
                "the model answers nonsense, try i2s_layout 'arm' or 'rows4'"
            )
        elif layout != "x86":
            self.notes.append(f"I2_S in the layout '{layout}', as the weights tell")
        return layout

    def _pairs_of_columns(self):
        """Weights, each with what is known of its columns from elsewhere."""
        for layer in range(PROBED_LAYERS):
            at = f"model.layers.{layer}."
            own_norm = at + ("pre_feedforward_layernorm" if self._arch == "gemma3" else "post_attention_layernorm")
            for name, gain, maker in (
                ("self_attn.q_proj", at + "input_layernorm", None), ("mlp.gate_proj", own_norm, None),
                ("self_attn.o_proj", at + "self_attn.attn_sub_norm", "self_attn.v_proj"),
                ("mlp.down_proj", at + "mlp.ffn_sub_norm", "mlp.up_proj"),
            ):  # fmt: skip
                yield from self._pairs(at + name, f"{gain}.weight", maker and f"{at}{maker}.weight")

    def _pairs(self, name, gain, maker):
        own = f"{name}.weight"
        if not self._is_i2s(own) or self.info(own).shape[1] % 128:
            return
        rows, cols = self.info(own).shape
        rows = min(rows // 4 * 4, PROBED_ROWS)
        if not rows:
            return
        data = self.raw(own)[: rows * cols // 4]
        zeros = functools.partial(i2s.zeros_of_columns, data, rows, cols)
        if gain in self and self.info(gain).shape == (cols,):
            known = self.floats(gain)
            yield zeros, lambda layout: known
        if maker and self._is_i2s(maker) and self.info(maker).shape[0] == cols and self.info(maker).shape[1] % 128 == 0:
            made = self.raw(maker)[: -i2s.TAIL]
            yield zeros, functools.partial(i2s.zeros_of_rows, made, *self.info(maker).shape)

    def _is_i2s(self, name):
        return name in self and self.info(name).dtype == "I2_S" and len(self.info(name).shape) == 2

    # ---- files

    def _open_parts(self, first):
        """Open the file, and with it the others of a split one."""
        self._first = first
        file = self._open(first)
        count = file.metadata.get("split.count", 1)
        need(type(count) is int and 0 < count < 100_000, first, "split.count", count, "a number of files")
        files = [file]
        if count > 1:
            name = SPLIT.fullmatch(os.path.basename(first))
            need(name is not None and int(name[3]) == count, first, "the name of the file", os.path.basename(first),
                 f"one that ends in -00001-of-{count:05d}.gguf, because it has {count} parts")  # fmt: skip
            paths = [
                f"{first[: -len(name[0])]}{name[1]}-{part:05d}-of-{count:05d}.gguf" for part in range(1, count + 1)
            ]
            files = [file if path == first else self._open(path) for path in paths]
            for number, part in enumerate(files):
                need(part.metadata.get("split.no") == number, part.path, "split.no", part.metadata.get("split.no"),
                     str(number))  # fmt: skip
        self.metadata = files[0].metadata
        self._parts = files
        total = sum(len(part.tensors) for part in files)
        expected = self.metadata.get("split.tensors.count", total)
        need(expected == total, first, "split.tensors.count", expected, f"{total}, the tensors of all parts")

    def _open(self, path):
        file = GGUFFile(path)
        self._resources.callback(file.close)
        return file

    def _name_tensors(self):
        self._tensors, self._infos, self._kinds_of_floats = {}, {}, {}
        for file in self._parts:
            for tensor in file.tensors.values():
                name = self._named(tensor.name)
                need(name not in self._tensors, file.path, "a tensor that comes twice", tensor.name, "there once")
                self._tensors[name] = (file, tensor)
                self._infos[name] = TensorInfo(name, tensor.type.name, tensor.shape, tensor.nbytes, file.path)
                self._files[name] = file

    def _named(self, name):
        """Our name for a tensor; its own where nobody knows it."""
        table = {**LAYER, **NORM_IN, **(GEMMA if self._arch == "gemma3" else {})}
        found = re.fullmatch(r"(?:blk\.(0|[1-9]\d{0,5})\.)?(\w+)\.(weight|bias|scale)", name)
        if found is None:
            return name
        ours = TOP.get(found[2]) if found[1] is None else table.get(found[2])
        if ours is None:
            return name
        kind = "weight_scale" if found[3] == "scale" else found[3]
        return f"{ours}.{kind}" if found[1] is None else f"model.layers.{found[1]}.{ours}.{kind}"

    def _read_tokenizer(self, said):
        if "tokenizer.ggml.tokens" not in self.metadata:
            return
        self.tokenizer_path = self._first
        template = said.value("tokenizer.chat_template", None, (str,))
        tokens, is_2b4t = self.metadata["tokenizer.ggml.tokens"], self._arch in ("bitnet-25", "bitnet-b1.58")
        is_2b4t = is_2b4t and "<|begin_of_text|>" in tokens
        if is_2b4t and (template is None or "BITNETAssistant" in template):
            self.notes.append("the chat template is that of BitNet-b1.58-2B-4T: the file has a wrong one or none")
            template = BITNET_2B_4T
        self.chat_template = template
        ends = [self.config.get("eos_token_id"), said.value("tokenizer.ggml.eot_token_id", None)]
        # Chat models end a turn by a token of its own, which older files do not name.
        ends += [tokens.index(end) for end in ("<|eot_id|>", "<|im_end|>", "<end_of_turn>") if end in tokens]
        ends = [end for end in dict.fromkeys(ends) if end is not None and 0 <= end < self.config["vocab_size"]]
        self.generation_config = {"eos_token_id": ends} if ends else {}


def _file_at(path):
    """The file that a path means: of a folder the only one, or the first part of the only one; else None."""
    if not os.path.isdir(path):
        return path
    names = sorted(name for name in os.listdir(path) if name.endswith(".gguf"))
    firsts = [name for name in names if not SPLIT.fullmatch(name) or SPLIT.fullmatch(name)[2] == "00001"]
    if len(firsts) > 1:
        raise FormatError.several(path, firsts)
    return os.path.join(path, firsts[0]) if firsts else None
