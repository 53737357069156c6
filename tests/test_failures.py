"""An allocation that fails, at each place in turn: a clear error, no memory lost, and all goes on afterwards."""

import asyncio
import ctypes
import gc
import subprocess
import sys

import pytest
from checkpoints import DATA

import bitnet
from bitnet.scheduler import Scheduler

PATH = DATA / "bitnet-packed-bitlinear"
PROMPT = list(range(1, 100))


@pytest.fixture
def pool():
    gc.collect()
    gc.freeze()  # collecting garbage is quick then, and this is done often here
    yield bitnet.HybridMemoryPool.instance()
    gc.unfreeze()


def level(pool):
    gc.collect()
    stats = pool.get_stats()
    return stats.allocated, stats.active, stats.by_tag


def fail_everywhere(pool, act, check):
    """Run `act` with its first allocation failing, then its second, and so on, until it needs no more."""
    before, failures = level(pool), 0
    while True:
        with pool.injected_failure(after=failures) as has_happened:
            try:
                act()
            except bitnet.MemoryError as error:
                assert str(error).startswith("cannot allocate ")  # noqa: PT017
                assert error.layers  # noqa: PT017
            else:
                assert not has_happened()
                return failures
        assert has_happened()
        assert level(pool) == before
        if failures % 4 == 0:
            check()
        failures += 1


LOADS = [
    (None, {"num_threads": 1}), (None, {"num_threads": 2, "packing": "t5", "verify": "load"}),
    (None, {"head_dtype": "float16", "kv_dtype": "int8"}), (None, {"activations": "float32"}),
    ("bitnet", {"load": "copy"}), ("bitnet", {"load": "mmap"}), ("bitnet", {"load": "copy", "activations": "float32"}),
    ("hugging_face", {}), ("gguf", {"i2s_layout": "x86"}), ("gguf", {"i2s_layout": "x86", "weights": "float"}),
]  # fmt: skip


@pytest.mark.parametrize(("form", "settings"), LOADS, ids=str)
def test_every_allocation_of_a_load(pool, tmp_path, form, settings):
    path = PATH
    if form is not None:
        path = tmp_path / ("a.gguf" if form == "gguf" else "a")
        bitnet.convert(PATH, path, to=form)
    with bitnet.load(path, **settings) as model:
        expected = model.generate(PROMPT[:5], max_new_tokens=3).tokens
    del model
    gc.collect()
    with bitnet.InferenceEngine(bitnet.EngineConfig(**settings)) as engine:

        def use():
            """The engine that failed has not changed."""
            model = engine.load_model(path)
            with bitnet.InferenceEngine(engine.config) as other:
                config = bitnet.GenerationConfig(max_new_tokens=3)
                assert other.generate(model, PROMPT[:5], config).tokens == expected

        failures = fail_everywhere(pool, lambda: engine.load_model(path), use)
    assert failures >= {"copy": 20, "mmap": 1}.get(settings.get("load"), 20)


# ---- everything that an engine is asked for


def told(answers):
    """What counts of answers; of those that memory was missing for, that it says so."""
    found = []
    for one in answers if isinstance(answers, list) else [answers]:
        assert one.error is None or isinstance(one.error, bitnet.MemoryError)
        assert one.error is None or one.error.layers
        found.append(None if one.error is not None else (one.tokens, one.text, one.finish_reason, one.logprobs))
    return found


def many_together(engine, model):
    shared = PROMPT[:70]
    return told(engine.generate(model, [[*shared, number] for number in range(1, 6)], LONG))


def streamed(engine, model):
    return [piece.token for piece in engine.stream(model, PROMPT, LONG)]


def streamed_to_a_task(engine, model):
    async def read():
        return [piece.token async for piece in engine.stream(model, PROMPT, LONG)]

    return asyncio.run(read())


def kept_in_a_file(engine, model, path):
    engine.save_state(model, path, PROMPT)
    with bitnet.InferenceEngine(engine.config) as other:
        assert other.load_state(model, path) == len(PROMPT)
        return told(other.generate(model, PROMPT, LONG))


SHORT = bitnet.GenerationConfig(max_new_tokens=20, eos_token_id=())
LONG = SHORT.replace(max_new_tokens=40)
DRAWN = SHORT.replace(do_sample=True, seed=3, temperature=0.8, top_p=0.9, logprobs=2)
COPIED = SHORT.replace(prompt_lookup_num_tokens=5)
GRAMMAR = bitnet.Grammar.regex("[a-z]{3,9} [a-z]{3,9}")
ACTS = {
    "a text": ({}, lambda engine, model, path: told(engine.generate(model, PROMPT, LONG))),
    "drawn": ({}, lambda engine, model, path: told(engine.generate(model, PROMPT, DRAWN))),
    "three of one": ({}, lambda engine, model, path: told(
        engine.generate(model, PROMPT, DRAWN.replace(num_return_sequences=3)))),
    "many": ({}, lambda engine, model, path: many_together(engine, model)),
    "many on two threads": ({"num_threads": 2}, lambda engine, model, path: many_together(engine, model)),
    "many in little room": ({"max_kv_tokens": 256}, lambda engine, model, path: many_together(engine, model)),
    "many that share nothing": ({"prefix_cache": False}, lambda engine, model, path: many_together(engine, model)),
    "chunks": ({"max_batch_tokens": 32, "prefill_chunk": 7},
               lambda engine, model, path: many_together(engine, model)),
    "guesses": ({}, lambda engine, model, path: told(
        engine.generate(model, "a red ball. a blue ball. a red ball. a", COPIED))),
    "a grammar": ({}, lambda engine, model, path: told(engine.generate(model, "Once", SHORT, grammar=GRAMMAR))),
    "a stream": ({}, lambda engine, model, path: streamed(engine, model)),
    "a stream for a task": ({}, lambda engine, model, path: streamed_to_a_task(engine, model)),
    "logits": ({}, lambda engine, model, path: [
        one.tobytes() for one in engine.infer_batch(model, [PROMPT, PROMPT[:9]], last_only=True)]),
    "scores": ({}, lambda engine, model, path: [one.total for one in engine.score(model, ["a dog", "the cat ran"])]),
    "vectors": ({}, lambda engine, model, path: engine.embed(model, ["a dog", "the cat ran"]).tobytes()),
    "a file of keys and values": ({}, kept_in_a_file),
}  # fmt: skip


@pytest.fixture(scope="module")
def bundled():
    with bitnet.load(num_threads=1) as loaded:
        yield loaded.model


@pytest.mark.parametrize("name", ACTS)
def test_every_allocation_of_what_an_engine_is_asked_for(pool, bundled, tmp_path, name):
    settings, act = ACTS[name]
    if name == "a grammar":
        pytest.importorskip("llguidance")
    config, path = bundled.engine_config.replace(**settings), tmp_path / "state"
    with bitnet.InferenceEngine(config) as engine:
        expected = act(engine, bundled, path)
        again = act(engine, bundled, path)
        assert again == expected
    del engine, again
    before, outcomes = level(pool), []
    while not outcomes or outcomes[-1] != "did not come":
        outcomes.append(outcome(pool, len(outcomes), config, lambda engine: act(engine, bundled, path), expected))
        assert level(pool) == before
    assert len(outcomes) >= 8
    assert outcomes.count("an error") >= 5


def outcome(pool, after, config, act, expected):
    """What becomes of a failure: an error that is clear, or nothing, as where somebody paused; and the same engine
    answers afterwards."""
    with bitnet.InferenceEngine(config) as engine:
        with pool.injected_failure(after) as has_happened:
            found = "an error"
            try:
                answers = act(engine)
            except bitnet.MemoryError as error:
                assert str(error).startswith("cannot allocate ")  # noqa: PT017
                assert error.layers  # noqa: PT017
            else:
                if not isinstance(answers, list) or None not in answers:
                    found = "made up for"
                    assert answers == expected
                # What did not fail is what it would have been.
                for one, right in zip(answers, expected, strict=True) if isinstance(answers, list) else ():
                    assert one in (None, right)
        if not has_happened():
            return "did not come"
        assert act(engine) == expected
        for scheduler in engine._schedulers.values():
            assert scheduler.cache.used == 0
            assert not scheduler.cache.root.pending
    return found


def test_a_request_that_ended_before_its_first_page_holds_nobody_up(pool, bundled):
    """Nobody waits for a page that nobody computes, while others are answered."""
    prompt = list(range(5, 105))
    with bitnet.InferenceEngine(bundled.engine_config) as engine:
        others = engine.stream(bundled, [7, 8], SHORT.replace(max_new_tokens=150))
        next(others)
        with pool.injected_failure(after=0) as has_happened:
            stream = engine.stream(bundled, prompt, SHORT)
            next(others)
        assert has_happened()
        stream.close()
        stream = engine.stream(bundled, prompt, SHORT.replace(max_new_tokens=3))
        for _ in range(20):
            next(others)
        assert len(stream.completion.tokens) == 3
        assert others.completion.finish_reason is None
        others.close()


@pytest.mark.parametrize("method", ["_run", "_gather_prompts"])
def test_what_python_is_refused_ends_its_request_and_no_other(bundled, monkeypatch, method):
    prompts, plain = [[5, 6, 7], [8, 9], [10]], getattr(Scheduler, method)
    with bitnet.InferenceEngine(bundled.engine_config) as engine:
        expected = told(engine.generate(bundled, prompts, SHORT))
        left = [2]

        def refused(self, *given):
            left[0] -= 1
            if left[0] >= 0:
                raise MemoryError("no room for a list")
            return plain(self, *given)

        monkeypatch.setattr(Scheduler, method, refused)
        found = engine.generate(bundled, prompts, SHORT)
        errors = [one.error for one in found if one.error is not None]
        assert len(errors) == (1 if method == "_run" else 2)  # a step that fails is run again, request by request
        for error in errors:
            assert str(error).startswith("no memory is left for 'run' (no room for a list); end other programs")
        assert [mine for mine in told(found) if mine] == [
            right for mine, right in zip(told(found), expected, strict=True) if mine]  # fmt: skip
        left[0] = 9
        alone = engine.generate(bundled, [prompts[0]], SHORT)[0]
        assert isinstance(alone.error, bitnet.MemoryError)
        left[0] = 0
        assert told(engine.generate(bundled, prompts, SHORT)) == expected
        assert engine._scheduler(bundled).cache.used == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a test take memory away from a process")
def test_what_the_system_refuses_is_a_clear_error():
    """Also to Python and NumPy, which say less than the pool does."""
    done = subprocess.run([sys.executable, "-c", REFUSED, str(PATH)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) >= 3


REFUSED = """
import resource, sys
import numpy as np
import bitnet

def limited(nbytes):
    used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
    return resource.setrlimit(resource.RLIMIT_AS, (used + nbytes if nbytes is not None else -1, -1))

path, errors = sys.argv[1], 0
pool = bitnet.HybridMemoryPool.instance()
config = bitnet.GenerationConfig(max_new_tokens=9, eos_token_id=())
with bitnet.load(path, num_threads=2) as model:
    expected = model.generate([1, 2, 3], config).tokens
del model
pool.trim()
for nbytes in [n << 10 for n in (0, 512, 1000, 1500, 2000, 3000, 5000, 8000)]:
    limited(nbytes)
    try:
        bitnet.load(path, num_threads=2).close()
    except (bitnet.MemoryError, bitnet.ModelLoadError) as error:
        limited(None)
        assert str(error) and [one.operation for one in error.layers] == ['load_model'], error.to_report()
        assert 'memory' in str(error) or 'the operating system refused' in str(error), str(error)
        errors += 1
    finally:
        limited(None)
    assert pool.get_stats().active == 0
    with bitnet.load(path, num_threads=2) as model:
        assert model.generate([1, 2, 3], config).tokens == expected
    del model
    pool.trim()
print(errors)
"""


def test_every_allocation_of_a_generation(pool):
    engine = bitnet.InferenceEngine(bitnet.EngineConfig(num_threads=1))
    model = engine.load_model(PATH)
    config = bitnet.GenerationConfig(max_new_tokens=70, eos_token_id=())
    with bitnet.InferenceEngine(engine.config) as other:
        expected = other.generate(model, PROMPT[:20], config).tokens
    del other

    def generate():
        with bitnet.InferenceEngine(engine.config) as fresh:
            fresh.generate(model, PROMPT[:20], config)

    assert fail_everywhere(pool, generate, lambda: None) >= 4
    # The same engine goes on after each failure, with what it has.
    failures = 0
    while True:
        with pool.injected_failure(after=0) as has_happened:
            try:
                found = engine.generate(model, PROMPT[:20], config).tokens
            except bitnet.MemoryError:
                failures += 1
            if not has_happened():
                break
        assert failures < 100
        assert engine.generate(model, PROMPT[:20], config).tokens == expected
    assert found == expected
    assert failures > 0


def test_a_limit_on_the_process_stops_a_load_and_nothing_else(pool):
    used = pool.get_stats().allocated
    pool.limit = used + (300 << 10)
    try:
        with pytest.raises(bitnet.MemoryError, match=r" of the pool's limit of .* are in use \(.*weights: ") as caught:
            bitnet.load(PATH)
    finally:
        pool.limit = None
    assert [layer.operation for layer in caught.value.layers] == ["load_model"]
    del caught
    gc.collect()
    assert pool.get_stats().allocated == used
    bitnet.load(PATH).close()


UNUSED = """
import numpy as np
from bitnet.memory import HybridMemoryPool, give_back_unused, memory_report
pool = HybridMemoryPool.instance()
with pool.allocate(8 << 20, zero=True):
    during = pool.get_stats().reserved
# Python's and NumPy's: pieces below the size from which on each is given back alone, and one that stays above them.
pieces = [np.ones(100 << 10, np.uint8) for _ in range(400)]
last = np.ones(100 << 10, np.uint8)
del pieces
before = memory_report()
give_back_unused()
assert pool.get_stats().reserved <= during - (8 << 20)
assert memory_report().rss <= before.rss - (30 << 20), (before.rss, memory_report().rss)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="only glibc can be asked")
def test_what_nothing_uses_goes_back_to_the_system():
    # In a process of its own, whose heap no other test has cut up.
    subprocess.run([sys.executable, "-c", UNUSED], check=True)
