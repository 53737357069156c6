"""An allocation that fails, at each place in turn: a clear error, no memory lost, and all goes on afterwards."""

import ctypes
import gc
import subprocess
import sys

import pytest
from checkpoints import DATA

import bitnet
from bitnet.memory import memory_report

PATH = DATA / "bitnet-packed-bitlinear"
PROMPT = list(range(1, 100))


@pytest.fixture
def pool():
    gc.collect()
    return bitnet.HybridMemoryPool.instance()


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
        check()
        failures += 1


@pytest.mark.parametrize("num_threads", [1, 2])
def test_every_allocation_of_a_load(pool, num_threads):
    settings = {"num_threads": num_threads}
    with bitnet.load(PATH, **settings) as model:
        expected = model.generate(PROMPT[:5], max_new_tokens=3).tokens
    del model
    gc.collect()

    def load():
        bitnet.load(PATH, **settings).close()

    assert fail_everywhere(pool, load, lambda: None) >= 20
    with bitnet.load(PATH, **settings) as model:
        assert model.generate(PROMPT[:5], max_new_tokens=3).tokens == expected


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


def test_the_report_says_where_memory_is(pool, tmp_path):
    before = memory_report()
    with bitnet.load(PATH, num_threads=1) as model:
        model.infer([1, 2, 3])
        found = model.engine.memory_report()
        assert found.weights - before.weights == model.model.weight_bytes
        config = model.model.config
        assert found.head - before.head == config.vocab_size * config.hidden_size
        assert found.kv - before.kv == model.model.program.page_bytes
        assert found.scratch > before.scratch
        assert found.unused >= 0
        assert str(found).splitlines()[0].startswith("weights ")
    with pytest.raises(bitnet.InferenceError, match="the engine is closed"):
        model.engine.memory_report()
    status = tmp_path / "status"
    status.write_text("Name:\tx\nVmRSS:\t  900000 kB\nRssFile:\t  1000 kB\nRssShmem:\t 24 kB\n")
    told = memory_report(status=str(status))
    assert (told.rss, told.mapped_files) == (900000 << 10, 1024 << 10)
    assert told.outside == (900000 - 1024 << 10) - pool.get_stats().allocated
    assert (memory_report(status="/none").rss, memory_report(status="/none").outside) == (0, 0)
