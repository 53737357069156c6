"""Checkpoints of random numbers, in the shapes of real models: to measure a model that is not there.

Nothing is stored but the embedding, in a temporary file, as a checkpoint has it: a run then reads the rows of its
tokens only. Everything else is drawn when it is asked for, the same each time.
"""

import mmap
import tempfile
import zlib

import numpy as np

from bitnet.errors import ConfigurationError
from bitnet.formats.base import Checkpoint, OpenFile, StoredTernary, TensorInfo, released

__all__ = ["SHAPES", "RandomCheckpoint"]

SHAPES = {
    # microsoft/bitnet-b1.58-2B-4T
    "2b4t": {"model_type": "bitnet", "vocab_size": 128256, "hidden_size": 2560, "intermediate_size": 6912,
             "num_hidden_layers": 30, "num_attention_heads": 20, "num_key_value_heads": 5, "rope_theta": 500000.0,
             "max_position_embeddings": 4096, "hidden_act": "relu2", "tie_word_embeddings": True},
    # 1bitLLM/bitnet_b1_58-large and -3B: the same function with SiLU
    "0.7b": {"model_type": "bitnet", "vocab_size": 32002, "hidden_size": 1536, "intermediate_size": 4096,
             "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16, "rope_theta": 10000.0,
             "max_position_embeddings": 2048, "hidden_act": "silu", "tie_word_embeddings": True},
    "3b": {"model_type": "bitnet", "vocab_size": 32002, "hidden_size": 3200, "intermediate_size": 8640,
           "num_hidden_layers": 26, "num_attention_heads": 32, "num_key_value_heads": 32, "rope_theta": 10000.0,
           "max_position_embeddings": 2048, "hidden_act": "silu", "tie_word_embeddings": True},
    # HF1BitLLM/Llama3-8B-1.58
    "8b": {"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
           "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 500000.0,
           "max_position_embeddings": 8192, "hidden_act": "silu", "tie_word_embeddings": False},
}  # fmt: skip
"""A ``config.json`` for each name."""

CHUNK_ROWS = 4096  # of the embedding, written at once
CACHED = 1 << 14  # numbers made at once, that they stay in a cache


class RandomCheckpoint(Checkpoint):
    """Random weights in the shape of a model.

    Packed weights are -1 and 1 a quarter each and 0 the half, as trained ones nearly are; norms are 1; the embedding
    and the head are bfloat16 of 0.5 to 2, of either sign.

    Parameters
    ----------
    shape : str
        One of `SHAPES`.

    Raises
    ------
    ConfigurationError
        If there is no such shape.
    """

    format = "random"
    LOOKED_FOR = "nothing"

    def __init__(self, shape):
        if shape not in SHAPES:
            raise ConfigurationError.choice("shape", shape, tuple(SHAPES))
        super().__init__(shape)
        self.config = {"rms_norm_eps": 1e-5, **SHAPES[shape]}
        file = _RandomFile(shape, self.config)
        self._resources.callback(file.close)
        self._files = dict.fromkeys(file.tensors, file)

    @classmethod
    def knows(cls, path):
        """Never: no path leads here."""
        return False

    def matrix_shape(self, name):
        """Say how many rows and columns a weight stands for."""
        info = self.info(f"{name}.weight")
        return (4 * info.shape[0], info.shape[1]) if info.dtype == "U8" else info.shape

    def is_quantized(self, name):
        """Whether a layer is ternary."""
        return self.info(f"{name}.weight").dtype == "U8"

    def ternary(self, name):
        """A ternary weight of random codes, with a scale that keeps activations near 1."""
        quarter, cols = self.info(f"{name}.weight").shape
        return StoredTernary("packed", 4 * quarter, cols, data=self.raw(f"{name}.weight"),
                             scale=float(np.float32((cols / 2) ** -0.5)))  # fmt: skip


class _RandomFile:
    """The tensors, as an open file gives them."""

    def __init__(self, shape, config):
        self.tensors, self._tables = {}, {}
        hidden, feed = config["hidden_size"], config["intermediate_size"]
        heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
        key = hidden // heads * shared
        linears = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (key, hidden),
                   "self_attn.v_proj": (key, hidden), "self_attn.o_proj": (hidden, hidden),
                   "mlp.gate_proj": (feed, hidden), "mlp.up_proj": (feed, hidden),
                   "mlp.down_proj": (hidden, feed)}  # fmt: skip
        norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
        if config["model_type"] == "bitnet":
            norms |= {"self_attn.attn_sub_norm": hidden, "mlp.ffn_sub_norm": feed}
        self._add(shape, "model.embed_tokens", "BF16", (config["vocab_size"], hidden))
        for layer in range(config["num_hidden_layers"]):
            at = f"model.layers.{layer}."
            for name, (rows, cols) in linears.items():
                self._add(shape, at + name, "U8", (rows // 4, cols))
            for name, width in norms.items():
                self._add(shape, at + name, "F32", (width,))
        self._add(shape, "model.norm", "F32", (hidden,))
        if not config["tie_word_embeddings"]:
            self._add(shape, "lm_head", "BF16", (config["vocab_size"], hidden))

    def _add(self, shape, layer, dtype, dimensions):
        name, itemsize = f"{layer}.weight", {"U8": 1, "BF16": 2, "F32": 4}[dtype]
        nbytes = int(np.prod(dimensions)) * itemsize
        self.tensors[name] = TensorInfo(name, dtype, dimensions, nbytes, f"random {shape}")

    def raw(self, name):
        info = self.tensors[name]
        if info.dtype == "F32":
            return np.ones(info.shape, np.float32)
        if info.dtype == "BF16":
            return np.frombuffer(self._table(name)[1], np.uint16).reshape(info.shape)
        return _codes(_draw(name, 0, info.nbytes)).reshape(info.shape)

    def _table(self, name):
        if name not in self._tables:
            self._tables[name] = _stored_table(name, self.tensors[name].shape)
        return self._tables[name]

    def place(self, name):
        return self._table(name)[0], 0

    def let_go(self):
        for _, mapping in self._tables.values():
            released(mapping)

    def close(self):
        self._tables = {}


def _draw(name, start, nbytes):
    """Random bytes of a tensor, from a multiple of 8 on: SplitMix64 of their place. (`numpy.random` is 6 MB of
    libraries, which would count as what a model takes.)

    References
    ----------
    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, figure 17 (mix64variant13).
    """
    found, room = np.empty(-(-nbytes // 8), np.uint64), np.empty(CACHED, np.uint64)
    step, first = 0x9E3779B97F4A7C15, (zlib.crc32(name.encode()) << 32) + start // 8 + 1
    states = np.arange(CACHED, dtype=np.uint64) * np.uint64(step)
    for at in range(0, len(found), CACHED):
        x = found[at : at + CACHED]
        y = room[: len(x)]
        np.add(states[: len(x)], np.uint64((first + at) * step % 2**64), out=x)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            np.right_shift(x, np.uint64(shift), out=y)
            np.bitwise_xor(x, y, out=x)
            np.multiply(x, np.uint64(factor), out=x)
    return found.view(np.uint8)[:nbytes]


def _codes(random):
    """Four codes a byte: 1, which is the weight 0, where a field's low bit is set, else twice its high bit."""
    low = random & 0x55
    high = random & 0xAA
    high &= ~(low << 1)
    return low | high


def _stored_table(name, shape):
    """A table of bfloat16 in a file that has no name any more: the open file, and its mapping."""
    with tempfile.NamedTemporaryFile() as named:
        file = OpenFile(named.name)
        for start in range(0, shape[0], CHUNK_ROWS):
            count = min(CHUNK_ROWS, shape[0] - start) * shape[1]
            bits = _draw(name, 2 * start * shape[1], 2 * count).view(np.uint16)
            # The sign, the mantissa and the lowest bit of the exponent are random; the exponent is -1 or 0.
            named.write((bits & 0x80FF | 0x3F00).tobytes())
        named.flush()
    return file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
