"""Every ``raise`` of the package is reached, and its message read.

`ROWS` names for each the file, what it raises, how to get there, and the sentence. The traceback tells which line was
reached; a ``raise`` that no row reaches, or a row that reaches another one, is an error. Lines are those of the sources
beside the tests: a compiled module that is older than its source has to be built again.
"""

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import raises_chat
import raises_cli
import raises_compat
import raises_formats
import raises_instruments
import raises_memory
import raises_runs
import raises_server
import raises_state
import raises_train

import bitnet
from bitnet import GenerationConfig, ModelConfig, QuantizationConfig, TernaryWeight
from bitnet._core import arrays, cpu, matmul, packing, quant, threads
from bitnet.formats import base, open_checkpoint
from bitnet.formats.safetensors import SafetensorsFile
from bitnet.sampling import Sampler, StopStrings, logprobs
from bitnet.tokenizer import Tokenizer

PACKAGE = Path(__file__).resolve().parents[1] / "bitnet"
CHECKPOINT = PACKAGE.parent / "tests" / "data" / "hf" / "llama-packed-bitlinear"
WEIGHTS = CHECKPOINT / "model.safetensors"
SIZES = {"vocab_size": 64, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
FAMILY = {"model_type": "bitnet", "hidden_act": "relu2", "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
          "tie_word_embeddings": True}  # fmt: skip
CODES = np.array([[1, 0, -1, 1], [0, 0, 1, -1]], np.int8)
FLOATS = np.ones((2, 4), np.float32)
BYTES = np.zeros((1, 4), np.uint8)
NAN = np.array([[0, 1], [np.nan, 2]], np.float32)
ISAS = ", ".join(cpu.possible_isas())


def model(**fields):
    return ModelConfig(**{**SIZES, **fields})


def weight():
    return packing.pack_codes(CODES, 1, "i2")


def read_only():
    array = np.empty((2, 4), np.int8)
    array.flags.writeable = False
    return array


def unaligned():
    return np.zeros(17, np.uint8)[1:].view(np.float32)


def damaged():
    """The bytes of a weight, one of which says that there is a weight where there is none."""
    data = np.array(weight().packed_bytes)
    data[5] = 0x65
    return data


def closed_checkpoint():
    with open_checkpoint(CHECKPOINT) as checkpoint:
        return checkpoint


def tokenizer(**options):
    import tokenizers

    return Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()), **options)


# ---- the raises in the sources


@dataclass(frozen=True)
class Site:
    """A ``raise``: its file below the package, what it raises, and its first and last line."""

    file: str
    raised: str
    first: int
    last: int


def python_sites(file, text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Raise):
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            yield Site(file, ast.unparse(raised) if raised else "", node.lineno, node.end_lineno)


def cython_sites(file, text):
    # Docstrings and comments go, their lines stay.
    text = re.sub(r'"""(.*?)"""|#[^\n]*', lambda found: "\n" * found[0].count("\n"), text, flags=re.S)
    for found in re.finditer(r"(?m)^[ \t]*(?:\w[^\n]*: )?raise\b[ \t]*([\w.]*)\(?", text):
        end = found.end()
        while text[found.start() : end].count("(") > text[found.start() : end].count(")"):
            end += 1
        first = text.count("\n", 0, found.start()) + 1
        yield Site(file, found[1], first, first + text.count("\n", found.start(), end))


# What needs PyTorch is reached by train/test_train_raises.py.
WITHOUT_TORCH = ("train/__init__.py", "train/config.py")


def sites():
    found = []
    for path in sorted(PACKAGE.glob("**/*.py*")):
        if path.suffix in (".py", ".pyx"):
            read = python_sites if path.suffix == ".py" else cython_sites
            found += read(path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8"))
    return [site for site in found if not site.file.startswith("train/") or site.file in WITHOUT_TORCH]


# ---- how they are reached


@dataclass(frozen=True)
class Outcome:
    """What was raised, what it says, and where."""

    name: str
    sentence: str
    file: str
    line: int


def outcome(trigger):
    """Run `trigger`, which raises, or returns the Outcome of another process."""
    try:
        found = trigger()
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return Outcome(type(error).__name__, str(error), below_package(last.filename), last.lineno)
    assert isinstance(found, Outcome), "nothing was raised"
    return found


def below_package(filename):
    return filename.replace(os.sep, "/").rpartition("/bitnet/" if os.path.isabs(filename) else "bitnet/")[2]


def in_process(code, **environment):
    """Run `code` in a process of its own, which an error ends."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(bitnet.__file__).parents[1], env={**os.environ, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    frames = re.findall(r'File "([^"]+)", line (\d+)', done.stderr)
    assert frames, done.stderr or "nothing was raised"
    name, _, sentence = done.stderr.rstrip().splitlines()[-1].partition(": ")
    return Outcome(name.rpartition(".")[2], sentence, below_package(frames[-1][0]), int(frames[-1][1]))


def import_without_atfork(module):
    # glibc's pthread_atfork is a call of this function; the one here refuses.
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/refuse.so"
        compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
        # What is imported before has handlers too: refuse the first, the second, ... until it is the right one.
        for refused in range(1, 20):
            source = f"static int n; int __register_atfork(void) {{ return ++n == {refused} ? 12 : 0; }}\n"
            command = [compiler, "-shared", "-fPIC", "-x", "c", "-o", library, "-"]
            subprocess.run(command, input=source.encode(), check=True)
            preload = f"{os.environ.get('LD_PRELOAD', '')}:{library}".strip(":")
            found = in_process(f"import bitnet._core.{module}; raise SystemError", LD_PRELOAD=preload)
            if found.file == f"_core/{module}.pyx":
                return found
        return found


# (file, what is raised, how, the sentence)
ROWS = [
    ("_checks.py", "ConfigurationError.missing_fields", lambda: ModelConfig(vocab_size=8),
     "ModelConfig needs 'hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads'; they "
     "were not given"),
    ("_checks.py", "ConfigurationError.not_a_mapping", lambda: GenerationConfig.from_dict([1]),
     "GenerationConfig is made from a dictionary of its fields, not from list"),
    ("_checks.py", "ConfigurationError.unknown_field", lambda: GenerationConfig(max_tokens=64),
     "GenerationConfig has no field 'max_tokens'; use 'max_new_tokens'"),
    ("_checks.py", "self._refused", lambda: model(vocab_size=0),
     "ModelConfig.vocab_size is 0; it must be a whole number from 1 to 2147483647"),
    ("_checks.py", "self._refused", lambda: model(rope_theta=-1),
     "ModelConfig.rope_theta is -1; it must be a finite number above 0"),
    ("_checks.py", "self._refused", lambda: model(mlp_bias=1),
     "ModelConfig.mlp_bias is 1; it must be True or False"),
    ("_checks.py", "ConfigurationError.choice", lambda: model(hidden_act="tanh"),
     "ModelConfig.hidden_act is 'tanh'; it must be one of 'relu2', 'silu', 'gelu', 'gelu_pytorch_tanh'"),
    ("_checks.py", "self._refused", lambda: model(eos_token_id=[64]),
     "ModelConfig.eos_token_id is [64]; it must be a token id from 0 to 63, or a list of them"),
    ("_checks.py", "self._refused", lambda: GenerationConfig(stop_strings=[""]),
     "GenerationConfig.stop_strings is ['']; it must be a string or a list of strings, none of them empty"),
    ("config.py", "self._conflict", lambda: model(num_attention_heads=4, num_key_value_heads=3),
     "ModelConfig: 3 key/value heads do not divide 4 attention heads"),
    ("config.py", "self._conflict", lambda: model(num_attention_heads=3),
     "ModelConfig: 3 heads do not divide hidden_size, 8; set head_dim"),
    ("config.py", "self._refused", lambda: model(head_dim=3),
     "ModelConfig.head_dim is 3; it must be even, because the rotary embedding turns pairs of elements"),
    ("config.py", "self._refused", lambda: model(model_type=""),
     "ModelConfig.model_type is ''; it must be the name of a family, such as 'bitnet'"),
    ("config.py", "self._refused", lambda: model(extra={"a": {1}}),
     "ModelConfig.extra is {'a': {1}}; it must be a mapping of names to values that JSON can hold"),
    ("config.py", "self._conflict", lambda: model(extra={"head_dim": 4}),
     "ModelConfig: extra has 'head_dim', which is a field; set that instead"),
    ("config.py", "ConfigurationError.not_a_mapping", lambda: ModelConfig.from_hugging_face("config.json"),
     "ModelConfig is made from a dictionary of its fields, not from str"),
    ("config.py", "ConfigurationError.conflict",
     lambda: ModelConfig.from_hugging_face({"rope_theta": 1.0, "rope_parameters": {"rope_theta": 2.0}}),
     "ModelConfig: rope_theta is 1.0, in rope_parameters 2.0"),
    ("config.py", "ConfigurationError.missing_fields", lambda: ModelConfig.from_hugging_face({**SIZES, **FAMILY}),
     "ModelConfig needs 'rope_theta'; it was not given"),
    ("config.py", "self._refused", lambda: QuantizationConfig(symmetric=False),
     "QuantizationConfig.symmetric is False; it must be True, because the codes -1, 0 and 1 have no offset"),
    ("config.py", "self._conflict", lambda: QuantizationConfig(per_channel=True, group_size=64),
     "QuantizationConfig: per_channel is one scale a row, group_size 64 is several; set one"),
    ("_generation_config.py", "self._conflict", lambda: GenerationConfig(max_new_tokens=1, min_new_tokens=2),
     "GenerationConfig: min_new_tokens is 2, max_new_tokens only 1"),
    ("_checks.py", "self._refused", lambda: GenerationConfig(logit_bias=[1]),
     "GenerationConfig.logit_bias is [1]; it must be a dictionary of token ids from 0 to 2147483647 to finite numbers"),
    ("_generation_config.py", "self._conflict", lambda: GenerationConfig(temperature=0.5),
     "GenerationConfig: temperature is 0.5, which is of use only with do_sample=True"),
    ("_errors.py", "ConfigurationError.choice", lambda: bitnet.BitNetError("a", severity="fatal"),
     "severity is 'fatal'; it must be one of 'info', 'warning', 'error', 'critical'"),
    ("formats/__init__.py", "ModelLoadError.unreadable", lambda: open_checkpoint(CHECKPOINT / "none"),
     f"cannot read '{CHECKPOINT}/none': there is no such file or folder"),
    ("formats/__init__.py", "FormatError.unknown", lambda: open_checkpoint(CHECKPOINT.parent),
     f"'{CHECKPOINT.parent}' is no checkpoint of a known format; looked for a folder with 'config.json' and "
     "'model.safetensors' or 'model.safetensors.index.json' (hugging_face) or a .gguf file or a folder with one "
     "(gguf); there is 'bitnet-packed-auto', "
     "'bitnet-packed-bitlinear', 'llama-packed-bitlinear', 'llama-packed-rmsnorm'"),
    ("formats/base.py", "ModelLoadError.missing_tensor", lambda: closed_checkpoint().info("lm_head"),
     f"'{CHECKPOINT}' has no tensor 'lm_head'; did you mean 'lm_head.weight'"),
    ("formats/base.py", "FormatError.value", lambda: base.parsed_json(b"1", "a.json", "the file"),
     "'a.json': the file is 1; it must be a JSON object"),
    ("formats/base.py", "FormatError.not_json", lambda: base.parsed_json(b"", "a.json", "the file"),
     "'a.json': the file is not JSON (Expecting value: line 1 column 1 (char 0)); the file is damaged: get it again"),
    ("formats/base.py", "ModelLoadError.unreadable", lambda: base.read_bytes(CHECKPOINT),
     f"cannot read '{CHECKPOINT}': Is a directory"),
    ("formats/base.py", "ModelLoadError.unreadable", lambda: SafetensorsFile(CHECKPOINT),
     f"cannot read '{CHECKPOINT}': Is a directory"),
    ("formats/safetensors.py", "ModelLoadError.unreadable", lambda: closed_checkpoint().raw("lm_head.weight"),
     f"cannot read '{WEIGHTS}': it was closed; open it again"),
    ("formats/hugging_face.py", "ModelLoadError.not_bitnet", lambda: open_checkpoint(CHECKPOINT).ternary("lm_head"),
     f"not a BitNet checkpoint: 'lm_head.weight' in '{WEIGHTS}' is BF16, and embeddings and the output head are "
     "ordinary"),
    ("quant.py", "ConfigurationError.value", lambda: TernaryWeight.from_float(FLOATS, "i2"),
     "TernaryWeight.from_float.config is 'i2'; it must be a QuantizationConfig"),
    ("quant.py", "ShapeError.mismatch", lambda: bitnet.dequantize(CODES, [[1, 1], [1, 1]], group_size=64),
     "scale has shape (2, 2); it must be (2, 1)"),
    ("quant.py", "ShapeError.dimensions", lambda: bitnet.dequantize(CODES[0], [[1]], group_size=64),
     "codes has shape (4,); it must have shape (rows, cols)"),
    ("quant.py", "ShapeError.mismatch", lambda: bitnet.dequantize(CODES, [1, 2, 3]),
     "scale has shape (3,); it must be (2,)"),
    ("tokenizer.py", "ConfigurationError.value", lambda: tokenizer(add_bos=3),
     "Tokenizer.add_bos is 3; it must be True, False or None"),
    ("tokenizer.py", "ConfigurationError.conflict", lambda: tokenizer(add_bos=True),
     "Tokenizer: add_bos is True, but bos_token_id is not known"),
    ("tokenizer.py", "ModelLoadError.unreadable", lambda: Tokenizer.from_file(CHECKPOINT),
     f"cannot read '{CHECKPOINT}': Is a directory"),
    ("tokenizer.py", "FormatError.tokenizer", lambda: Tokenizer.from_file(os.devnull),
     "'/dev/null' is not what the library 'tokenizers' reads: EOF while parsing a value at line 1 column 0"),
    ("tokenizer.py", "ConfigurationError.value", lambda: tokenizer().encode(1),
     "Tokenizer.encode.text is 1; it must be a string"),
    ("tokenizer.py", "InferenceError.encoding", lambda: tokenizer().encode("\ud800"),
     "cannot encode the text: U+D800 at index 0 is half of a surrogate pair"),
    ("tokenizer.py", "ConfigurationError.value", lambda: tokenizer().decode("a"),
     "Tokenizer.ids is 'a'; it must be a token id from 0 to 4294967295"),
    ("tokenizer.py", "ConfigurationError.value", lambda: tokenizer().decode([-1]),
     "Tokenizer.ids is -1; it must be a token id from 0 to 4294967295"),
    ("sampling.py", "ConfigurationError.value", lambda: Sampler(None, 2),
     "Sampler.config is None; it must be a GenerationConfig"),
    ("sampling.py", "ConfigurationError.value", lambda: Sampler(GenerationConfig(), 0),
     "Sampler.vocab_size is 0; it must be a whole number above 0"),
    ("sampling.py", "ConfigurationError.conflict",
     lambda: Sampler(GenerationConfig(), 4).pick(FLOATS[0], forbidden=range(4)),
     "Sampler.pick: forbidden has all 4 tokens"),
    ("sampling.py", "InferenceError.token", lambda: Sampler(GenerationConfig(), 4).pick(FLOATS[0], forbidden=[4]),
     "token 4 at position 0 is not in the vocabulary of 4"),
    ("sampling.py", "ConfigurationError.value", lambda: StopStrings([""]),
     "StopStrings.strings is ['']; it must be a list of strings, none of them empty"),
    ("sampling.py", "TensorError.not_an_array", lambda: logprobs([1]),
     "logits must be a NumPy array, not list"),
    ("sampling.py", "TensorError.dtype", lambda: logprobs(CODES),
     "logits has dtype int8; it must be float32 (convert it with .astype(np.float32))"),
    ("sampling.py", "ShapeError.mismatch", lambda: Sampler(GenerationConfig(), 4).pick(FLOATS),
     "logits has shape (2, 4); it must be (4,)"),
    ("sampling.py", "ShapeError.dimensions", lambda: logprobs(np.array(1, np.float32)),
     "logits has shape (); it must have shape (..., vocab)"),
    ("sampling.py", "InferenceError.logits", lambda: logprobs(NAN),
     "1 of 4 logits are not finite, the first is NaN at index (1, 0)"),
    *raises_train.ROWS,
    *raises_server.ROWS,
    ("weight.py", "TypeError", TernaryWeight,
     "a TernaryWeight is made by TernaryWeight.from_float() or TernaryWeight.from_codes()"),
    ("_core/arrays.pyx", "TensorError.not_an_array", lambda: arrays.checked([1], "x", np.int8),
     "x must be a NumPy array, not list"),
    ("_core/arrays.pyx", "TensorError.dtype", lambda: arrays.checked(FLOATS, "x", np.int8),
     "x has dtype float32; it must be int8 (convert it with .astype(np.int8))"),
    ("_core/arrays.pyx", "TensorError.not_contiguous", lambda: arrays.checked(CODES.T, "x", np.int8),
     "x of shape (4, 2) is not C-contiguous (strides (1, 4)); pass np.ascontiguousarray of it"),
    ("_core/arrays.pyx", "TensorError.not_aligned", lambda: arrays.checked(unaligned(), "x", np.float32),
     "x does not lie at addresses fit for float32; pass a copy of it"),
    ("_core/arrays.pyx", "ShapeError.dimensions", lambda: arrays.checked_matrix(CODES[0], "x", np.int8),
     "x has shape (4,); it must have shape (rows, cols)"),
    ("_core/arrays.pyx", "ShapeError.empty", lambda: arrays.checked_matrix(CODES[:0], "x", np.int8),
     "x has shape (0, 4); it needs at least one row and one column"),
    ("_core/arrays.pyx", "ShapeError.mismatch", lambda: arrays.checked_output(CODES, (2, 5), np.int8),
     "out has shape (2, 4); it must be (2, 5)"),
    ("_core/arrays.pyx", "TensorError.read_only", lambda: arrays.checked_output(read_only(), (2, 4), np.int8),
     "out is read-only, and the result is to be written there; pass a writable array"),
    ("_core/arrays.pyx", "TensorError.overlap", lambda: arrays.checked_output(CODES, (2, 4), np.int8, CODES),
     "out shares memory with an input; pass an array of its own"),
    ("_core/cpu.pyx", "ConfigurationError.isa", lambda: cpu.select_isa("mmx"),
     f"isa is 'mmx', which names no instruction set; this CPU can run {ISAS}"),
    ("_core/memory.pyx", "MemoryError.overflow",
     lambda: packing.from_packed_bytes(BYTES, 1 << 62, 1 << 22, 1, "i2"),
     "cannot allocate 288230376151711744 x 16777216 bytes for a packed weight: the size does not fit in an "
     "address"),
    ("_core/matmul.pyx", "ShapeError.dimensions", lambda: matmul.matmul(weight(), np.array(1, np.float32)),
     "x has shape (); it must have shape (..., cols)"),
    ("_core/matmul.pyx", "ShapeError.columns", lambda: matmul.matmul(weight(), FLOATS[:, :3].copy()),
     "cannot multiply a 2 x 4 ternary weight: the weight has 4 columns, the input 3"),
    ("_core/matmul.pyx", "QuantizationError.not_finite", lambda: matmul.matmul(weight(), FLOATS * np.inf),
     "x has inf at index (0, 0); only finite numbers can be quantised"),
    ("_core/packing.pyx", "KernelError.unknown_packing", lambda: packing.tile_cols("q4"),
     "no packing is known as 'q4' (known: i2, t5)"),
    ("_core/packing.pyx", "TypeError", packing.PackedWeight,
     "a PackedWeight is made by the functions of bitnet._core.packing"),
    ("_core/packing.pyx", "MemoryError.overflow",
     lambda: packing.from_packed_bytes(BYTES, (1 << 63) - 15, 4, 1, "i2"),
     "cannot allocate 9223372036854775793 x 4 bytes for a packed weight: the size does not fit in an address"),
    ("_core/packing.pyx", "ShapeError.too_large",
     lambda: packing.from_packed_bytes(BYTES, 1, (1 << 22) + 1, 1, "i2"),
     "the number of columns is 4194305; the limit is 4194304 columns"),
    ("_core/packing.pyx", "KernelError.group_scales", lambda: packing.pack_codes(CODES, 1, "t5", 64),
     "packing 't5' stores 20 columns a tile, so groups of 64 columns cannot have scales of their own; use "
     "packing 'i2'"),
    ("_core/arrays.pyx", "ConfigurationError.choice", lambda: packing.pack_codes(CODES, 1, "i2", 32),
     "group_size is 32; it must be one of 64, 128"),
    ("_core/arrays.pyx", "TensorError.not_numbers", lambda: packing.pack_codes(CODES, "one", "i2"),
     "scale must be a number or an array of numbers, not str"),
    ("_core/arrays.pyx", "TensorError.not_numbers", lambda: packing.pack_codes(CODES, [[1], [1, 2]], "i2"),
     "scale must be a number or an array of numbers, not list"),
    ("_core/packing.pyx", "ShapeError.scale", lambda: packing.pack_codes(CODES, [1, 2, 3], "i2"),
     "scale has shape (3,); it must be () or (2,)"),
    ("_core/packing.pyx", "QuantizationError.scale", lambda: packing.pack_codes(CODES, [1, np.inf], "i2"),
     "scale is inf at index (1); a scale must be a finite number"),
    ("_core/packing.pyx", "QuantizationError.not_ternary", lambda: packing.pack_codes(CODES * 2, 1, "i2"),
     "codes has 2 at index (0, 0); ternary codes are -1, 0 and 1"),
    ("_core/packing.pyx", "QuantizationError.unused_code",
     lambda: packing.pack_hugging_face_bytes(BYTES + np.uint8(0x30), 1, "i2"),
     "data has the unused 2-bit code 3 for the weight at index (2, 0); the bytes are damaged or are not "
     "packed ternary weights"),
    ("_core/packing.pyx", "ShapeError.empty", lambda: packing.from_packed_bytes(BYTES, 0, 4, 1, "i2"),
     "data has shape (0, 4); it needs at least one row and one column"),
    ("_core/packing.pyx", "ShapeError.mismatch", lambda: packing.from_packed_bytes(BYTES, 2, 4, 1, "i2"),
     "data has shape (1, 4); it must be (64,)"),
    ("_core/packing.pyx", "QuantizationError.damaged",
     lambda: packing.from_packed_bytes(damaged(), 2, 4, 1, "i2"),
     "data is not what packing 'i2' writes for a 2 x 4 weight (byte 5 is the first that cannot be); "
     "the bytes are damaged"),
    ("_core/quant.pyx", "QuantizationError.not_finite", lambda: quant.reciprocal_scales(NAN),
     "w has NaN at index (1, 0); only finite numbers can be quantised"),
    ("_core/quant.pyx", "ShapeError.scale", lambda: quant.ternarize(FLOATS, np.ones(3, np.float32)),
     "s has shape (3,); it must be () or (2,)"),
    ("_core/quant.pyx", "ShapeError.dimensions", lambda: quant.quantize_activations(np.array(1, np.float32)),
     "x has shape (); it must have shape (..., cols)"),
    ("_core/threads.pyx", "ConfigurationError.thread_count", lambda: threads.barrier(0),
     "num_threads is 0; it must be a whole number of threads from 1 to 1024"),
]  # fmt: skip
for part in (raises_chat, raises_cli, raises_compat, raises_runs, raises_formats, raises_memory,
             raises_instruments, raises_state):
    ROWS += part.ROWS
ROWS.append((
    "_core/memory.pyx", "ConfigurationError.choice",
    lambda: in_process("import bitnet; bitnet.HybridMemoryPool.instance()", BITNET_MEMORY_PROFILING="all"),
    "BITNET_MEMORY_PROFILING is 'all'; it must be one of '0', '1', 'off', 'counts', 'tracebacks'",
))  # fmt: skip

# Only Linux lets a test take memory away from a process, or a function from a library.
if sys.platform == "linux":
    ROWS += [
        ("_core/blocks.pyx", "MemoryError.allocation", lambda: in_process(raises_memory.WITHOUT_MEMORY),
         "cannot allocate 34.5 KiB for a memory pool: the operating system refused"),
        ("_core/blocks.pyx", "ImportError", lambda: import_without_atfork("blocks"),
         "pthread_atfork failed: no memory is left"),
        ("_core/threads.pyx", "ImportError", lambda: import_without_atfork("threads"),
         "pthread_atfork failed: no memory is left"),
    ]  # fmt: skip
    NOT_HERE = raises_runs.PASSED_ON | raises_server.PASSED_ON
else:
    NOT_HERE = raises_runs.PASSED_ON | raises_server.PASSED_ON | {
        ("_core/blocks.pyx", "MemoryError.allocation"), ("_core/blocks.pyx", "ImportError"),
        ("_core/threads.pyx", "ImportError"),
    }  # fmt: skip

SITES = sites()


def site_of(found):
    """The ``raise`` that an outcome came from."""
    here = [site for site in SITES if site.file == found.file and site.first <= found.line <= site.last]
    assert here, f"{found.file}, line {found.line} is no raise; is the build older than the source?"
    return here[0]


@pytest.fixture(scope="module")
def reached():
    """The sites that the rows have reached so far."""
    return set()


@pytest.mark.parametrize(
    ("file", "raised", "trigger", "sentence"), ROWS, ids=[f"{row[0]}-{row[1]}" for row in ROWS]
)
def test_the_sentence_is_said(file, raised, trigger, sentence, reached):
    found = outcome(trigger)
    assert found.sentence == sentence
    assert found.name == ("ConfigurationError" if raised.startswith("self.") else raised.partition(".")[0])
    site = site_of(found)
    assert (site.file, site.raised) == (file, raised)
    assert site not in reached, "an earlier row has reached this line already"
    reached.add(site)


def test_every_raise_is_reached():
    # Once more, because the tests above may have been run one by one.
    reached = {site_of(outcome(trigger)) for _, _, trigger, _ in ROWS}
    missed = [site for site in SITES if site not in reached and (site.file, site.raised) not in NOT_HERE]
    assert missed == []


def test_the_sources_are_read():
    python = "def f():\n    raise A.b(\n        1)\n\ntry: f()\nexcept E: raise\n"
    assert list(python_sites("a.py", python)) == [Site("a.py", "A.b", 2, 3), Site("a.py", "", 6, 6)]
    cython = 'def f():\n    """\n    raise no\n    """\n    raise A.b(\n        g(1))  # raise no\n    if x: raise\n'
    assert list(cython_sites("a.pyx", cython)) == [Site("a.pyx", "A.b", 5, 6), Site("a.pyx", "", 7, 7)]


def test_a_trigger_that_raises_nothing_is_an_error():
    with pytest.raises(AssertionError, match="nothing was raised"):
        outcome(lambda: None)
    with pytest.raises(AssertionError, match="nothing was raised"):
        in_process("pass")
