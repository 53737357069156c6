"""Rows of test_raises.py for files of other formats, and what is made of them."""

import errno
import os
import socket
import tempfile
from pathlib import Path

from checkpoints import DATA
from gguf_files import f32, write_gguf

from bitnet.formats import open_checkpoint
from bitnet.formats.gguf_file import GGUFFile
from bitnet.tokenizer import Tokenizer

I2_S = str(DATA.parent / "gguf" / "bitnet-packed-auto-i2_s-x86.gguf")


def in_folder(trigger):
    """Call with a folder, whose name then becomes three dots."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            trigger(Path(folder))
        except Exception as error:
            error.args = (str(error).replace(folder, "..."),)
            raise


def a_socket(folder):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(folder / "model"))
        open_checkpoint(folder / "model")


def ordinary(folder):
    size = {f"llama.{key}": 32 for key in ("context_length", "embedding_length", "feed_forward_length", "block_count")}
    metadata = {"general.architecture": "llama", **size, "llama.attention.head_count": 2}
    tensor = ("Q8_0", (32, 32), bytes(34 * 32))
    path = write_gguf(folder / "a.gguf", metadata, {"blk.0.attn_v.weight": tensor})
    with open_checkpoint(path) as checkpoint:
        checkpoint.ternary("model.layers.0.self_attn.v_proj")


def two(folder):
    for name in ("a", "b"):
        write_gguf(folder / f"{name}.gguf", {}, {"a": f32([1])})
    open_checkpoint(folder)


def closed():
    file = GGUFFile(I2_S)
    file.close()
    file.raw("token_embd.weight")


def vocabulary(folder, **more):
    Tokenizer.from_gguf(write_gguf(folder / "a.gguf", {f"tokenizer.ggml.{key}": one for key, one in more.items()}))


ROWS = [
    ("formats/__init__.py", "ModelLoadError.unreadable", lambda: in_folder(a_socket),
     f"cannot read '.../model': {os.strerror(errno.ENXIO)}"),
    ("formats/gguf.py", "ConfigurationError.choice", lambda: open_checkpoint(I2_S, "x"),
     "i2s_layout is 'x'; it must be one of 'auto', 'x86', 'arm', 'rows4'"),
    ("formats/gguf.py", "ModelLoadError.not_bitnet", lambda: in_folder(ordinary),
     "not a BitNet checkpoint: 'blk.0.attn_v.weight' in '.../a.gguf' is Q8_0, and only I2_S, TQ1_0, TQ2_0, Q2_0, and "
     "floats that are ternary, are run by ternary kernels"),
    ("formats/gguf.py", "FormatError.several", lambda: in_folder(two),
     "'...' has 2 models, 'a.gguf', 'b.gguf'; give the path of one of them"),
    ("formats/gguf_file.py", "ModelLoadError.unreadable", closed,
     f"cannot read '{I2_S}': it was closed; open it again"),
    ("vocabulary.py", "FormatError.value",
     lambda: in_folder(lambda folder: vocabulary(folder, model="bert", tokens=["a"])),
     "'.../a.gguf': tokenizer.ggml.model is 'bert'; it must be 'gpt2' or 'llama'"),
    ("vocabulary.py", "FormatError.value", lambda: in_folder(lambda folder: vocabulary(folder, tokens=["a"])),
     "'.../a.gguf': tokenizer.ggml.model is None; it must be a text"),
]  # fmt: skip
