"""bitnet: run, train and inspect BitNet b1.58 models (ternary weights, 8-bit activations) on ordinary CPUs.

The map, from here to the instruction::

    bitnet.load, InferenceEngine  engine.py, loaded.py  load, generate, stream, logits
        │                       texts.py                chat; vectors of texts: embedding.py; their scores: scoring.py
        │                       model.py                a checkpoint's tensors, bound to a family's program
        │                       models/bitnet.py        a family: its configuration, and its forward pass
        │                       formats/                bytes in files: hugging_face.py, gguf.py
        │                       tokenizer.py  vocabulary.py  chat.py (in sandbox.py)
        │                       request.py, completion.py, sampling.py   a prompt, and the choice of what follows
        │                       scheduler.py            requests that come, take part in steps, and go
        │                       gathering.py            which tokens of which requests make the next step
        │                       driving.py              in which thread that is done
        │                       lookup.py               guesses of the next tokens, from the text so far
        │                       kv_cache.py             their keys and values, and which of them share some
        │                       kv_state.py             the same in a file
        │                       grammar.py              what an answer has to be: JSON, regular expressions, grammars
        │                       generation.py, stream.py                 many prompts in order, and one as it comes
    bitnet.convert              conversion.py           a checkpoint in another format
    bitnet.perplexity, compare  evaluation.py           how well a model predicts a text
        │                       harness.py              for lm-evaluation-harness
    bitnet.compat.Llama         compat/                 llama-cpp-python's interface on this engine
    bitnet.quantize_checkpoint  quantization.py         a float checkpoint, rounded, and what that costs
    bitnet.activation_statistics  calibration.py        what its linear layers are given on a text
    _core/program.pyx           the pass as a flat list of operations, and the running of it
    _core/operations.pyx        what each operation does; _core/head.pyx is the last one, the int8 head
        │
    bitnet.server               server/                 over HTTP, for clients of OpenAI's interface
    bitnet.train                train/                  training with PyTorch, and the export to what is loaded here
                                assets/                 the model that comes with the package
    bitnet.TernaryWeight        weight.py               a ternary weight you can multiply with
                                tuning.py               the packing that is faster on this machine
    bitnet.quantize_* ...       quant.py                numbers to codes and back
    bitnet.HybridMemoryPool     memory.py               every byte of native memory, by tag; leaks, limits
    bitnet.debug ...            debugging.py            debug mode, traces, times of operations
    bitnet.profile, diagnose    profiling.py            the time of each operation, and (steps.py) of what an engine
                                                        does besides; diagnosis.py: the numbers operations make
    bitnet.*Config              config.py               frozen, checked settings
    bitnet.BitNetError ...      errors.py               every exception and every message
        │
    _core/matmul.pyx            checks, threads, panels, scales; for many tokens: _core/lut.pyx
    _core/packing.pyx           the table of packings; packing weights
    _core/packings/i2.pyx       one layout: pack, unpack, portable kernel
    _core/kernels/i2.h          its kernels, one line each
    _core/kernels/i2_avx2.h     the kernel for one instruction set

``bitnet doctor`` says what this machine can do, ``bitnet bench kernels`` how fast it does it.
"""

from _bitnet_runtime import warn_if_shadowed as _warn_if_shadowed
from bitnet import errors as _errors
from bitnet.calibration import activation_statistics
from bitnet.config import EngineConfig, GenerationConfig, MemoryPoolConfig, ModelConfig, QuantizationConfig
from bitnet.conversion import convert
from bitnet.debugging import debug, debug_trace, time_operation
from bitnet.debugging import start_from_environment as _start_from_environment
from bitnet.diagnosis import Diagnosis, diagnose
from bitnet.engine import Completion, InferenceEngine, Piece, Stream
from bitnet.errors import *  # noqa: F403
from bitnet.errors import MemoryError as MemoryError  # a builtin's name: not for `import *`, so not in __all__
from bitnet.evaluation import compare, perplexity
from bitnet.grammar import Grammar
from bitnet.inspection import inspect_checkpoint
from bitnet.loaded import LoadedModel, load
from bitnet.memory import HybridMemoryPool, LeakReport, MemoryHandle, MemoryStats
from bitnet.model import Model, random_model
from bitnet.profiling import Profile, profile
from bitnet.quant import dequantize, quantize_activations, quantize_weights
from bitnet.quantization import plot_report, quantize_checkpoint
from bitnet.scoring import Score
from bitnet.weight import TernaryWeight

__version__ = "0.1.0"

__all__ = [
    "Completion",
    "Diagnosis",
    "EngineConfig",
    "GenerationConfig",
    "Grammar",
    "HybridMemoryPool",
    "InferenceEngine",
    "LeakReport",
    "LoadedModel",
    "MemoryHandle",
    "MemoryPoolConfig",
    "MemoryStats",
    "Model",
    "ModelConfig",
    "Piece",
    "Profile",
    "QuantizationConfig",
    "Score",
    "Stream",
    "TernaryWeight",
    "activation_statistics",
    "compare",
    "convert",
    "debug",
    "debug_trace",
    "dequantize",
    "diagnose",
    "inspect_checkpoint",
    "load",
    "perplexity",
    "plot_report",
    "profile",
    "quantize_activations",
    "quantize_checkpoint",
    "quantize_weights",
    "random_model",
    "time_operation",
    *_errors.__all__,
]

_warn_if_shadowed()
_start_from_environment()
