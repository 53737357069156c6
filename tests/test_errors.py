"""Every exception, every sentence.

`SENTENCES` names each constructor of each class. A constructor without a row here fails
`test_every_constructor_has_a_sentence`.
"""

import builtins
import copy
import datetime
import inspect
import math
import pickle

import numpy as np
import pytest

from bitnet import errors
from bitnet.errors import BitNetError, ConfigurationError, ErrorContext, KernelError, ShapeError

# (class, constructor, its arguments, the sentence). A constructor whose sentence has several forms has several rows.
SENTENCES = [
    ("ConfigurationError", "unknown_field", {"owner": "EngineConfig", "name": "threads", "known": ["num_threads"],
                                             "right": "num_threads"},
     "EngineConfig has no field 'threads'; use 'num_threads'"),
    ("ConfigurationError", "unknown_field", {"owner": "EngineConfig", "name": "divice", "known": ["device", "packing"]},
     "EngineConfig has no field 'divice'; use 'device'"),
    ("ConfigurationError", "unknown_field", {"owner": "EngineConfig", "name": "xyzzy", "known": ["device", "packing"]},
     "EngineConfig has no field 'xyzzy'; it has 'device', 'packing'"),
    ("ConfigurationError", "missing_fields", {"owner": "ModelConfig", "names": ["vocab_size"]},
     "ModelConfig needs 'vocab_size'; it was not given"),
    ("ConfigurationError", "missing_fields", {"owner": "ModelConfig", "names": ["vocab_size", "hidden_size"]},
     "ModelConfig needs 'vocab_size', 'hidden_size'; they were not given"),
    ("ConfigurationError", "not_a_mapping", {"owner": "ModelConfig", "got": ["a"]},
     "ModelConfig is made from a dictionary of its fields, not from list"),
    ("ConfigurationError", "value", {"owner": "GenerationConfig", "name": "top_p", "got": 1.5, "needed": "at most 1"},
     "GenerationConfig.top_p is 1.5; it must be at most 1"),
    ("ConfigurationError", "conflict", {"owner": "ModelConfig", "sentence": "3 heads do not divide 20"},
     "ModelConfig: 3 heads do not divide 20"),
    ("ConfigurationError", "choice", {"name": "device", "got": "tpu", "known": ["auto", "cpu"]},
     "device is 'tpu'; it must be one of 'auto', 'cpu'"),
    ("ConfigurationError", "choice", {"name": "group_size", "got": 3, "known": [64, 128]},
     "group_size is 3; it must be one of 64, 128"),
    ("ConfigurationError", "isa", {"source": "BITNET_ISA", "got": "avx512vnni", "possible": ["avx2", "portable"],
                                   "known": ["portable", "avx2", "avx512vnni"]},
     "BITNET_ISA is 'avx512vnni', but this CPU can run only avx2, portable"),
    ("ConfigurationError", "isa", {"source": "BITNET_ISA", "got": "mmx", "possible": ["avx2", "portable"],
                                   "known": ["portable", "avx2"]},
     "BITNET_ISA is 'mmx', which names no instruction set; this CPU can run avx2, portable"),
    ("ConfigurationError", "thread_count", {"source": "BITNET_NUM_THREADS", "got": "many", "limit": 1024},
     "BITNET_NUM_THREADS is 'many'; it must be a whole number of threads from 1 to 1024"),
    ("TensorError", "not_numbers", {"what": "scale", "got": 1j},
     "scale must be a number or an array of numbers, not complex"),
    ("TensorError", "not_aligned", {"what": "x", "dtype": "float32"},
     "x does not lie at addresses fit for float32; pass a copy of it"),
    ("ShapeError", "scale", {"what": "scale", "fitting": [(), (3,)], "got": (2,)},
     "scale has shape (2,); it must be () or (3,)"),
    ("QuantizationError", "damaged", {"what": "data", "packing": "i2", "rows": 3, "cols": 4, "offset": 5},
     "data is not what packing 'i2' writes for a 3 x 4 weight (byte 5 is the first that cannot be); the bytes are "
     "damaged"),
    ("TensorError", "not_an_array", {"what": "x", "got": [1]}, "x must be a NumPy array, not list"),
    ("TensorError", "dtype", {"what": "x", "expected": np.dtype("int8"), "got": np.dtype("float64")},
     "x has dtype float64; it must be int8 (convert it with .astype(np.int8))"),
    ("TensorError", "not_contiguous", {"what": "w", "shape": (4, 8), "strides": (1, 4)},
     "w of shape (4, 8) is not C-contiguous (strides (1, 4)); pass np.ascontiguousarray of it"),
    ("TensorError", "read_only", {"what": "out"},
     "out is read-only, and the result is to be written there; pass a writable array"),
    ("TensorError", "overlap", {"what": "out", "other": "x"},
     "out shares memory with x; pass an array of its own"),
    ("ShapeError", "mismatch", {"what": "x", "expected": (4, 2560), "got": (np.int64(4), 2500)},
     "x has shape (4, 2500); it must be (4, 2560)"),
    ("ShapeError", "dimensions", {"what": "w", "expected": "(rows, cols)", "got": (4,)},
     "w has shape (4,); it must have shape (rows, cols)"),
    ("ShapeError", "columns", {"weight": "'layers.3.mlp.down_proj'", "cols": 6912, "got": 6900},
     "cannot multiply 'layers.3.mlp.down_proj': the weight has 6912 columns, the input 6900"),
    ("ShapeError", "empty", {"what": "w", "got": (0, 8)},
     "w has shape (0, 8); it needs at least one row and one column"),
    ("ShapeError", "too_large", {"what": "cols", "got": 20000000, "limit": 16777215, "unit": "columns"},
     "cols is 20000000; the limit is 16777215 columns"),
    ("QuantizationError", "not_finite", {"what": "w", "value": np.float32("nan"), "index": (1, np.int64(2))},
     "w has NaN at index (1, 2); only finite numbers can be quantised"),
    ("QuantizationError", "not_finite", {"what": "w", "value": float("-inf"), "index": (3,)},
     "w has -inf at index (3); only finite numbers can be quantised"),
    ("QuantizationError", "not_ternary", {"what": "t", "value": 2, "index": (0, 5)},
     "t has 2 at index (0, 5); ternary codes are -1, 0 and 1"),
    ("QuantizationError", "unused_code", {"what": "w", "index": (7, 8)},
     "w has the unused 2-bit code 3 for the weight at index (7, 8); "
     "the bytes are damaged or are not packed ternary weights"),
    ("QuantizationError", "scale", {"what": "weight_scale", "value": float("inf")},
     "weight_scale is inf; a scale must be a finite number"),
    ("QuantizationError", "scale", {"what": "scales", "value": float("nan"), "index": (4,)},
     "scales is NaN at index (4); a scale must be a finite number"),
    ("KernelError", "unknown_packing", {"got": "q4", "known": ["i2", "t5"]},
     "no packing is known as 'q4' (known: i2, t5)"),
    ("KernelError", "group_scales", {"packing": "t5", "group_size": 64, "tile_cols": 160, "fitting": "i2"},
     "packing 't5' stores 160 columns a tile, so groups of 64 columns cannot have scales of their own; "
     "use packing 'i2'"),
    ("FormatError", "value", {"file": "a.safetensors", "what": "the dtype of 'w'", "got": 5, "needed": "F32"},
     "'a.safetensors': the dtype of 'w' is 5; it must be F32"),
    ("FormatError", "value", {"file": "a.json", "what": "the file", "got": list(range(99)), "needed": "an object"},
     "'a.json': the file is [0, 1, 2, 3, 4, 5, ...]; it must be an object"),
    ("FormatError", "not_json", {"file": "a.json", "what": "the file", "reason": "Expecting value"},
     "'a.json': the file is not JSON (Expecting value); the file is damaged: get it again"),
    ("FormatError", "unknown", {"path": "model", "looked_for": ["a folder", "a file"], "there": []},
     "'model' is no checkpoint of a known format; looked for a folder or a file"),
    ("FormatError", "unknown", {"path": "model", "looked_for": ["a folder"], "there": ["a.bin", "b.bin"]},
     "'model' is no checkpoint of a known format; looked for a folder; there is 'a.bin', 'b.bin'"),
    ("FormatError", "tokenizer", {"file": "tokenizer.json", "reason": "EOF while parsing a value"},
     "'tokenizer.json' is not what the library 'tokenizers' reads: EOF while parsing a value"),
    ("FormatError", "template", {"line": 3, "reason": "'x' is undefined"},
     "the chat template fails at line 3: 'x' is undefined"),
    ("FormatError", "template", {"line": None, "reason": "it writes too much"},
     "the chat template fails: it writes too much"),
    ("InferenceError", "encoding", {"reason": "WordLevel error: Missing [UNK] token"},
     "cannot encode the text: WordLevel error: Missing [UNK] token"),
    ("InferenceError", "logits", {"count": 2, "of": 5, "value": float("-inf"), "index": (1,)},
     "2 of 5 logits are not finite, the first is -inf at index (1)"),
    ("ModelLoadError", "generation_config", {"path": "model", "reason": "top_p is 2"},
     "the generation_config.json of 'model' cannot be used: top_p is 2"),
    ("InferenceError", "cannot_read", {"operation": "model.embed_tokens"},
     "cannot read the rows of 'model.embed_tokens' from the checkpoint's file; was it changed or cut short?"),
    ("ModelLoadError", "unreadable", {"path": "model", "reason": "Permission denied"},
     "cannot read 'model': Permission denied"),
    ("ModelLoadError", "missing_tensor", {"path": "model", "name": "norm"}, "'model' has no tensor 'norm'"),
    ("ModelLoadError", "missing_tensor", {"path": "model", "name": "norm", "close": "norm.weight"},
     "'model' has no tensor 'norm'; did you mean 'norm.weight'"),
    ("ModelLoadError", "not_bitnet", {"path": "model", "name": "q.weight", "dtype": "BF16", "reason": "it is ordinary"},
     "not a BitNet checkpoint: 'q.weight' in 'model' is BF16, and it is ordinary"),
    ("ModelLoadError", "exists", {"path": "a"}, "'a' exists already; give another name, or allow that it is replaced"),
    ("ModelLoadError", "unwritable", {"path": "a", "reason": "No space left on device"},
     "cannot write 'a': No space left on device"),
    ("ModelLoadError", "unstorable", {"name": "w", "reason": "it has 6 rows"},
     "the format cannot hold 'w': it has 6 rows"),
    ("ConfigurationError", "missing_library", {"library": "matplotlib", "extra": "plot", "why": "a plot was asked for"},
     "a plot was asked for, which needs the library 'matplotlib': pip install 'bitnet-runtime[plot]'"),
    ("ModelLoadError", "not_fetched", {"repo_id": "a/b", "where": "https://hub/a/b", "cache": "/c", "reason": "no"},
     "there is no file or folder 'a/b', and the Hub gives none (https://hub/a/b; cache /c): no"),
    ("ModelLoadError", "nothing_to_quantize", {"path": "a"},
     "'a' has no projections of floats; there is nothing to quantise"),
    ("InferenceError", "too_short", {"got": 1},
     "the text has 1 tokens; at least two are needed, one to predict the other"),
    ("InferenceError", "vocabularies", {"first": 2, "second": 3},
     "the vocabularies have 2 and 3 tokens; only models of one vocabulary can be compared"),
    ("KernelError", "float_inputs", {"packing": "t5"},
     "packing 't5' cannot multiply floats as they are; use packing 'i2'"),
    ("FormatError", "several", {"path": "model", "names": ["a.gguf", "b.gguf"]},
     "'model' has 2 models, 'a.gguf', 'b.gguf'; give the path of one of them"),
    ("InferenceError", "cancelled", {"operation": "model.norm"},
     "the run was cancelled before the operation 'model.norm'"),
    ("InferenceError", "not_finite", {"operation": "lm_head"},
     "the input of 'lm_head' has a number that is not finite; diagnosis shows where it began"),
    ("InferenceError", "too_many_tokens", {"got": 6, "limit": 5},
     "a run of 6 tokens was asked for; this execution has memory for 5"),
    ("InferenceError", "token", {"got": -1, "position": 2, "vocab_size": 97},
     "token -1 at position 2 is not in the vocabulary of 97"),
    ("InferenceError", "beyond_context", {"position": 64, "limit": 64},
     "position 64 is beyond the 64 tokens of the context"),
    ("ModelLoadError", "unsupported", {"path": "model", "name": "mlp_bias", "value": True, "needed": "false"},
     "'model': mlp_bias is True; it must be false"),
    ("InferenceError", "closed", {}, "the engine is closed; make a new one"),
    ("InferenceError", "empty_prompt", {}, "the prompt has no tokens; give at least one"),
    ("InferenceError", "tokens", {"got": 1.5}, "a prompt must be text or a list of token ids, one after the other"),
    ("ModelLoadError", "no_tokenizer", {"path": "model"},
     "'model' has no tokenizer that can be used; give token ids instead of text"),
    ("ModelLoadError", "no_chat_template", {"path": "model"},
     "'model' has no chat template; write the prompt as text, or give a template: "
     "'plain' writes what was said, line by line"),
    ("ModelLoadError", "unknown_model", {"path": "model", "name": "mistral", "known": ["bitnet", "llama"]},
     "'model' is of model_type 'mistral'; known are 'bitnet', 'llama'"),
    ("ModelLoadError", "unknown_model", {"path": "model", "name": None, "known": ["bitnet"]},
     "'model' is of model_type None; known are 'bitnet'"),
    ("ModelLoadError", "shape", {"name": "lm_head", "needed": (97, 40), "got": (97, 39)},
     "'lm_head' has shape (97, 39); the configuration needs (97, 40)"),
    ("TrainingError", "unreadable", {"path": "a.txt", "reason": "Permission denied"},
     "cannot read 'a.txt': Permission denied"),
    ("TrainingError", "unusable", {"path": "a.txt", "why": "it has no text"}, "cannot use 'a.txt': it has no text"),
    ("TrainingError", "diverged", {"loss": math.nan, "step": 7},
     "the loss is NaN at step 7; go on from the last checkpoint with a lower learning rate"),
    ("TrainingError", "not_the_runtimes", {"path": "run", "why": "its weights are not ternary yet"},
     "cannot export 'run': its weights are not ternary yet"),
    ("MemoryError", "allocation", {"nbytes": 1000, "what": "the pool"},
     "cannot allocate 1000 B for the pool: the operating system refused"),
    ("MemoryError", "allocation", {"nbytes": 1536 * 1024**2, "what": "the key/value cache"},
     "cannot allocate 1.5 GiB for the key/value cache: the operating system refused"),
    ("ShapeError", "too_small", {"what": "a block", "got": 5, "least": 8, "unit": "bytes"},
     "a block is 5; the least is 8 bytes"),
    ("MemoryError", "limit", {"nbytes": 2048, "what": "a block", "used": 1 << 20, "limit": 1 << 20,
                              "tags": {"kv": 1000, "weights": 1 << 19, "a": 5, "b": 3}},
     "cannot allocate 2 KiB for a block: 1 MiB of the pool's limit of 1 MiB are in use (weights: 512 KiB, kv: 1000 B, "
     "a: 5 B); free some, or raise the limit"),
    ("MemoryError", "elsewhere", {"operation": "run", "reason": ""},
     "no memory is left for 'run'; end other programs, or ask for less at once"),
    ("MemoryError", "freed", {"action": "read", "nbytes": 5}, "cannot read a block of 5 B that was freed"),
    ("MemoryError", "foreign", {"nbytes": 5},
     "a block of 5 B belongs to another pool; give it to that one, or use its free()"),
    ("MemoryError", "has_views", {"nbytes": 5, "views": 2},
     "cannot resize a block of 5 B while 2 views of it live; delete that first"),
    ("MemoryError", "live_blocks", {"count": 3, "tags": {}}, "cannot reset the pool while 3 blocks are live"),
    ("MemoryError", "corrupted", {"nbytes": 5, "at": 7},
     "a block of 5 B was written to beyond its end, at byte 7 from its beginning"),
    ("KernelError", "status", {"kernel": "i2-avx2", "operation": "a", "status": 1,
                               "meaning": "its input is not finite"},
     "kernel 'i2-avx2' ended 'a' with status 1: its input is not finite"),
    ("DeviceError", "address", {"address": "127.0.0.1:80", "reason": "Permission denied"},
     "cannot listen at 127.0.0.1:80: Permission denied"),
    ("DeviceError", "missing_extra", {"library": "matplotlib", "extra": "plot"},
     "'matplotlib' is not installed; run: pip install 'bitnet-runtime[plot]'"),
    ("ModelLoadError", "changed", {"path": "m", "name": "a.weight", "where": "memory"},
     "'m': the bytes of 'a.weight' in memory have changed: their checksum differs"),
    ("ModelLoadError", "no_checksums", {"path": "m"}, "'m' was loaded without checksums; load it with verify='load'"),
    ("MemoryError", "cache_full", {"pages": 4, "page_tokens": 64},
     "all 4 pages of 64 tokens for keys and values are in use; wait for others to end, or raise max_kv_tokens"),
    ("QueueFullError", "waiting", {"waiting": 3},
     "3 requests are waiting, and no more may; try again when some have ended, or raise max_queue"),
    ("ConfigurationError", "grammar", {"kind": "regex", "reason": "unclosed group"},
     "Grammar.regex cannot be used: unclosed group"),
    ("InferenceError", "grammar", {"reason": "it is too complex"}, "the grammar cannot go on: it is too complex"),
    ("InferenceError", "grammar_tokenizer", {"reason": "no decoder"},
     "a grammar needs a tokenizer of byte-level BPE or SentencePiece, and llguidance cannot read the model's: no "
     "decoder"),
    ("InferenceError", "stopped", {}, "the request was cancelled"),
    ("InferenceError", "forked", {},
     "the process was forked while this request was running; send it again"),
    ("MemoryError", "overflow", {"what": "w", "sizes": [2**40, 2**40]},
     "cannot allocate 1099511627776 x 1099511627776 bytes for w: the size does not fit in an address"),
]  # fmt: skip

SECOND_BASES = {
    "ConfigurationError": ValueError,
    "TensorError": TypeError,
    "ShapeError": ValueError,
    "QuantizationError": ValueError,
    "KernelError": RuntimeError,
    "MemoryError": builtins.MemoryError,
    "DeviceError": RuntimeError,
    "FormatError": ValueError,
    "ModelLoadError": RuntimeError,
    "InferenceError": RuntimeError,
    "QueueFullError": RuntimeError,
    "TrainingError": RuntimeError,
}

FAMILY = {
    name: member
    for name, member in vars(errors).items()
    if inspect.isclass(member) and member.__module__ == errors.__name__ and issubclass(member, BaseException)
}
each_sentence = pytest.mark.parametrize(
    ("owner", "constructor", "arguments", "sentence"), SENTENCES, ids=[f"{row[0]}.{row[1]}" for row in SENTENCES]
)


def constructors():
    """The (class, constructor) pairs that errors.py defines."""
    return {
        (owner, name)
        for owner, cls in FAMILY.items()
        for name, member in vars(cls).items()
        if isinstance(member, classmethod) and not name.startswith("_")
    }


def full_error():
    context = ErrorContext("matmul", "the output head", {"rows": 3}, "engine.py:7", "  File engine.py\n")
    return ShapeError("does not fit", context=context, severity="critical", what="x", got=(1, 2))


# ---- sentences


def test_every_constructor_has_a_sentence():
    assert constructors() == {(owner, name) for owner, name, _, _ in SENTENCES}


@each_sentence
def test_the_constructor_writes_the_sentence(owner, constructor, arguments, sentence):
    cls = FAMILY[owner]
    error = getattr(cls, constructor)(**arguments)
    assert type(error) is cls
    assert (str(error), error.message, error.args) == (sentence, sentence, (sentence,))
    assert (error.severity, error.context) == ("critical" if constructor == "corrupted" else "error", None)


@each_sentence
def test_the_constructor_keeps_the_facts(owner, constructor, arguments, sentence):
    facts = getattr(FAMILY[owner], constructor)(**arguments).facts
    missing = set(arguments) - set(facts) - {"sentence"}  # a sentence is no fact, and is in the message
    assert not missing
    for name in set(arguments) & set(facts):
        given, kept = arguments[name], facts[name]
        alike = [given, str(given), type(given).__name__]  # as it is, or by its name where that is the fact
        if isinstance(given, list | tuple):
            alike.append(tuple(given))
        assert any(kept is one or kept == one for one in alike), name


@each_sentence
def test_the_sentence_is_in_the_house_style(owner, constructor, arguments, sentence):
    assert "!" not in sentence
    assert "invalid" not in sentence.lower()
    assert not sentence.endswith(".")
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("nbytes", "written"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1000 << 10, "1000 KiB"), (2**31, "2 GiB"), (2**80, "1048576 EiB")],
)
def test_bytes_are_written_with_a_unit(nbytes, written):
    assert f"cannot allocate {written} for" in str(errors.MemoryError.allocation(nbytes, "x"))


# ---- the family


def test_the_family_is_complete():
    assert set(FAMILY) == {"BitNetError", *SECOND_BASES}


@pytest.mark.parametrize("name", SECOND_BASES)
def test_each_class_is_caught_as_its_builtin(name):
    with pytest.raises(SECOND_BASES[name]) as caught:
        raise FAMILY[name]("sentence", fact=1)
    assert isinstance(caught.value, BitNetError)
    assert (str(caught.value), caught.value.facts) == ("sentence", {"fact": 1})


def test_a_shape_error_is_a_tensor_error():
    assert issubclass(ShapeError, errors.TensorError)
    assert issubclass(ShapeError, TypeError)


def test_the_root_is_no_builtin_but_exception():
    assert BitNetError.__bases__ == (Exception,)


def test_every_public_class_is_exported_but_memory_error():
    public = {
        name
        for name, member in vars(errors).items()
        if inspect.isclass(member) and member.__module__ == errors.__name__ and not name.startswith("_")
    }
    # A star import of it would hide the builtin of the same name.
    assert set(errors.__all__) == public - {"MemoryError"}
    assert len(errors.__all__) == len(set(errors.__all__))
    assert "MemoryError" in public


# ---- what an error carries


def test_each_error_has_an_id_and_a_time():
    before = datetime.datetime.now(datetime.UTC)
    first, second = BitNetError("a"), BitNetError("a")
    assert len(first.error_id) == 12
    assert set(first.error_id) <= set("0123456789abcdef")
    assert first.error_id != second.error_id
    assert before <= first.timestamp <= second.timestamp <= datetime.datetime.now(datetime.UTC)


@pytest.mark.parametrize("severity", ["info", "warning", "error", "critical"])
def test_a_severity_is_kept(severity):
    assert BitNetError("a", severity=severity).severity == severity


@pytest.mark.parametrize("severity", ["fatal", "", None, 3])
def test_an_unknown_severity_is_refused(severity):
    with pytest.raises(ConfigurationError) as caught:
        BitNetError("a", severity=severity)
    assert str(caught.value) == (
        f"severity is {severity!r}; it must be one of 'info', 'warning', 'error', 'critical'"
    )


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("cls", FAMILY.values(), ids=FAMILY)
def test_pickling_keeps_everything(cls, protocol):
    error = cls("sentence", context=full_error().context, severity="warning", what="x", got=(1, 2))
    error.add_note("a note")
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is cls
    assert again.__dict__ == error.__dict__
    assert (str(again), again.args) == ("sentence", ("sentence",))
    assert again.__notes__ == ["a note"]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copying_keeps_everything(copied):
    error = full_error()
    again = copied(error)
    assert again is not error
    assert type(again) is ShapeError
    assert again.__dict__ == error.__dict__
    assert again.args == error.args
    again.context = None  # of the copy only
    assert error.context is not None


@each_sentence
def test_each_made_error_pickles(owner, constructor, arguments, sentence):
    error = getattr(FAMILY[owner], constructor)(**arguments)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.error_id) == (type(error), sentence, error.error_id)
    assert repr(again.facts) == repr(error.facts)  # NaN differs from itself


# ---- chain


def test_chain_follows_the_causes():
    first, second, third = BitNetError("a"), ValueError("b"), KeyError("c")
    first.__cause__, second.__cause__ = second, third
    assert first.chain() == [first, second, third]
    assert BitNetError("alone").chain() != [first]


def test_chain_of_a_raised_error():
    def fail():
        try:
            raise OSError("disk")
        except OSError as error:
            raise KernelError("cannot") from error

    with pytest.raises(KernelError) as caught:
        fail()
    assert [str(error) for error in caught.value.chain()] == ["cannot", "disk"]


def test_chain_ends_where_a_cycle_closes():
    first, second = BitNetError("a"), BitNetError("b")
    first.__cause__, second.__cause__ = second, first
    assert first.chain() == [first, second]
    assert second.chain() == [second, first]
    first.__cause__ = first
    assert first.chain() == [first]


# ---- to_report


def test_a_report_tells_the_whole_story():
    error = full_error()
    error.timestamp = datetime.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=datetime.UTC)
    error.error_id = "0123456789ab"
    error.__cause__ = KernelError("no kernel")
    error.__cause__.__cause__ = KeyError("i9")
    assert error.to_report() == "\n".join([
        "ShapeError [critical] 0123456789ab at 2026-01-02T03:04:05+00:00",
        "  does not fit",
        "  what: 'x'",
        "  got: (1, 2)",
        "during matmul: the output head",
        "  rows: 3",
        "  at engine.py:7",
        f"caused by KernelError [error] {error.__cause__.error_id} at "
        f"{error.__cause__.timestamp.isoformat(timespec='seconds')}",
        "  no kernel",
        "caused by KeyError: 'i9'",
        "stack (most recent call last):",
        "  File engine.py",
    ])  # fmt: skip


def test_a_report_leaves_out_what_is_not_known():
    error = BitNetError("sentence")
    head, *rest = error.to_report().split("\n")
    assert head.startswith(f"BitNetError [error] {error.error_id} at ")
    assert rest == ["  sentence"]
    error.context = ErrorContext("load_model")
    assert error.to_report().split("\n")[1:] == ["  sentence", "during load_model"]


# ---- ErrorContext


def test_here_is_where_it_is_called():
    line = inspect.currentframe().f_lineno + 1
    context = ErrorContext.here("load_model", "reading the header", path="a.gguf")
    assert (context.operation, context.description, context.data) == (
        "load_model", "reading the header", {"path": "a.gguf"},
    )  # fmt: skip
    assert context.source_location == f"{__file__}:{line}"
    last = context.stack_trace.rstrip().splitlines()[-2]
    assert f'"{__file__}", line {line}, in test_here_is_where_it_is_called' in last
    assert errors.__file__ not in context.stack_trace


def test_a_context_alone_has_only_its_operation():
    context = ErrorContext("matmul")
    assert (context.description, context.data, context.source_location, context.stack_trace) == ("", {}, "", "")
    assert ErrorContext("matmul").data is not context.data
    with pytest.raises(AttributeError):
        context.operation = "other"
