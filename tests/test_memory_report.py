"""Where the memory of the process is, against what the system says of it."""

import gc
import os

import pytest
from checkpoints import DATA

import bitnet
from bitnet.memory import memory_report

PATH = DATA / "bitnet-packed-bitlinear"
PARTS = ("weights", "head", "kv", "scratch", "other", "unused", "files", "outside")
on_linux = pytest.mark.skipif(not os.path.exists("/proc/self/pagemap"), reason="only Linux tells of pages")


@pytest.fixture(params=["packed", "mmap", "copy"])
def settings(request, tmp_path):
    """A checkpoint, how to load it, and whether its weights stay in its file."""
    if request.param == "packed":
        return PATH, {}, False
    bitnet.convert(PATH, tmp_path / "a")
    return tmp_path / "a", {"load": request.param}, request.param == "mmap"


def test_the_parts_are_what_a_model_has(settings):
    path, how, is_mapped = settings
    gc.collect()
    before = memory_report()
    with bitnet.load(path, num_threads=1, **how) as model:
        model.infer([1, 2, 3])
        found = model.engine.memory_report()
        config = model.model.config
        sizes = {"weights": model.model.weight_bytes, "head": config.vocab_size * config.hidden_size,
                 "kv": model.model.program.page_bytes}  # fmt: skip
        for name, nbytes in sizes.items():
            assert getattr(found, name) - getattr(before, name) == nbytes, name
        assert found.scratch > before.scratch
        assert found.mapped - before.mapped == (sizes["weights"] + sizes["head"] if is_mapped else 0)
        assert str(found).splitlines()[1].startswith("weights ")
    with pytest.raises(bitnet.InferenceError, match="the engine is closed"):
        model.engine.memory_report()
    del model
    gc.collect()
    after = memory_report()
    for name in ("weights", "head", "kv", "mapped"):
        assert getattr(after, name) == getattr(before, name), name


@on_linux
def test_the_parts_add_up_to_what_the_system_says(settings):
    path, how, _ = settings
    with bitnet.load(path, num_threads=1, **how) as model:
        model.infer([1, 2, 3])
        found = model.engine.memory_report()
    assert set(found.resident) == set(PARTS)
    assert sum(found.resident.values()) == found.rss
    assert all(value >= 0 for value in found.resident.values())
    with open("/proc/self/statm") as file:
        rss = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert abs(found.rss - rss) < 2 << 20
    # All of them were read; what lies in the same page as something else is counted with it.
    for name in ("weights", "head"):
        assert getattr(found, name) - 8192 <= found.resident[name] <= getattr(found, name), name
    assert 0 <= found.huge_pages <= found.rss


@on_linux
def test_what_was_never_touched_is_in_no_memory():
    pool = bitnet.HybridMemoryPool(bitnet.MemoryPoolConfig(huge_pages=False, guards=False))
    handle, before = pool.allocate(40 << 20, tag="kv"), memory_report(pool)
    assert (before.kv, before.resident["kv"]) == (40 << 20, 0)
    handle.numpy()[: 10 << 20] = 1
    after = memory_report(pool)
    assert (after.kv, after.resident["kv"]) == (40 << 20, 10 << 20)
    assert after.rss - before.rss > 9 << 20
    assert abs(after.resident["outside"] - before.resident["outside"]) < 1 << 20
    small = [pool.allocate(1000, zero=True, tag="mine") for _ in range(100)]
    assert memory_report(pool).resident["other"] == memory_report(pool).other == 100_000
    handle.free()
    left = memory_report(pool)
    assert (left.kv, left.resident["kv"], left.unused) == (0, 0, pool.get_stats().reserved - 100_000)
    assert left.resident["unused"] >= 10 << 20
    assert len(small) == 100


def test_a_system_that_tells_less(tmp_path):
    pool = bitnet.HybridMemoryPool()
    handle = pool.allocate(3 << 20, tag="weights")
    (tmp_path / "status").write_text("Name:\tx\nVmRSS:\t  900000 kB\nRssFile:\t  1000 kB\nRssShmem:\t 24 kB\n")
    found = memory_report(pool, str(tmp_path))
    assert (found.rss, found.weights, found.resident["weights"]) == (900000 << 10, 3 << 20, 3 << 20)
    assert sum(found.resident.values()) == found.rss
    (tmp_path / "smaps_rollup").write_text("55d0-7ff0 ---p 0 0 [rollup]\nRss:  800000 kB\nAnonymous: 700000 kB\n"
                                           "AnonHugePages: 2048 kB\n")  # fmt: skip
    found = memory_report(pool, str(tmp_path))
    assert (found.rss, found.huge_pages) == (800000 << 10, 2 << 20)
    assert sum(found.resident.values()) == found.rss
    nothing = memory_report(pool, str(tmp_path / "none"))
    assert (nothing.rss, nothing.resident, nothing.weights) == (0, {}, handle.nbytes)
    assert "weights       3 MiB" in str(nothing)
