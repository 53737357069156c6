"""Writes GGUF files: weights as I2_S in the layout of official files, TQ1_0 or TQ2_0, under llama.cpp's names.

What the format cannot hold is refused, with the reason: more scales than a type has, rows that are no multiple of a
block, a scale that float16 rounds (I2_S has float32), functions that no architecture means.

References
----------
.. [1] ggml-org/llama.cpp, gguf-py/gguf/gguf_writer.py, conversion/llama.py (``permute``).
"""

import os
import struct

import numpy as np

from bitnet.formats import i2s
from bitnet.formats.ggml import BY_NAME, pack_tq1_0, pack_tq2_0
from bitnet.formats.gguf import GEMMA, LAYER, NORM_IN, TOP
from bitnet.formats.writing import NUMPY, Entry, is_float16, storable, write_entries

__all__ = ["GGUF_TYPES", "architecture_of", "write_gguf"]

GGUF_TYPES = ("I2_S", "TQ1_0", "TQ2_0")
ALIGNMENT = 32
FILE_TYPES = {"I2_S": 40, "TQ1_0": 36, "TQ2_0": 37}  # in ``general.file_type``, of bitnet.cpp and llama.cpp
FAMILIES = {("bitnet", "relu2"): "bitnet-b1.58", ("bitnet", "silu"): "bitnet", ("llama", "silu"): "llama",
            ("qwen3", "silu"): "qwen3", ("gemma3_text", "gelu_pytorch_tanh"): "gemma3"}  # fmt: skip


def architecture_of(config):
    """Find the architecture that means the function of a model.

    Parameters
    ----------
    config : ModelConfig

    Returns
    -------
    str

    Raises
    ------
    ModelLoadError
        If none does.
    """
    found = FAMILIES.get((config.model_type, config.hidden_act))
    reason = f"no architecture of GGUF files means this family with hidden_act '{config.hidden_act}'"
    storable(found is not None, config.model_type, reason)
    is_tied = config.tie_word_embeddings or not found.startswith("bitnet")
    storable(is_tied, "lm_head", f"the architecture '{found}' takes the embedding as the head")
    has_norms = bool((config.extra.get("quantization_config") or {}).get("use_rms_norm"))
    storable(not has_norms, "rms_norm", "GGUF files have no name for the norms of use_rms_norm")
    return found


def write_gguf(path, config, items, kind, vocabulary=None, chat_template=None, rounds=False, progress=None):
    """Write a file.

    Parameters
    ----------
    path : str
    config : ModelConfig
    items : list of Item
        The model's tensors.
    kind : {"I2_S", "TQ1_0", "TQ2_0"}
        The type of ternary weights.
    vocabulary : dict, optional
        Metadata below ``tokenizer.ggml``.
    chat_template : str, optional
    rounds : bool, optional
        Whether scales may be rounded to float16, where `kind` has that.
    progress : callable, optional
        Called as ``progress(done_bytes, total_bytes, name)``.

    Raises
    ------
    ModelLoadError
        If the format cannot hold the model.
    """
    arch = architecture_of(config)
    entries = [_entry(item, arch, config, kind, rounds) for item in items]
    metadata = {**_metadata(config, arch, kind), **(vocabulary or {})}
    if chat_template is not None:
        metadata["tokenizer.chat_template"] = chat_template
    head = b"GGUF" + struct.pack("<IQQ", 3, len(entries), len(metadata))
    head += b"".join(_text(key) + _value(one) for key, one in metadata.items())
    offset = 0
    for entry in entries:
        sizes = b"".join(struct.pack("<Q", size) for size in reversed(entry.shape))
        number = BY_NAME[entry.dtype].number
        head += _text(entry.name) + struct.pack("<I", len(entry.shape)) + sizes + struct.pack("<IQ", number, offset)
        offset += -(-entry.nbytes // ALIGNMENT) * ALIGNMENT
    with open(path, "wb") as file:
        file.write(head + bytes(-len(head) % ALIGNMENT))
        write_entries(file, entries, progress or (lambda done, total, name: None), ALIGNMENT)
        file.flush()
        os.fsync(file.fileno())


def _metadata(config, arch, kind):
    found = {
        "general.architecture": arch, "general.file_type": FILE_TYPES[kind], "general.quantization_version": 2,
        f"{arch}.vocab_size": config.vocab_size, f"{arch}.context_length": config.max_position_embeddings,
        f"{arch}.embedding_length": config.hidden_size, f"{arch}.block_count": config.num_hidden_layers,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.attention.head_count": config.num_attention_heads,
        f"{arch}.attention.head_count_kv": config.num_key_value_heads,
        f"{arch}.attention.key_length": config.head_dim, f"{arch}.attention.value_length": config.head_dim,
        f"{arch}.rope.dimension_count": config.head_dim, f"{arch}.rope.freq_base": config.rope_theta,
        f"{arch}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }  # fmt: skip
    for name, id in (("bos", config.bos_token_id), ("eos", (config.eos_token_id or (None,))[0])):
        if id is not None:
            found[f"tokenizer.ggml.{name}_token_id"] = id
    return found


def _text(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(one):
    """A value with its type: bool, u32, f32, a text, or a list of texts, of i32 or of f32."""
    if isinstance(one, bool):
        return struct.pack("<IB", 7, one)
    if isinstance(one, int):
        return struct.pack("<II", 4, one)
    if isinstance(one, float):
        return struct.pack("<If", 6, one)
    if isinstance(one, str):
        return struct.pack("<I", 8) + _text(one)
    if isinstance(one, np.ndarray):
        kind, dtype = (6, "<f4") if one.dtype.kind == "f" else (5, "<i4")
        return struct.pack("<IIQ", 9, kind, len(one)) + one.astype(dtype).tobytes()
    return struct.pack("<IIQ", 9, 8, len(one)) + b"".join(map(_text, one))


def _name(name, arch):
    """llama.cpp's name for a tensor, or a layer, of ours."""
    layer, kind = (name, "weight") if name.endswith("_proj") else name.rsplit(".", 1)
    for theirs, ours in TOP.items():
        if layer == ours:
            return f"{theirs}.{kind}"
    table = {**LAYER, **NORM_IN, **(GEMMA if arch == "gemma3" else {})}
    if layer.startswith("model.layers.") and layer.count(".") >= 3:
        number, rest = layer.removeprefix("model.layers.").split(".", 1)
        for theirs, ours in table.items():
            if rest == ours:
                return f"blk.{number}.{theirs}.{kind}"
    storable(False, name, "GGUF files have no name for it")
    return None


def _entry(item, arch, config, kind, rounds):
    name = _name(item.name, arch)
    if item.kind == "floats":
        # llama.cpp multiplies norms in float32 only.
        is_matrix = len(item.shape) > 1
        dtype = item.dtype if is_matrix else "F32"
        size = int(np.prod(item.shape, dtype=object)) * np.dtype(NUMPY[dtype]).itemsize
        plus_one = arch == "gemma3" and not is_matrix and "_norm_in" not in name
        make = item.read if is_matrix else lambda: _float32(item.read(), item.dtype) + np.float32(plus_one)
        return Entry(name, dtype, item.shape, size, make)
    rows, cols = item.shape
    if kind == "I2_S":
        storable(cols % 128 == 0, item.name, f"it has {cols} columns, and I2_S blocks of 128")
        size = rows * cols // 4 + i2s.TAIL
    else:
        storable(cols % 256 == 0, item.name, f"it has {cols} columns, and {kind} blocks of 256")
        size = rows * cols // 256 * BY_NAME[kind].nbytes
    return Entry(name, kind, item.shape, size, lambda: _packed(item, arch, config, kind, rounds))


def _packed(item, arch, config, kind, rounds):
    found = item.read()
    codes, scale = found.codes, found.scale
    if arch == "llama" and item.name.endswith(("q_proj", "k_proj")):
        heads = config.num_attention_heads if item.name.endswith("q_proj") else config.num_key_value_heads
        codes, scale = _permuted(codes, heads), _permuted(scale, heads) if scale.ndim else scale
    if kind == "I2_S":
        storable(scale.ndim == 0, item.name, f"it has {scale.size} scales, and I2_S one for a weight")
        return i2s.pack(np.ascontiguousarray(codes), scale)
    worst = float(scale.reshape(-1)[0])
    storable(rounds or is_float16(scale), item.name,
             f"{kind} would round its scale, {worst!r}, to float16; allow that, or write I2_S")  # fmt: skip
    blocks = np.ascontiguousarray(codes).reshape(-1, 256)
    return (pack_tq1_0 if kind == "TQ1_0" else pack_tq2_0)(blocks, _of_blocks(item, scale, kind))


def _of_blocks(item, scale, kind):
    """The scale of each block of 256 columns."""
    rows, count = item.shape[0], item.shape[1] // 256
    if scale.ndim < 2:
        return np.broadcast_to(scale.reshape(-1, 1), (rows, count)).reshape(-1)
    per_block = scale.shape[1] // count
    groups = scale.reshape(rows, count, per_block)
    storable((groups == groups[:, :, :1]).all(), item.name,
             f"a scale holds for {256 // per_block} of its columns, and {kind} has one for 256")  # fmt: skip
    return groups[:, :, 0].reshape(-1)


def _permuted(rows, heads):
    """Rows of queries or keys in the order in which pairs are rotated [1]."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _float32(array, dtype):
    return (array.astype(np.uint32) << np.uint32(16)).view(np.float32) if dtype == "BF16" else array.astype(np.float32)
