"""Rows of test_raises.py for files of other formats, and what is made of them."""

import errno
import functools
import os
import socket
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from checkpoints import DATA, layer, quantized, write_folder
from gguf_files import f32, write_gguf

import bitnet
from bitnet import hub
from bitnet._core import packing
from bitnet.cli.session import read_text
from bitnet.embedding import Pool, embedded
from bitnet.formats import open_checkpoint
from bitnet.formats.gguf_file import GGUFFile
from bitnet.formats.writing import storable
from bitnet.models import family
from bitnet.tokenizer import Tokenizer
from bitnet.vocabulary import PRE, metadata_of

FOLDER = str(DATA)
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


class Nothing:
    """What is asked of a model before it is run: a vocabulary of 3, and no token for any text."""

    config = SimpleNamespace(vocab_size=3)

    @staticmethod
    def encode(text):
        return []


def unaligned():
    """64 bytes that do not begin at a multiple of 64."""
    data = np.zeros(192, np.uint8)
    begin = -data.ctypes.data % 64 + 1
    return data[begin : begin + 64]


def closed_folder():
    bitnet.convert(MODEL, "/proc/none/a")


def panels(folder):
    bitnet.convert(MODEL, folder / "a")
    with open_checkpoint(folder / "a") as checkpoint:
        checkpoint.ternary("model.norm")


def code_3(folder):
    tensors = layer(name="l.up_proj") | {"model.embed_tokens.weight": ("F32", np.ones((4, 4), np.float32))}
    tensors["l.up_proj.weight"][1][0, 0] = 255
    sizes = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"), 4)
    config = {"model_type": "bitnet", "num_attention_heads": 1, "tie_word_embeddings": True, **sizes, **quantized()}
    bitnet.convert(write_folder(folder / "s", tensors, config), folder / "a")


MODEL = str(DATA / "llama-packed-bitlinear")
BYTES = np.zeros(192, np.uint8)
FLOATS = np.ones((1, 4), np.float32)

def gemma(folder, **more):
    sizes = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"), 4)
    family({"model_type": "gemma3_text"}, "a").config({"num_attention_heads": 1, **sizes, **more})


def without(library, trigger):
    """Call while a library cannot be imported."""
    before = {name: sys.modules.get(name) for name in (library, f"{library}.figure")}
    sys.modules.update(dict.fromkeys(before))
    try:
        trigger()
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


def not_in_cache(folder):
    hub.fetch("somebody/a-model", cache_dir=folder, offline=True)


@functools.cache
def loaded():
    return bitnet.load(MODEL, num_threads=1)


def no_projections(folder):
    tensors = {"model.norm.weight": ("F32", np.ones(4, np.float32))}
    sizes = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"), 4)
    config = {"model_type": "llama", "num_attention_heads": 1, "tie_word_embeddings": True, **sizes}
    bitnet.quantize_checkpoint(write_folder(folder / "s", tensors, config), folder / "a")


ROWS = [
    ("_core/matmul.pyx", "KernelError.float_inputs",
     lambda: bitnet.TernaryWeight.from_codes(np.ones((1, 4), np.int8), 1, "t5").matmul_float(FLOATS),
     "packing 't5' cannot multiply floats as they are; use packing 'i2'"),
    ("embedding.py", "ConfigurationError.choice", lambda: Pool("max", [1], 4),
     "pooling is 'max'; it must be one of 'last', 'mean', 'cls'"),
    ("embedding.py", "ConfigurationError.value", lambda: loaded().engine.embed(loaded().model, "text"),
     "embed.texts is 'text'; it must be a list of texts, or of lists of tokens"),
    ("embedding.py", "ConfigurationError.value", lambda: loaded().engine.embed(loaded().model, ["a"], batch_size=0),
     "embed.batch_size is 0; it must be a whole number above 0"),
    ("embedding.py", "InferenceError.empty_prompt",
     lambda: embedded(loaded().engine, Nothing, [""], None, True, 1, None),
     "the prompt has no tokens; give at least one"),
    ("evaluation.py", "ConfigurationError.value",
     lambda: bitnet.perplexity(loaded().engine, loaded().model, [1, 2], context=1),
     "perplexity.context is 1; it must be a whole number from 2 to 128"),
    ("evaluation.py", "InferenceError.too_short", lambda: bitnet.perplexity(loaded().engine, loaded().model, [1]),
     "the text has 1 tokens; at least two are needed, one to predict the other"),
    ("evaluation.py", "InferenceError.vocabularies",
     lambda: bitnet.compare(loaded().engine, loaded().model, Nothing, [1, 2]),
     "the vocabularies have 512 and 3 tokens; only models of one vocabulary can be compared"),
    ("hub.py", "ConfigurationError.missing_library", lambda: without("huggingface_hub", lambda: hub.fetch("a/b")),
     "'a/b' is no file or folder here, but may be an id of the Hub, which needs the library 'huggingface_hub': "
     "pip install 'bitnet-runtime[hub]'"),
    ("hub.py", "ModelLoadError.not_fetched", lambda: in_folder(not_in_cache),
     "there is no file or folder 'somebody/a-model', and the Hub gives none (https://huggingface.co/somebody/a-model; "
     "cache ...): it is not in the cache, and the Hub is not reached"),
    ("quantization.py", "ConfigurationError.choice", lambda: bitnet.quantize_checkpoint(MODEL, "a", to="x"),
     "to is 'x'; it must be one of 'bitnet', 'hugging_face', 'gguf'"),
    ("quantization.py", "ModelLoadError.nothing_to_quantize", lambda: in_folder(no_projections),
     "'.../s' has no projections of floats; there is nothing to quantise"),
    ("quantization.py", "ConfigurationError.missing_library",
     lambda: without("matplotlib", lambda: bitnet.plot_report([], "a.png")),
     "a plot was asked for, which needs the library 'matplotlib': pip install 'bitnet-runtime[plot]'"),
    ("models/gemma3_text.py", "ModelLoadError.unsupported", lambda: gemma(None, layer_types=["full"]),
     "'config.json': layer_types is ['full']; it must be a list of 'full_attention' and 'sliding_attention'"),
    ("models/gemma3_text.py", "ModelLoadError.unsupported", lambda: gemma(None, sliding_window=0),
     "'config.json': sliding_window is 0; it must be a number of positions above 0"),
    ("models/gemma3_text.py", "ModelLoadError.unsupported",
     lambda: gemma(None, rope_parameters={"full_attention": {"rope_type": "linear"}}),
     "'config.json': rope_parameters.full_attention is {'rope_type': 'linear'}; it must be 'default'"),
    ("models/gemma3_text.py", "ModelLoadError.unsupported", lambda: gemma(None, final_logit_softcapping=30.0),
     "'config.json': final_logit_softcapping is 30.0; it must be absent, null or false"),
    ("cli/session.py", "ModelLoadError.unreadable", lambda: read_text("/proc/none"),
     "cannot read '/proc/none': No such file or directory"),
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
    ("vocabulary.py", "FormatError.value", lambda: metadata_of({"model": {"type": "Unigram"}}, "a.json", 4),
     "'a.json': the model of the tokenizer is 'Unigram'; it must be 'BPE', which GGUF files have names for"),
    ("vocabulary.py", "FormatError.value",
     lambda: metadata_of({"model": {"type": "BPE", "vocab": {}, "merges": []}}, "a.json", 4),
     f"'a.json': how the tokenizer cuts words is (); it must be a way that GGUF has a name for: {', '.join(PRE)}"),
    ("conversion.py", "ConfigurationError.choice", lambda: bitnet.convert(MODEL, "a", to="onnx"),
     "to is 'onnx'; it must be one of 'bitnet', 'hugging_face', 'gguf'"),
    ("conversion.py", "FormatError.value", lambda: in_folder(code_3),
     "'.../s': a code of 'l.up_proj' is 3; it must be 0, 1 or 2"),
    ("formats/writing.py", "ModelLoadError.exists", lambda: bitnet.convert(MODEL, FOLDER),
     f"'{FOLDER}' exists already; give another name, or allow that it is replaced"),
    ("formats/writing.py", "ModelLoadError.unwritable", closed_folder,
     "cannot write '/proc/none/a': No such file or directory"),
    ("formats/writing.py", "ModelLoadError.unstorable", lambda: storable(False, "a", "it is too long"),
     "the format cannot hold 'a': it is too long"),
    ("formats/panels.py", "ModelLoadError.not_bitnet", lambda: in_folder(panels),
     "not a BitNet checkpoint: 'model.norm.weight' in '.../a/model.safetensors' is BF16, and the file lists it as no "
     "ternary weight"),
    ("_core/packing.pyx", "ShapeError.empty", lambda: packing.view_packed_bytes(BYTES, 0, 4, 1, "i2"),
     "data has shape (0, 4); it needs at least one row and one column"),
    ("_core/packing.pyx", "ShapeError.mismatch", lambda: packing.view_packed_bytes(BYTES, 2, 4, 1, "i2"),
     "data has shape (192,); it must be (64,)"),
    ("_core/packing.pyx", "TensorError.not_aligned", lambda: packing.view_packed_bytes(unaligned(), 2, 4, 1, "i2"),
     "data does not lie at addresses fit for tiles of 64 bytes; pass a copy of it"),
    ("vocabulary.py", "FormatError.value", lambda: in_folder(lambda folder: vocabulary(folder, tokens=["a"])),
     "'.../a.gguf': tokenizer.ggml.model is None; it must be a text"),
]  # fmt: skip
