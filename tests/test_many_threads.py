"""Many threads on one engine: nothing of theirs gets mixed up, lost, or left behind.

These run on any Python. Where there is no GIL (`tests/freethreaded.sh`) the threads really run at the same time.
"""

import gc
import os
import sys
import sysconfig
import threading
import time

import numpy as np
import pytest
from checkpoints import DATA

import bitnet
from bitnet import GenerationConfig, HybridMemoryPool, InferenceEngine
from bitnet._core.program import add_recorder, remove_recorder
from bitnet.request import Generation

THREADS = 12
SECONDS = float(os.environ.get("BITNET_STRESS_S", "2"))
EXACT = {"kv_dtype": "float32", "head_dtype": "float32", "num_threads": 2}
CONFIGS = (
    GenerationConfig(max_new_tokens=8, eos_token_id=()),
    GenerationConfig(max_new_tokens=12, eos_token_id=(), do_sample=True, seed=3, top_p=0.9, logprobs=2),
    GenerationConfig(max_new_tokens=6, eos_token_id=(), do_sample=True, seed=4, top_k=9, repetition_penalty=1.3),
    GenerationConfig(max_new_tokens=20, eos_token_id=(), prompt_lookup_num_tokens=4),
)


@pytest.fixture(scope="module")
def model():
    with InferenceEngine(bitnet.EngineConfig(**EXACT)) as one:
        yield one.load_model(DATA / "bitnet-packed-auto")


def works(model):
    """What there is to do, and what comes of it alone."""
    rng = np.random.default_rng(0)
    start = rng.integers(3, 500, 70).tolist()  # which texts begin with, so that they share a page
    texts = [start[: rng.integers(1, 71)] + rng.integers(3, 500, rng.integers(1, 20)).tolist() for _ in range(6)]
    with InferenceEngine(bitnet.EngineConfig(**EXACT)) as alone:
        found = [(text, config, alone.generate(model, text, config).tokens) for text in texts for config in CONFIGS]
        logits = [alone.infer(model, text) for text in texts]
        scores = [one.logprobs for one in alone.score(model, texts)]
        vectors = alone.embed(model, texts, pooling="mean")
    return texts, found, logits, scores, vectors


class Worker(threading.Thread):
    """Asks for something by chance, until its time is up; what is not as it would be alone is its `problem`."""

    def __init__(self, engine, model, seed, expected, until):
        super().__init__(daemon=True)
        self.engine, self.model, self.until, self.rng = engine, model, until, np.random.default_rng(seed)
        self.expected, self.done, self.problem = expected, 0, None

    def run(self):
        ways = (self.generate, self.generate, self.stream, self.cut, self.infer, self.score, self.embed, self.look)
        try:
            while time.monotonic() < self.until:
                ways[self.rng.integers(len(ways))]()
                self.done += 1
        except BaseException as error:
            self.problem = repr(error)
            raise

    def one(self):
        _, found, *_ = self.expected
        return found[self.rng.integers(len(found))]

    def generate(self):
        chosen = [self.one() for _ in range(self.rng.integers(1, 4))]
        answers = self.engine.generate(self.model, [text for text, _, _ in chosen], [config for _, config, _ in chosen])
        assert [one.tokens for one in answers] == [tokens for _, _, tokens in chosen]

    def stream(self):
        text, config, tokens = self.one()
        assert [piece.token for piece in self.engine.stream(self.model, text, config)] == tokens

    def cut(self):
        """Leave before the end: closed, cancelled, dropped, or too late."""
        text, config, tokens = self.one()
        few, way = self.rng.integers(1, 4), self.rng.integers(4)
        stream = self.engine.stream(self.model, text, config, timeout=1e-3 if way == 3 else None)
        came = [piece.token for _, piece in zip(range(few), stream, strict=False)]
        if way < 2:
            (stream.close, stream.cancel)[way]()
        assert came == tokens[: len(came)]

    def infer(self):
        texts, _, logits, _, _ = self.expected
        at = self.rng.integers(len(texts))
        np.testing.assert_array_equal(self.engine.infer(self.model, texts[at]), logits[at])

    def score(self):
        texts, _, _, scores, _ = self.expected
        at = self.rng.integers(len(texts))
        np.testing.assert_array_equal(self.engine.score(self.model, [texts[at]])[0].logprobs, scores[at])

    def embed(self):
        texts, _, _, _, vectors = self.expected
        at = self.rng.integers(len(texts))
        np.testing.assert_array_equal(self.engine.embed(self.model, [texts[at]], pooling="mean")[0], vectors[at])

    def look(self):
        """What an application that watches its engine does, and a profiler."""
        activity = self.engine.activity(self.model)
        assert activity.kv_pages_used <= activity.kv_pages
        assert HybridMemoryPool.instance().get_stats().active > 0
        add_recorder(self.told)
        self.engine.infer(self.model, [5, 6, 7], last_only=True)
        remove_recorder(self.told)

    def told(self, program, *_):
        assert program.vocab_size == 512


@pytest.mark.parametrize("settings", [{}, {"max_batch_size": 3}, {"max_kv_tokens": 512}])
def test_many_threads_on_one_engine(model, settings):
    expected = works(model)
    pool = HybridMemoryPool.instance()
    gc.collect()
    before = pool.get_stats().active
    with InferenceEngine(bitnet.EngineConfig(**EXACT, **settings)) as engine:
        until = time.monotonic() + SECONDS
        workers = [Worker(engine, model, seed, expected, until) for seed in range(THREADS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(SECONDS + 60)
        assert [worker.problem for worker in workers if worker.problem] == []
        assert not any(worker.is_alive() for worker in workers)
        assert all(worker.done for worker in workers)
        activity = engine.activity(model)
        assert (activity.waiting, activity.running, activity.kv_pages_used) == (0, 0, 0)
    gc.collect()
    assert pool.get_stats().active == before


def test_threads_load_and_close_at_the_same_time():
    found, start = [], threading.Barrier(6)

    def work():
        start.wait()
        with bitnet.load(DATA / "bitnet-packed-auto", **EXACT) as loaded:
            found.append(loaded.generate([5, 6, 7], CONFIGS[0]).tokens)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 6
    assert all(tokens == found[0] for tokens in found)


def test_a_stream_that_is_collected_while_another_one_is_submitted(model):
    # The garbage collector may come anywhere: here, where the thread that submits keeps all others out.
    with InferenceEngine(bitnet.EngineConfig(**EXACT)) as engine:
        streams = [engine.stream(model, [5, 6, 7], CONFIGS[0])]
        next(streams[0])
        [scheduler] = engine._schedulers.values()
        numbers = scheduler._numbers

        class Numbers:
            def __next__(self):
                streams.clear()
                return next(numbers)

        scheduler._numbers = Numbers()

        def work():
            streams.append(engine.generate(model, [8, 9], CONFIGS[0]))

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        worker.join(30)
        assert not worker.is_alive()
        assert len(streams[0].tokens) == 8
        assert engine.activity(model).kv_pages_used == 0


@pytest.mark.parametrize("where", ["prepare", "take"])
def test_an_interrupt_of_the_one_who_drives_changes_nobody_s_answer(model, monkeypatch, where):
    config = GenerationConfig(max_new_tokens=20, eos_token_id=(), do_sample=True, seed=5, temperature=1.5, top_k=None)
    with InferenceEngine(bitnet.EngineConfig(**EXACT)) as engine:
        expected = [engine.generate(model, [5 + i, 6, 7], config).tokens for i in range(3)]
        whole, calls = getattr(Generation, where), []

        def interrupted(request, *given):
            calls.append(request)
            if len(calls) in (8, 23, 24):
                raise KeyboardInterrupt
            return whole(request, *given)

        streams = [engine.stream(model, [5 + i, 6, 7], config) for i in range(3)]
        monkeypatch.setattr(Generation, where, interrupted)
        found, interrupts = [[], [], []], 0
        while any(len(one) < 20 for one in found) and len(calls) < 500:
            for stream, tokens in zip(streams, found, strict=True):
                try:
                    tokens.append(next(stream).token)
                except KeyboardInterrupt:
                    interrupts += 1
        assert interrupts == 3
        assert found == expected


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="of a Python without a GIL")
def test_the_core_does_not_bring_the_gil_back():
    assert not sys._is_gil_enabled()
