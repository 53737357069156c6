"""The pool: sizes, alignment, ownership, counts, and its return to the system."""

import copy
import gc
import itertools
import os
import pickle

import numpy as np
import pytest

import bitnet
from bitnet import machine
from bitnet._core import blocks, memory
from bitnet._core.memory import HybridMemoryPool
from bitnet.config import MemoryPoolConfig

HUGE = 2 << 20
THRESHOLD = 1 << 20


@pytest.fixture(params=[False, True], ids=["plain", "guards"])
def pool(request):
    return HybridMemoryPool(MemoryPoolConfig(guards=request.param))


def sizes():
    """Every size up to a few slots, and around each slot's size, the threshold and the huge page."""
    steps = [16 * k for k in range(1, 33)] + [(8 + k) << e for e in range(6, 18) for k in range(1, 9)]
    around = [n + d for n in [*steps, THRESHOLD, HUGE, 2 * HUGE, 5 << 20] for d in (-1, 0, 1)]
    return sorted({*range(1, 130), *around})


# ---- blocks


def test_blocks_of_every_size_are_aligned_and_apart(pool):
    handles = [pool.allocate(size) for size in sizes()]
    for number, handle in enumerate(handles):
        assert handle.address % 64 == 0
        handle.numpy()[:] = number % 251
    for number, (size, handle) in enumerate(zip(sizes(), handles, strict=True)):
        assert handle.nbytes == len(handle) == size
        assert (handle.numpy() == number % 251).all(), size
    starts = sorted((handle.address, handle.nbytes) for handle in handles)
    assert all(start + size <= after for (start, size), (after, _) in itertools.pairwise(starts))
    assert pool.get_stats().allocated == sum(sizes())
    for handle in handles:
        handle.free()
    assert pool.get_stats().allocated == pool.get_stats().active == 0


@pytest.mark.parametrize("alignment", [1 << n for n in range(22)])
@pytest.mark.parametrize("size", [1, 100, 5000, THRESHOLD, THRESHOLD + 1, 3 << 20])
def test_a_block_begins_where_it_was_asked_to(pool, alignment, size):
    handles = [pool.allocate(size, alignment=alignment) for _ in range(3)]
    assert [handle.address % alignment for handle in handles] == [0, 0, 0]
    assert len({handle.address for handle in handles}) == 3
    for handle in handles:
        handle.numpy()[:] = 1


def test_zeros_where_they_are_asked_for(pool):
    for size in (1, 100, 5000, THRESHOLD + 1, 3 << 20):
        for _ in range(3):  # fresh, and used before
            handle = pool.allocate(size, zero=True)
            assert not handle.numpy().any()
            handle.numpy()[:] = 255
            handle.free()


def test_a_handle_is_a_context_manager_and_an_array(pool):
    with pool.allocate(100) as handle:
        assert memoryview(handle).nbytes == 100
        assert handle.numpy(np.float32).shape == (25,)
        assert handle.numpy(np.int16, (2, 3)).shape == (2, 3)
        assert handle.numpy(shape=5).tolist() == np.frombuffer(handle, np.uint8)[:5].tolist()
        assert handle.numpy(shape=(0, 3)).shape == (0, 3)
        handle.numpy(np.int16)[7] = 5
        assert np.frombuffer(handle, np.int16)[7] == 5
        assert "100 bytes, at 0x" in repr(handle)
    assert handle.is_freed
    assert "freed" in repr(handle)
    assert pool.get_stats().active == 0


def test_what_was_freed_cannot_be_used(pool):
    handle = pool.allocate(10)
    handle.free()
    for use in (handle.free, handle.numpy, lambda: memoryview(handle), lambda: handle.address, handle.__enter__,
                lambda: pool.resize(handle, 5), lambda: pool.deallocate(handle)):  # fmt: skip
        with pytest.raises(bitnet.MemoryError, match="a block of 10 B that was freed"):
            use()
    with handle_in_with(pool):
        pass  # freed within: leaving is no second time


def handle_in_with(pool):
    handle = pool.allocate(10)
    handle.free()

    class Left:
        def __enter__(self):
            return handle

        def __exit__(self, *about):
            return handle.__exit__(*about)

    return Left()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_block_has_one_owner(pool, copied):
    for block in (pool.allocate(10), memory.new_block(10)):
        with pytest.raises(TypeError, match="cannot pickle"):
            copied(block)


def test_a_handle_without_memory_cannot_be_used(pool):
    empty = blocks.MemoryHandle.__new__(blocks.MemoryHandle)
    for use in (empty.free, empty.numpy, empty.__enter__, lambda: memoryview(empty), lambda: empty.address,
                lambda: pool.resize(empty, 5), lambda: pool.deallocate(empty)):  # fmt: skip
        with pytest.raises(bitnet.MemoryError, match="that was freed"):
            use()


@pytest.mark.parametrize("view_of", [memoryview, lambda handle: handle.numpy(), np.asarray])
def test_a_view_keeps_its_block(pool, view_of):
    handle = pool.allocate(1000)
    view = view_of(handle)
    view[:] = view_of(pool.allocate(1000, zero=True))
    handle.free()
    assert pool.get_stats().active == 1
    others = [pool.allocate(1000) for _ in range(100)]
    for one in others:
        one.numpy()[:] = 9
    assert not np.asarray(view).any()
    del view
    assert pool.get_stats().active == 100


def test_a_block_outlives_its_pool():
    pool = HybridMemoryPool()
    handle, large = pool.allocate(10), pool.allocate(3 << 20)
    view = large.numpy()
    del pool, large
    handle.numpy()[:] = 1
    view[:] = 2
    handle.free()
    assert view.sum() == 2 * (3 << 20)


def test_deallocate_takes_only_its_own(pool):
    handle = pool.allocate(10)
    other = HybridMemoryPool()
    for use in (lambda: other.deallocate(handle), lambda: other.resize(handle, 5)):
        with pytest.raises(bitnet.MemoryError, match="belongs to another pool"):
            use()
    pool.deallocate(handle)
    assert handle.is_freed


def test_resizing_keeps_the_content(pool):
    rng = np.random.default_rng(0)
    handle = pool.allocate(1, alignment=4096)
    content = handle.numpy().copy()
    for size in [*rng.integers(1, 5000, 50), *rng.integers(1, 3 << 20, 30), 0, 10]:
        pool.resize(handle, size)
        kept = min(len(content), size)
        assert (handle.numpy()[:kept] == content[:kept]).all()
        stats = pool.get_stats()
        assert handle.nbytes == size == stats.allocated
        assert stats.allocation_count - stats.deallocation_count == stats.active == 1
        assert handle.address % 4096 == 0
        content = rng.integers(0, 256, size, dtype=np.uint8)
        handle.numpy()[:] = content
    view = handle.numpy()
    with pytest.raises(bitnet.MemoryError, match="while a view of it lives"):
        pool.resize(handle, 20)
    del view
    with pytest.raises(bitnet.MemoryError, match="cannot allocate -1 bytes for a resized block"):
        pool.resize(handle, -1)
    with pytest.raises(bitnet.MemoryError, match="cannot allocate 1 EiB for a resized block"):
        pool.resize(handle, 1 << 60)
    assert handle.numpy()[:].tolist() == content.tolist()


def test_a_block_becomes_smaller_where_no_other_can_be_had(pool):
    handle = pool.allocate(100_000)
    handle.numpy()[:] = 7
    address, pool.limit = handle.address, 10
    pool.resize(handle, 200)
    assert (handle.address, handle.nbytes, pool.get_stats().allocated) == (address, 200, 200)
    assert (handle.numpy() == 7).all()
    with pytest.raises(bitnet.MemoryError, match="limit"):
        pool.resize(handle, 201)
    assert (handle.nbytes, pool.get_stats().allocated) == (200, 200)


@pytest.mark.parametrize("meanwhile", ["freed", "a view of it"])
@pytest.mark.parametrize("room", [False, True])
def test_a_block_that_changes_while_it_is_resized(pool, meanwhile, room):
    """By a callback, or by another thread while one runs: what is moved must not be what was given back."""
    handle, cache, views = pool.allocate(600), [pool.allocate(2000)], []
    pool.limit = 2700
    handle.numpy()[:] = 5

    def shrink(pressure):
        if pressure.cause == "failure":
            if room:
                cache.clear()
            if meanwhile == "freed":
                handle.free()
            else:
                views.append(handle.numpy())

    pool.register_pressure_callback(1.0, shrink)
    with pytest.raises(bitnet.MemoryError, match=meanwhile):
        pool.resize(handle, 900)
    assert [one.tolist() for one in views] == [[5] * 600] * (meanwhile != "freed")
    views.clear()
    cache.clear()
    assert pool.get_stats().active == (meanwhile != "freed")


@pytest.mark.parametrize("size", [100, 8000, THRESHOLD + 5])
def test_a_write_behind_the_block_is_found(size, monkeypatch):
    pool = HybridMemoryPool(MemoryPoolConfig(guards=True))
    handle = pool.allocate(size)
    beyond = (np.ctypeslib.ctypes.c_uint8 * 1).from_address(handle.address + size + 3)
    beyond[0] = 1
    with pytest.raises(bitnet.MemoryError, match=f"written to beyond its end, at byte {size + 3}") as caught:
        handle.free()
    assert caught.value.severity == "critical"
    # A block that goes with its object cannot raise; Python tells of it all the same.
    told = []
    monkeypatch.setattr("sys.unraisablehook", lambda args: told.append(str(args.exc_value)))
    handle = pool.allocate(size)
    (np.ctypeslib.ctypes.c_uint8 * 1).from_address(handle.address + size)[0] = 1
    del handle
    assert len(told) == 1
    assert f"at byte {size}" in told[0]
    assert pool.get_stats().active == 0


def test_guards_fill_new_and_freed_memory():
    pool = HybridMemoryPool(MemoryPoolConfig(guards=True))
    assert pool.has_guards
    handle = pool.allocate(200)
    assert (handle.numpy() == 0xCD).all()
    content = (np.ctypeslib.ctypes.c_uint8 * 200).from_address(handle.address)
    handle.free()
    if "LD_PRELOAD" not in os.environ:  # the address sanitizer would stop this read
        assert set(bytes(content)) == {0xDD}


@pytest.mark.parametrize("alignment", [0, 3, -64, 4 << 20, 1 << 70])
def test_an_alignment_that_is_none(pool, alignment):
    with pytest.raises(bitnet.ConfigurationError, match=r"alignment is .*; it must be a power of two from 1 to"):
        pool.allocate(10, alignment=alignment)


def test_a_view_that_does_not_fit(pool):
    handle = pool.allocate(10)
    for shape in ((3, 4), (1 << 62, 4)):
        with pytest.raises(bitnet.ShapeError, match="the limit is 10 bytes"):
            handle.numpy(shape=shape)
    for shape in ((-1, 2), (-1, -2)):
        with pytest.raises(bitnet.ConfigurationError, match=r"shape is \(-1, -?2\); it must be of numbers from 0 on"):
            handle.numpy(shape=shape)
    for dtype in (object, "V0", [("a", object)]):
        with pytest.raises(bitnet.ConfigurationError, match=r"dtype is dtype.*; it must be of numbers, which have a"):
            handle.numpy(dtype)


# ---- large blocks and the system


def test_large_blocks_share_huge_pages():
    pool = HybridMemoryPool()
    handles = [pool.allocate(THRESHOLD + 1) for _ in range(30)]
    spans = [(handle.address // HUGE, (handle.address + THRESHOLD) // HUGE) for handle in handles]
    pages = {page for first, last in spans for page in range(first, last + 1)}
    assert len(pages) <= 18


def test_huge_pages_are_told_of():
    plain, huge = HybridMemoryPool(MemoryPoolConfig(huge_pages=False)), HybridMemoryPool()
    handles = [one.allocate(3 << 20) for one in (plain, huge)]
    assert plain.get_stats().huge_page_bytes == 0
    expected = 0 if machine.describe().huge_pages in ("never", "disabled", "unknown") else huge.get_stats().reserved
    assert huge.get_stats().huge_page_bytes == expected
    assert all(one.get_stats().reserved >= 3 << 20 for one in (plain, huge))
    del handles


def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
def test_trim_gives_memory_back():
    pool = HybridMemoryPool(MemoryPoolConfig(guards=False))
    small = [pool.allocate(3000, zero=True) for _ in range(10_000)]
    large = [pool.allocate(3 << 20) for _ in range(20)]
    for one in large:
        one.numpy()[:] = 1
    kept = [small[0], large[10]]
    kept[0].numpy()[:] = 5
    before = rss()
    del small, large, one
    given = pool.trim()
    assert given > 80 << 20
    if "LD_PRELOAD" not in os.environ:  # the sanitizer's shadow takes memory too
        assert before - rss() > 70 << 20
    assert pool.trim() == 0
    assert pool.get_stats().active == 2
    assert (kept[0].numpy() == 5).all()
    assert (kept[1].numpy() == 1).all()
    again = [pool.allocate(3000, zero=True) for _ in range(10_000)]
    assert not any(one.numpy().any() for one in again)
    del again, kept
    pool.trim()
    assert pool.get_stats().reserved == 0


def test_much_memory_without_blocks_goes_back_by_itself():
    pool = HybridMemoryPool()
    handle = pool.allocate(300 << 20)
    assert pool.get_stats().reserved >= 300 << 20
    del handle
    assert pool.get_stats().reserved <= 64 << 20


def test_reset(pool):
    handles = [pool.allocate(10, tag="a"), pool.allocate(2 << 20, tag="b")]
    with pytest.raises(bitnet.MemoryError, match=r"reset the pool while 2 blocks are live \(b: 2 MiB, a: 10 B\)"):
        pool.reset()
    assert (handles.pop().nbytes, len(handles)) == (2 << 20, 1)
    with pytest.raises(bitnet.MemoryError, match=r"while a block is live \(a: 10 B\)"):
        pool.reset()
    handles.clear()
    pool.reset()
    stats = pool.get_stats()
    assert (stats.allocated, stats.peak, stats.allocation_count, stats.reserved) == (0, 0, 0, 0)
    assert stats.size_distribution == {}
    pool.allocate(10).numpy()[:] = 1


# ---- statistics


def test_statistics_and_their_difference():
    pool = HybridMemoryPool(MemoryPoolConfig(guards=False))
    kept = pool.allocate(100, tag="a")
    before = pool.get_stats()
    handles = [pool.allocate(n, tag=tag) for n, tag in ((100, "a"), (200, "b"), (3 << 20, "b"))]
    pool.allocate(50)
    after = pool.get_stats()
    found = after - before
    assert (found.allocated, found.active) == (300 + (3 << 20), 3)
    assert (found.allocation_count, found.deallocation_count) == (4, 1)
    assert found.by_tag == {"a": bitnet.memory.TagStats(100, 1), "b": bitnet.memory.TagStats(200 + (3 << 20), 2)}
    assert found.size_distribution == {128: 1, 256: 1, 4 << 20: 1}
    assert (found.small_block.bytes, found.small_block.active, found.small_block.allocation_count) == (300, 2, 3)
    assert (found.large_block.bytes, found.large_block.active, found.large_block.deallocation_count) == (3 << 20, 1, 0)
    assert found.peak == after.peak - before.peak == 350 + (3 << 20)
    assert after.fragmentation == 1 - after.allocated / after.reserved
    assert found.last_updated == after.last_updated > before.last_updated
    handles.clear()
    assert (pool.get_stats() - before).allocated == 0
    assert pool.get_stats().by_tag == {"a": bitnet.memory.TagStats(100, 1)}
    assert kept.nbytes == 100
    with pytest.raises(TypeError):
        before - 1


def test_tags_beyond_the_table_are_counted_together(pool):
    handles = [pool.allocate(1, tag=f"tag {n}") for n in range(70)]
    tags = pool.get_stats().by_tag
    assert len(tags) == 63
    assert tags["other"].blocks == 8
    assert sum(tag.blocks for tag in tags.values()) == len(handles)


def test_the_process_has_one_pool():
    assert HybridMemoryPool.instance() is HybridMemoryPool.instance()
    before = HybridMemoryPool.instance().get_stats()
    weight = bitnet.TernaryWeight.from_codes(np.zeros((100, 100), np.int8), 1.0)
    found = HybridMemoryPool.instance().get_stats() - before
    assert found.by_tag == {"weights": bitnet.memory.TagStats(weight.nbytes, 1)}
    weight.matmul(np.ones(100, np.float32))
    del weight
    assert (HybridMemoryPool.instance().get_stats() - before).allocated == 0


# ---- what the core allocates


@pytest.mark.parametrize("nbytes", [0, 1, 63, 64, 65, 4096, 1 << 20, HUGE + 1, 5 << 20])
def test_a_block_of_the_core_is_aligned_and_writable_to_its_end(nbytes):
    block = memory.new_block(nbytes)
    assert block.nbytes == len(block) == nbytes
    assert block.address % 64 == 0
    view = np.frombuffer(block, np.uint8)
    view[:] = 7
    assert view.sum() == 7 * nbytes


def test_a_view_keeps_a_block_of_the_core_alive():
    gc.collect()
    before = memory.statistics()["live_blocks"]
    view = np.frombuffer(memory.new_block(1 << 20), np.uint8)
    view[:] = 9
    assert memory.statistics()["live_blocks"] == before + 1
    assert (view == 9).all()
    del view
    assert memory.statistics()["live_blocks"] == before


def test_a_block_has_no_constructor():
    with pytest.raises(TypeError, match="new_block"):
        blocks.Block()
    with pytest.raises(TypeError, match="allocate"):
        blocks.MemoryHandle()


def test_a_configuration_that_is_none():
    with pytest.raises(bitnet.ConfigurationError, match="config is 5; it must be a MemoryPoolConfig or None"):
        HybridMemoryPool(5)
