"""Blocks: alignment, ownership, counts, and sizes that cannot be had."""

import gc

import numpy as np
import pytest

import bitnet
from bitnet._core import memory


@pytest.mark.parametrize("nbytes", [0, 1, 63, 64, 65, 4096, 1 << 20, (2 << 20) + 1, 5 << 20])
def test_a_block_is_aligned_and_writable_to_its_end(nbytes):
    block = memory.new_block(nbytes)
    assert block.nbytes == len(block) == nbytes
    assert block.address % 64 == 0
    view = np.frombuffer(block, np.uint8)
    view[:] = 7
    assert view.sum() == 7 * nbytes


@pytest.mark.parametrize("nbytes", [1 << 20, 2 << 20, (6 << 20) + 5])
def test_a_large_block_begins_on_a_huge_page(nbytes):
    assert memory.new_block(nbytes).address % (2 << 20) == 0


def test_blocks_do_not_overlap():
    blocks = [memory.new_block(size) for size in (100, 1 << 20, 100, 3 << 20, 1 << 20)]
    for i, block in enumerate(blocks):
        np.frombuffer(block, np.uint8)[:] = i
    for i, block in enumerate(blocks):
        assert (np.frombuffer(block, np.uint8) == i).all()


@pytest.mark.parametrize("nbytes", [1000, 3 << 20])
def test_counts_follow_blocks(nbytes):
    gc.collect()
    before = memory.statistics()
    block = memory.new_block(nbytes)
    during = memory.statistics()
    assert during["live_blocks"] == before["live_blocks"] + 1
    assert during["live_bytes"] == before["live_bytes"] + nbytes
    assert during["total_blocks"] == before["total_blocks"] + 1
    assert during["peak_bytes"] >= during["live_bytes"]
    del block
    after = memory.statistics()
    assert (after["live_blocks"], after["live_bytes"]) == (before["live_blocks"], before["live_bytes"])
    assert after["peak_bytes"] >= during["live_bytes"]


def test_a_view_keeps_the_block_alive():
    gc.collect()
    before = memory.statistics()["live_blocks"]
    view = np.frombuffer(memory.new_block(1 << 20), np.uint8)
    view[:] = 9
    assert memory.statistics()["live_blocks"] == before + 1
    assert (view == 9).all()
    del view
    assert memory.statistics()["live_blocks"] == before


def test_a_weight_gives_its_memory_back():
    gc.collect()
    before = memory.statistics()
    weight = bitnet.TernaryWeight.from_codes(np.zeros((100, 100), np.int8), 1.0)
    assert memory.statistics()["live_bytes"] == before["live_bytes"] + weight.nbytes
    weight.matmul(np.ones(100, np.float32))
    del weight
    after = memory.statistics()
    assert (after["live_blocks"], after["live_bytes"]) == (before["live_blocks"], before["live_bytes"])


def test_a_size_the_system_refuses_is_a_memory_error_that_names_it():
    with pytest.raises(bitnet.MemoryError, match=r"cannot allocate 1 EiB for the test: the operating system refused"):
        memory.new_block(1 << 60, "the test")
    with pytest.raises(MemoryError):
        memory.new_block((1 << 63) - 1)


def test_a_negative_size_is_a_memory_error():
    with pytest.raises(bitnet.MemoryError, match="cannot allocate -1 bytes for a block"):
        memory.new_block(-1)


def test_a_block_has_no_constructor():
    with pytest.raises(TypeError, match="new_block"):
        memory.Block()
