"""Rows of test_raises.py for models and their runs."""

import functools
import json
import sys
import tempfile
import threading
import types
from pathlib import Path
from unittest import mock

import numpy as np
import tiny
from checkpoints import DATA, write_safetensors

from bitnet import harness, tuning
from bitnet._core import ops
from bitnet._core.batch import Batch
from bitnet._core.drawing import Draws
from bitnet._core.head import Int8Rows, rows_of_bytes
from bitnet._core.program import PAGE_TOKENS
from bitnet._core.sampling import History
from bitnet.assets import BUNDLED
from bitnet.config import EngineConfig, GenerationConfig
from bitnet.engine import InferenceEngine
from bitnet.formats import open_checkpoint
from bitnet.grammar import Grammar
from bitnet.kv_cache import KVCache, Sequence
from bitnet.model import load_model, random_model
from bitnet.models import family

CHECKPOINT = str(DATA / "llama-packed-bitlinear")


@functools.cache
def runner():
    return tiny.Runner(tiny.program())


def run(**change):
    """Run three tokens, but for what is changed."""
    sequence = runner().sequence()
    sequence.reserve(PAGE_TOKENS)
    given = {"ids": [1, 2, 3], "positions": [0, 1, 2], "sequences": [0, 0, 0], "outputs": [2], **change}
    arrays = {name: np.array(value, np.int32) for name, value in given.items()}
    runner().execution.run(**arrays, pages=[sequence.table])


def batch(ids=(1,), position=0, pages=1, most=4, outputs=1, vocab_size=97):
    """A step of some tokens of a sequence."""
    sequence, tokens = runner().sequence(), Batch(most, vocab_size)
    sequence.reserve(pages * PAGE_TOKENS)
    tokens.add(sequence.pages, position, np.array(ids, np.int32), outputs)
    runner().execution.forget_cancel()
    runner().execution.step(tokens, 1)
    return tokens


def run_while_cancelled():
    is_over = threading.Event()

    def cancel():
        while not is_over.wait(1e-4):
            runner().execution.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        for _ in range(100_000):
            runner().alone(np.ones(60, np.int32))
    except Exception as error:
        operation = error.facts["operation"]
        error.args = (str(error).replace(operation, "..."),)
        raise
    finally:
        is_over.set()
        thread.join()


def nan(gain):
    gain[0] = np.nan
    return gain


def run_with_nan():
    tiny.Runner(tiny.program(change={"model.layers.1.mlp.ffn_sub_norm.weight": nan})).alone([1, 2])


def run_without_file():
    with tempfile.TemporaryFile() as empty:
        tiny.Runner(tiny.program(embedding_file=empty)).alone([1, 2])


@functools.cache
def loaded():
    return load_model(CHECKPOINT, EngineConfig(num_threads=1))


def aligned_bytes(by=0):
    """64 bytes, so far beyond a multiple of 64."""
    data = np.zeros(192, np.uint8)
    return data[-data.ctypes.data % 64 + by :][:64]


FEW = GenerationConfig(max_new_tokens=3)
ONES = np.ones((2, 4), np.float32)


@functools.cache
def engine():
    return InferenceEngine(EngineConfig(num_threads=1))


def closed():
    with InferenceEngine() as one:
        pass
    one.infer(loaded(), [1])


def grammar_of_words():
    from tokenizers import Tokenizer, models

    from bitnet import grammar

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?")).to_str()
    space = types.SimpleNamespace
    model = space(program=space(vocab_size=3), eos_token_ids=[1], tokenizer=space(to_json=lambda: words))
    grammar._tokenizer(model)


def closed_meanwhile():
    with InferenceEngine(EngineConfig(num_threads=1)) as one:
        scheduler = one._scheduler(loaded())
    scheduler.submit(None)


def cancelled_between_runs():
    cancels = engine()._cancels
    engine().cancel()
    with engine()._run_of(loaded()) as (execution, _):
        engine()._run(execution, [np.zeros(1, np.int32)] * 3, [], np.zeros(0, np.int32), cancels)


def without_llguidance():
    import llguidance  # else it would be gone for good: a native module cannot be imported twice

    assert llguidance
    with mock.patch.dict(sys.modules, {"llguidance": None}):
        Grammar.regex("a")


@functools.cache
def bundled():
    return load_model(BUNDLED, EngineConfig(num_threads=1))


def beyond_the_cache():
    with engine()._run_of(loaded()) as (execution, cache):
        engine()._logits(execution, [Sequence(cache)], [[1] * 129], True, engine()._cancels)


def full_queue():
    with InferenceEngine(EngineConfig(num_threads=1, max_queue=1)) as one:
        first = one.stream(loaded(), [1])
        one.stream(loaded(), [2])
        first.close()


def full_cache():
    cache = KVCache(64, limit=1)
    cache.take()
    cache.take()


@functools.cache
def of_nan():
    """A model whose last norm makes NaN, and a head that lets it pass."""
    with tempfile.TemporaryDirectory() as folder, open_checkpoint(CHECKPOINT) as checkpoint:
        tensors = {name: (checkpoint.info(name).dtype, checkpoint.raw(name).copy()) for name in checkpoint.names()}
        tensors["model.norm.weight"][1].view(np.uint16)[0] = 0x7FC0
        (Path(folder) / "config.json").write_bytes((DATA / "llama-packed-bitlinear" / "config.json").read_bytes())
        write_safetensors(Path(folder) / "model.safetensors", tensors)
        return load_model(folder, EngineConfig(num_threads=1, head_dtype="float32"))


def altered(*without, generation=None, flat=(), **fields):
    """Load the checkpoint with other fields in its configuration, or for generating, or without some tensors, or with
    some that have lost their shape."""
    raw = json.loads((DATA / "llama-packed-bitlinear" / "config.json").read_text())
    for name, value in fields.items():
        raw[name] = {**raw[name], **value} if name in raw and isinstance(value, dict) else value
    with tempfile.TemporaryDirectory() as folder:
        try:
            with open_checkpoint(CHECKPOINT) as checkpoint:
                names = [name for name in checkpoint.names() if name not in without]
                tensors = {name: (checkpoint.info(name).dtype, checkpoint.raw(name)) for name in names}
                tensors |= {name: (tensors[name][0], tensors[name][1].reshape(-1)) for name in flat}
                (Path(folder) / "config.json").write_text(json.dumps(raw))
                (Path(folder) / "generation_config.json").write_text(json.dumps(generation or {}))
                write_safetensors(Path(folder) / "model.safetensors", tensors)
            load_model(folder, EngineConfig(num_threads=1))
        except Exception as error:
            error.args = (str(error).replace(folder, "..."),)
            raise


def without_the_harness():
    with mock.patch.dict(sys.modules, {"lm_eval": None, "lm_eval.api": None, "lm_eval.api.model": None}):
        harness.__getattr__("BitNetLM")


def too_many_to_generate():
    """As of a task that asks for more tokens than there is room for; the harness need not be there."""
    bar = types.SimpleNamespace(update=lambda n: None, close=lambda: None, n=0)
    with mock.patch.dict(sys.modules, {
        "tqdm": types.SimpleNamespace(tqdm=lambda **how: bar),
        "lm_eval": types.ModuleType("lm_eval"), "lm_eval.models": types.ModuleType("lm_eval.models"),
        "lm_eval.models.utils": types.SimpleNamespace(normalize_gen_kwargs=lambda given, most: given),
    }):  # fmt: skip
        given = {"max_gen_toks": 128, "until": [], "do_sample": False}
        harness.Requests(CHECKPOINT, num_threads=1).generate_until([types.SimpleNamespace(args=("", given))])


# What someone else raised, and so said.
PASSED_ON = {
    ("request.py", "self._failure"),
    ("harness.py", "done.error"),
    ("cli/bench_measure.py", "completion.error"), ("cli/session.py", "problem[0]"), ("cli/session.py", ""),
    ("cli/batch.py", ""), ("cli/batch_files.py", ""), ("cli/chat.py", ""), ("cli/chat.py", "problem[0]"),
    ("engine.py", "found[0].error"), ("engine.py", ""),
    ("generation.py", "error"), ("generation.py", "request.error"), ("kv_cache.py", ""),
    ("kv_state.py", ""), ("driving.py", ""),
    ("scheduler.py", ""), ("_core/memory.pyx", ""), ("_errors.py", "ours"),
    ("scheduler.py", "error"), ("stream.py", "error"), ("stream.py", ""), ("stream.py", "StopIteration"),
    ("stream.py", "StopAsyncIteration"),
}  # fmt: skip

ROWS = [
    ("_core/builder.py", "ModelLoadError.shape", lambda: tiny.program(change={"lm_head": lambda table: table[:-1]}),
     "'lm_head' has shape (96, 40); the configuration needs (97, 40)"),
    ("_core/program.pyx", "ShapeError.mismatch", lambda: run(positions=[0, 1]),
     "positions has shape (2,); it must be (3,)"),
    ("_core/program.pyx", "InferenceError.cancelled", run_while_cancelled,
     "the run was cancelled before the operation '...'"),
    ("_core/program.pyx", "InferenceError.not_finite", run_with_nan,
     "the input of 'model.layers.1.mlp.down_proj' has a number that is not finite; diagnosis shows where it began"),
    ("_core/program.pyx", "InferenceError.cannot_read", run_without_file,
     "cannot read the rows of 'model.embed_tokens' from the checkpoint's file; was it changed or cut short?"),
    ("_core/program.pyx", "InferenceError.too_many_tokens", lambda: runner().alone(np.ones(65, np.int32)),
     "a run of 65 tokens was asked for; this execution has memory for 64"),
    ("_core/program.pyx", "InferenceError.too_many_tokens", lambda: batch([1] * 65, most=65, pages=2),
     "a run of 65 tokens was asked for; this execution has memory for 64"),
    ("_core/program.pyx", "ShapeError.mismatch", lambda: batch(vocab_size=5),
     "logits has shape (1, 5); it must be (1, 97)"),
    ("_core/batch.pyx", "InferenceError.too_many_tokens", lambda: batch([1] * 5),
     "a run of 5 tokens was asked for; this execution has memory for 4"),
    ("_core/batch.pyx", "ShapeError.too_large", lambda: batch(outputs=2),
     "the number of outputs is 2; the limit is 1 of the tokens given"),
    ("_core/batch.pyx", "ShapeError.too_large", lambda: batch().best(1),
     "an output is 1; the limit is 0 of the batch"),
    ("_core/batch.pyx", "InferenceError.token", lambda: run(ids=[1, 2, 97]),
     "token 97 at position 2 is not in the vocabulary of 97"),
    ("_core/batch.pyx", "ShapeError.too_large", lambda: run(sequences=[0, 0, 1]),
     "a sequence's number is 1; the limit is 0 of the pages given"),
    ("_core/batch.pyx", "InferenceError.beyond_context", lambda: run(positions=[0, 1, 64]),
     "position 64 is beyond the 64 tokens of the context"),
    ("_core/program.pyx", "ShapeError.dimensions", lambda: run(ids=[[1, 2, 3]]),
     "ids has shape (1, 3); it must have shape (tokens,)"),
    ("_core/program.pyx", "InferenceError.not_finite",
     lambda: tiny.Runner(tiny.program(change={"model.norm.weight": nan})).alone([1, 2]),
     "the input of 'lm_head' has a number that is not finite; diagnosis shows where it began"),
    ("_core/head.pyx", "ShapeError.empty", lambda: Int8Rows(0, 3),
     "an int8 table has shape (0, 3); it needs at least one row and one column"),
    ("_core/head.pyx", "ShapeError.too_large", lambda: Int8Rows(1, 65537),
     "the number of columns is 65537; the limit is 65536 columns"),
    ("_core/head.pyx", "ShapeError.mismatch", lambda: Int8Rows(2, 3).fill(1, np.zeros((2, 3), np.int8), ONES[:, 0]),
     "weights has shape (2, 3); it must be (1, 3)"),
    ("_core/head.pyx", "ShapeError.columns", lambda: Int8Rows(2, 3).multiply(ONES),
     "cannot multiply a 2 x 3 int8 table: the weight has 3 columns, the input 4"),
    ("_core/head.pyx", "ShapeError.mismatch", lambda: Int8Rows(2, 4).multiply(ONES, leaders=np.ones(9, np.int32)),
     f"leaders has shape (9,); it must be ({len(ONES)},)"),
    ("_core/head.pyx", "ShapeError.too_large",
     lambda: Int8Rows(2, 4).multiply(ONES, leaders=np.full(len(ONES), 65, np.int32)),
     "the number of leaders is 65; the limit is 64 logits"),
    ("_core/head.pyx", "TensorError.read_only",
     lambda: rows_of_bytes(aligned_bytes(), 4, 4, ONES[0]).fill(0, np.ones((4, 4), np.int8), ONES[0]),
     "the int8 table is read-only, and the result is to be written there; pass a writable array"),
    ("_core/head.pyx", "ShapeError.mismatch", lambda: rows_of_bytes(aligned_bytes(), 17, 4, np.ones(17, np.float32)),
     "data has shape (64,); it must be (128,)"),
    ("_core/head.pyx", "TensorError.not_aligned",
     lambda: rows_of_bytes(aligned_bytes(1), 1, 4, np.ones(1, np.float32)),
     "data does not lie at addresses fit for tiles of 64 bytes; pass a copy of it"),
    ("_core/head.pyx", "InferenceError.not_finite", lambda: Int8Rows(2, 4).multiply(ONES * np.nan),
     "the input of 'x' has a number that is not finite; diagnosis shows where it began"),
    ("_core/ops.pyx", "ShapeError.mismatch", lambda: ops.rms_norm(ONES, ONES[0, :3].copy(), 1e-5),
     "gain has shape (3,); it must be (4,)"),
    ("_core/ops.pyx", "ShapeError.mismatch", lambda: ops.gate("silu", ONES, ONES[:1]),
     "up has shape (1, 4); it must be (2, 4)"),
    ("engine.py", "InferenceError.closed", closed, "the engine is closed; make a new one"),
    ("engine.py", "TypeError", lambda: engine().generate("a", "b"),
     "an engine runs a Model, not a str; `load_model` makes one, and what `bitnet.load` returns has one: its "
     "attribute `model`"),
    ("engine.py", "InferenceError.empty_prompt", lambda: engine().stream(loaded(), []),
     "the prompt has no tokens; give at least one"),
    ("engine.py", "InferenceError.beyond_context", lambda: engine().stream(loaded(), [1] * 129),
     "position 128 is beyond the 128 tokens of the context"),
    ("engine.py", "InferenceError.beyond_context", beyond_the_cache,
     "position 128 is beyond the 128 tokens of the context"),
    ("scoring.py", "ConfigurationError.value", lambda: engine().score(loaded(), "text"),
     "score.texts is 'text'; it must be a list of texts"),
    ("scoring.py", "ConfigurationError.value", lambda: engine().score(loaded(), [[1]], [[1], [2]]),
     "score.contexts is [[1], [2]]; it must be a list of 1, one for each text"),
    ("scoring.py", "ConfigurationError.value", lambda: engine().score(loaded(), [[1, 2]], batch_size=0),
     "score.batch_size is 0; it must be a whole number above 0"),
    ("scoring.py", "InferenceError.too_short", lambda: engine().score(loaded(), [[1]]),
     "the text has 1 tokens; at least two are needed, one to predict the other"),
    ("scoring.py", "InferenceError.beyond_context", lambda: engine().score(loaded(), [[1] * 130]),
     "position 128 is beyond the 128 tokens of the context"),
    ("harness.py", "ConfigurationError.conflict", lambda: harness.Requests("a", "b"),
     "model_args: path and pretrained are the same; give one of them"),
    ("harness.py", "ConfigurationError.choice", lambda: harness.Requests(device="cuda:1"),
     "device is 'cuda:1'; it must be one of 'cpu'"),
    ("harness.py", "ConfigurationError.value", lambda: harness.Requests(CHECKPOINT, max_length=129),
     "model_args.max_length is 129; it must be from 2 to 128, the context"),
    ("harness.py", "ConfigurationError.value", too_many_to_generate,
     "generate_until.max_gen_toks is 128; it must be below 128, the context"),
    ("harness.py", "ConfigurationError.missing_library", without_the_harness,
     "the adapter is for the harness, which needs the library 'lm_eval': pip install 'bitnet-runtime[eval]'"),
    ("harness.py", "AttributeError", lambda: harness.nothing, "module 'bitnet.harness' has no attribute 'nothing'"),
    ("engine.py", "InferenceError.stopped", cancelled_between_runs, "the request was cancelled"),
    ("engine.py", "InferenceError.stopped",
     lambda: engine().score(loaded(), [[1, 2], [3, 4]], batch_size=1, progress=lambda *_: engine().cancel()),
     "the request was cancelled"),
    ("engine.py", "ConfigurationError.conflict", lambda: engine().generate(loaded(), [[1], [2]], []),
     "generate: 2 prompts have 0 configurations"),
    ("engine.py", "ConfigurationError.conflict",
     lambda: engine().stream(loaded(), [1], GenerationConfig(do_sample=True, num_return_sequences=2)),
     "stream: a stream is one answer; num_return_sequences is 2"),
    ("stream.py", "ConfigurationError.value", lambda: engine().stream(loaded(), [1]).rewind(1),
     "Stream.rewind.tokens is 1; it must be a whole number from 0 to 0: that many have come, and leave room for one "
     "more"),
    ("engine.py", "ConfigurationError.conflict", lambda: engine().generate(loaded(), [[1]], streamer=ONES),
     "generate: a streamer is for one answer, and instead of on_piece"),
    ("grammar.py", "DeviceError.missing_extra", without_llguidance,
     "'llguidance' is not installed; run: pip install 'bitnet-runtime[grammar]'"),
    ("grammar.py", "ConfigurationError.value", lambda: Grammar.lark(3), "Grammar.lark is 3; it must be a string"),
    ("grammar.py", "ConfigurationError.grammar", lambda: Grammar.json_schema(3),
     "Grammar.json_schema cannot be used: 'int' object is not iterable"),
    ("grammar.py", "ConfigurationError.grammar", lambda: Grammar.json_schema({"type": "x"}),
     'Grammar.json_schema cannot be used: Invalid type: x'),
    ("grammar.py", "ModelLoadError.no_tokenizer", lambda: engine().generate(loaded(), [1], grammar=Grammar.regex("a")),
     f"'{CHECKPOINT}' has no tokenizer that can be used; give token ids instead of text"),
    ("grammar.py", "InferenceError.grammar",
     lambda: Grammar.regex("a").matcher(bundled()).accept(bundled().tokenizer.id_of("b")),
     """the grammar cannot go on: Parser Error: token "b" doesn't satisfy the grammar; byte 'b' fails parse"""),
    ("tuning.py", "ConfigurationError.thread_count", lambda: tuning.fastest_packing("two"),
     "num_threads is 'two'; it must be a whole number of threads from 1 to 1024"),
    ("grammar.py", "InferenceError.grammar_tokenizer", grammar_of_words,
     "a grammar needs a tokenizer of byte-level BPE or SentencePiece, and llguidance cannot read the model's: can't "
     "determine decoder type: None"),
    ("scheduler.py", "InferenceError.closed", closed_meanwhile, "the engine is closed; make a new one"),
    ("scheduler.py", "QueueFullError.waiting", full_queue,
     "1 requests are waiting, and no more may; try again when some have ended, or raise max_queue"),
    ("kv_cache.py", "MemoryError.cache_full", full_cache,
     "all 1 pages of 64 tokens for keys and values are in use; wait for others to end, or raise max_kv_tokens"),
    ("request.py", "InferenceError.not_finite", lambda: engine().generate(of_nan(), [1]),
     "the input of 'lm_head' has a number that is not finite; diagnosis shows where it began"),
    ("embedding.py", "InferenceError.beyond_context", lambda: engine().embed(loaded(), [[1] * 129]),
     "position 128 is beyond the 128 tokens of the context"),
    ("scoring.py", "InferenceError.not_finite", lambda: engine().score(of_nan(), [[1, 2]]),
     "the input of 'lm_head' has a number that is not finite; diagnosis shows where it began"),
    ("_core/drawing.pyx", "ShapeError.mismatch", lambda: Draws(5).add(ONES[0], 0.5),
     "logits has shape (4,); it must be (5,)"),
    ("_core/drawing.pyx", "ShapeError.too_large", lambda: Draws(5).token(0),
     "a draw is 0; the limit is -1 of those added"),
    ("_core/sampling.pyx", "InferenceError.token", lambda: History(4).add(np.array([3, 4], np.int32), False),
     "token 4 at position 1 is not in the vocabulary of 4"),
    ("_core/sampling.pyx", "ShapeError.mismatch", lambda: History(5).penalize(ONES[0], 1, 1, 1),
     "logits has shape (4,); it must be (5,)"),
    ("sampling.py", "ConfigurationError.conflict",
     lambda: engine().generate(loaded(), [1], FEW, logits_processor=lambda ids, logits: logits - np.inf),
     "GenerationConfig: all 512 tokens are forbidden"),
    ("request.py", "InferenceError.not_finite", lambda: engine().infer(of_nan(), [1]),
     "the input of 'lm_head' has a number that is not finite; diagnosis shows where it began"),
    ("config.py", "self._conflict", lambda: EngineConfig(max_batch_size=9, max_batch_tokens=8),
     "EngineConfig: max_batch_size is 9, max_batch_tokens only 8"),
    ("model.py", "ModelLoadError.generation_config", lambda: altered(generation={"do_sample": True, "top_p": 2}),
     "the generation_config.json of '...' cannot be used: GenerationConfig.top_p is 2; it must be above 0 and at most "
     "1"),
    ("model.py", "ModelLoadError.shape", lambda: altered(flat=["lm_head.weight"]),
     "'lm_head.weight' has shape (131072,); the configuration needs (512, 256)"),
    ("model.py", "InferenceError.tokens", lambda: loaded().encode([[1]]),
     "a prompt must be text or a list of token ids, one after the other"),
    ("model.py", "InferenceError.tokens", lambda: loaded().encode([[1], [1, 2]]),
     "a prompt must be text or a list of token ids, one after the other"),
    ("model.py", "ModelLoadError.unsupported", lambda: altered(mlp_bias=True),
     "'...': mlp_bias is True; it must be false: no projection here adds a bias"),
    ("model.py", "ModelLoadError.unsupported", lambda: altered(rope_scaling={"rope_type": "linear", "factor": 2.0}),
     "'...': rope_scaling is 'linear'; it must be absent or of the type 'default'"),
    ("model.py", "ModelLoadError.unsupported", lambda: altered(quantization_config={"rms_norm_eps": -1}),
     "'...': quantization_config.rms_norm_eps is -1; it must be a number between 0 and 1"),
    ("model.py", "ModelLoadError.unsupported", lambda: altered(quantization_config=[1]),
     "'...': quantization_config is (1,); it must be an object"),
    ("formats/random.py", "ConfigurationError.choice", lambda: random_model("9b"),
     "shape is '9b'; it must be one of '2b4t', '0.7b', '3b', '8b'"),
    ("model.py", "ModelLoadError.missing_tensor", lambda: altered("lm_head.weight"),
     "'...' has no tensor 'lm_head.weight'"),
    ("model.py", "ModelLoadError.no_tokenizer", lambda: loaded().encode("text"),
     f"'{CHECKPOINT}' has no tokenizer that can be used; give token ids instead of text"),
    ("model.py", "ModelLoadError.no_chat_template", lambda: loaded().chat_prompt([]),
     f"'{CHECKPOINT}' has no chat template; write the prompt as text, or give a template: "
     "'plain' writes what was said, line by line"),
    ("models/__init__.py", "ModelLoadError.unknown_model", lambda: family({"model_type": "mistral"}, "model"),
     "'model' is of model_type 'mistral'; known are 'bitnet', 'gemma3_text', 'llama', 'qwen3'"),
]  # fmt: skip
