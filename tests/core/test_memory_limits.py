"""What a pool does when memory runs out, and what it tells of what stays: limits, leaks, pressure."""

import concurrent.futures
import logging
import threading
import time

import pytest

import bitnet
from bitnet._core import memory
from bitnet._core.memory import HybridMemoryPool
from bitnet.config import MemoryPoolConfig
from bitnet.memory import MemoryPressure, system_memory


@pytest.fixture(params=[False, True], ids=["plain", "guards"])
def pool(request):
    return HybridMemoryPool(MemoryPoolConfig(guards=request.param))


# ---- limits and failures


def test_a_limit(pool):
    pool.limit = 1 << 20
    kept = [pool.allocate(600 << 10, tag="weights"), pool.allocate(300 << 10, tag="kv"), pool.allocate(3, tag="a"),
            pool.allocate(2, tag="b")]  # fmt: skip
    with pytest.raises(bitnet.MemoryError) as caught:
        pool.allocate(200 << 10)
    assert str(caught.value) == (
        "cannot allocate 200 KiB for a block: 900 KiB of the pool's limit of 1 MiB are in use (weights: 600 KiB, "
        "kv: 300 KiB, a: 3 B); free some, or raise the limit"
    )
    with pytest.raises(bitnet.MemoryError):
        pool.resize(kept[2], 200 << 10)
    assert pool.get_stats().failed_count == 2
    pool.limit = None
    kept.append(pool.allocate(200 << 10))
    assert pool.limit is None
    for value in (0, -1, 1.5, True):
        with pytest.raises(bitnet.ConfigurationError, match=r"limit is .*; it must be a whole number of bytes above 0"):
            pool.limit = value
    assert HybridMemoryPool(MemoryPoolConfig(limit=5)).limit == 5


def test_a_size_the_system_refuses_is_a_memory_error_that_names_it(pool):
    with pytest.raises(bitnet.MemoryError, match=r"cannot allocate 1 EiB for the test: the operating system refused"):
        memory.new_block(1 << 60, "the test")
    with pytest.raises(MemoryError):
        memory.new_block((1 << 63) - 1)
    with pytest.raises(bitnet.MemoryError, match="cannot allocate -1 bytes for a block"):
        memory.new_block(-1)
    with pytest.raises(bitnet.MemoryError, match="cannot allocate 8 EiB"):
        pool.allocate((1 << 63) - 1)
    handle = pool.allocate(5)
    for use in (pool.allocate, lambda size: pool.resize(handle, size)):
        with pytest.raises(bitnet.MemoryError, match=rf"cannot allocate {1 << 70} bytes for .*not fit in an address"):
            use(1 << 70)
        with pytest.raises(TypeError):
            use(1.5)
    handle.free()
    assert pool.get_stats().failed_count == 1
    assert pool.get_stats().allocated == 0


def test_an_injected_failure(pool):
    with pool.injected_failure(after=2) as has_happened:
        pool.allocate(1)
        pool.allocate(1)
        assert not has_happened()
        with pytest.raises(bitnet.MemoryError, match="cannot allocate 1 B"):
            pool.allocate(1)
        assert has_happened()
        pool.allocate(1)
    assert has_happened()
    with pool.injected_failure(after=0) as has_happened:
        pass
    pool.allocate(1)
    assert not has_happened()
    assert pool.get_stats().failed_count == 1


# ---- leaks


def test_leaks_are_reported():
    pool = HybridMemoryPool()
    pool.allocate(1)
    before = pool.allocate(7)
    with pool.track(tracebacks=True) as tracker:
        leaked = [pool.allocate(1000, tag="cache"), pool.allocate(3 << 20)]
        pool.allocate(10)
        within = tracker.report()
    later = pool.allocate(5)
    report = tracker.report()
    assert report.leaks[0].tag == within.leaks[0].tag == "cache"
    assert (report.count, report.bytes) == (within.count, within.bytes) == (2, 1000 + (3 << 20))
    assert report.by_tag["cache"] == bitnet.memory.TagStats(1000, 1)
    assert "in test_leaks_are_reported" in report.leaks[0].traceback[-2]
    assert "leaked = [pool.allocate(1000" in report.leaks[0].traceback[-1]
    assert 0 <= report.leaks[0].age_s < 60
    assert str(report).startswith("2 live blocks, 3 MiB\n  1000 B for cache, 0.")
    leaked.clear()
    assert tracker.report().count == 0
    assert str(tracker.report()) == "no leaks"
    assert pool.tracking == "off"
    assert (before.nbytes, later.nbytes) == (7, 5)


def test_leaks_without_tracebacks_have_an_age(pool):
    with pool.track() as outer:
        kept = pool.allocate(10)
        with pool.track(tracebacks=True) as inner:
            assert pool.tracking == "tracebacks"
            more = pool.allocate(20)
        assert pool.tracking == "counts"
    time.sleep(0.05)
    first, second = outer.report().leaks
    assert (first.size, first.traceback) == (10, ())
    assert second.traceback
    assert inner.report().leaks[0].size == 20
    assert 0.03 < first.age_s < 60
    assert (kept.nbytes, more.nbytes) == (10, 20)


def test_trackers_may_end_in_any_order(pool):
    first, second = pool.track(), pool.track(tracebacks=True)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert pool.tracking == "tracebacks"
    kept = pool.allocate(10)
    pool.tracking = "counts"
    assert pool.tracking == "tracebacks"
    second.__exit__(None, None, None)
    assert pool.tracking == "counts"
    assert second.report().leaks[0].traceback
    assert first.report().count == 0
    assert kept.nbytes == 10


def test_tracking_by_setting(pool):
    handles = [pool.allocate(5, tag="a")]
    pool.tracking = "counts"
    handles += [pool.allocate(10)]
    first, second = pool.leaks().leaks
    assert (first.size, first.tag, first.age_s) == (5, "a", None)
    assert second.age_s is not None
    assert "  5 B for a\n  10 B for untagged, 0." in str(pool.leaks())
    handles.clear()
    assert pool.leaks().count == 0
    with pytest.raises(bitnet.ConfigurationError, match="tracking is 'all'; it must be one of 'off', 'counts'"):
        pool.tracking = "all"
    assert HybridMemoryPool(MemoryPoolConfig(tracking="counts")).tracking == "counts"
    assert "tracking 'counts'" in repr(pool)


# ---- pressure


def test_a_callback_frees_what_an_allocation_needs():
    pool = HybridMemoryPool(MemoryPoolConfig(limit=1000))
    cache, told = [pool.allocate(100, tag="cache") for _ in range(9)], []

    def shrink(pressure):
        told.append(pressure)
        del cache[:3]
        if pressure.cause == "failure":
            pool.allocate(1)  # calls nobody

    pool.register_pressure_callback(1.0, shrink)
    kept = pool.allocate(300)
    assert told == [MemoryPressure("failure", 1.0, 900, 1000, 300)]
    more = pool.allocate(100)
    assert told[1:] == [MemoryPressure("limit", 1.0, 1000, 1000)]
    with pytest.raises(bitnet.MemoryError, match="limit"):
        pool.allocate(900)
    assert (kept.nbytes, more.nbytes) == (300, 100)


def test_a_level_is_told_once_until_use_falls_below(pool):
    pool.limit = 1000
    told = []
    unregister = pool.register_pressure_callback(0.5, lambda pressure: told.append(pressure.used))
    handles = [pool.allocate(400)]
    assert told == []
    handles += [pool.allocate(200), pool.allocate(100)]
    assert told == [600]
    handles.clear()
    handles += [pool.allocate(100), pool.allocate(450)]
    assert told == [600, 550]
    unregister()
    handles.clear()
    handles.append(pool.allocate(900))
    assert told == [600, 550]


def test_two_threads_that_are_short_of_memory(pool):
    """While the first one's callback runs, the second one's is called too, instead of its allocation failing."""
    pool.limit = 1000
    # Freed by name: without a GIL the last reference that another thread drops is not counted at once.
    caches, told = [pool.allocate(450), pool.allocate(450)], []
    is_in_first, second_is_done = threading.Event(), threading.Event()

    def shrink(pressure):
        if pressure.cause != "failure":
            return
        told.append(pressure.needed)
        if pressure.needed == 400:
            is_in_first.set()
            assert second_is_done.wait(30)
            caches[0].free()
        else:
            caches[1].free()

    pool.register_pressure_callback(1.0, shrink)
    with concurrent.futures.ThreadPoolExecutor() as threads:
        first = threads.submit(pool.allocate, 400)
        assert is_in_first.wait(30)
        second = pool.allocate(401)
        second_is_done.set()
        assert (first.result(30).nbytes, second.nbytes) == (400, 401)
    assert told == [400, 401]


def test_a_callback_that_raises_is_logged(pool, caplog):
    pool.limit = 100
    pool.register_pressure_callback(0.1, lambda pressure: 1 / 0)
    with caplog.at_level(logging.ERROR, "bitnet.memory"):
        handle = pool.allocate(50)
    assert "a memory pressure callback failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert handle.nbytes == 50


def test_the_system_is_looked_at_when_the_pool_grows(pool):
    used, total = system_memory()
    if not total:
        pytest.skip("the system does not say how much memory it has")
    told = []
    pool.register_pressure_callback(used / total / 2, told.append)
    handle = pool.allocate(5 << 20)
    assert [one.cause for one in told] == ["system"]
    assert told[0].total == total
    pool.register_pressure_callback(1.0, lambda pressure: pytest.fail("not so much is in use"))
    more = pool.allocate(50 << 20)
    assert (handle.nbytes, more.nbytes) == (5 << 20, 50 << 20)


def test_callbacks_that_are_none(pool):
    for level in (0, 1.1, "high", True):
        with pytest.raises(bitnet.ConfigurationError, match=r"level is .*; it must be a share above 0 and at most 1"):
            pool.register_pressure_callback(level, print)
    with pytest.raises(bitnet.ConfigurationError, match="function is 5; it must be callable"):
        pool.register_pressure_callback(0.5, 5)


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/a/b\n", {"a/memory.max": "1000", "a/memory.current": "900", "a/memory.stat": "inactive_file 100\n",
                       "a/b/memory.max": "max", "a/b/memory.current": "5"}, (800, 1000)),
        ("4:memory:/x\n0::/\n", {"memory/x/memory.limit_in_bytes": "2000", "memory/x/memory.usage_in_bytes": "1500",
                                 "memory/x/memory.stat": "total_inactive_file 1000\n"}, (100 << 10, 200 << 10)),
        ("4:memory:/x\n", {"memory/x/memory.limit_in_bytes": str((1 << 63) - 4096),
                           "memory/x/memory.usage_in_bytes": "1500"}, (100 << 10, 200 << 10)),
        ("4:cpu:/x\n", {"cpu/x/memory.limit_in_bytes": "5", "cpu/x/memory.usage_in_bytes": "5"},
         (100 << 10, 200 << 10)),
    ],
)  # fmt: skip
def test_the_memory_of_groups_and_machine(tmp_path, groups, files, expected):
    for name, text in {"proc": groups, "info": "MemTotal: 200 kB\nMemAvailable: 100 kB\nHuge: 0\n", **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert system_memory(str(tmp_path / "proc"), str(tmp_path), str(tmp_path / "info")) == expected
    assert system_memory(str(tmp_path / "none"), str(tmp_path), str(tmp_path / "none")) == (0, 0)
