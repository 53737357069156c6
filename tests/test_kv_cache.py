"""The cache of keys and values: whose pages are whose, and that going back is as if nothing had been."""

import gc

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet._core import memory
from bitnet._core.program import PAGE_TOKENS
from bitnet.kv_cache import KVCache, Sequence

IDS = np.random.default_rng(11).integers(0, 97, 250).astype(np.int32)
PROGRAM = tiny.program()


def pages_of(length):
    return -(-length // PAGE_TOKENS)


@pytest.fixture
def cache():
    return KVCache(256)


# ---- pages


@pytest.mark.parametrize(("length", "pages"), [(0, 0), (1, 1), (63, 1), (64, 1), (65, 2), (128, 2), (129, 3)])
def test_a_sequence_takes_the_pages_it_needs(cache, length, pages):
    before = memory.statistics()
    sequence = Sequence(cache)
    assert (sequence.length, sequence.table.shape, sequence.table.dtype) == (0, (0,), np.uint64)
    sequence.reserve(length)
    after = memory.statistics()
    assert len(set(sequence.table.tolist())) == len(sequence.table) == pages
    assert after["live_blocks"] - before["live_blocks"] == pages
    assert after["live_bytes"] - before["live_bytes"] == 256 * pages
    assert sequence.length == 0  # what is reserved is not written yet


def test_a_page_that_there_is_no_place_for_in_the_table_is_given_back(cache):
    class Full:
        count, addresses = 0, np.empty(0, np.uint64)

        def append(self, block):
            raise MemoryError

    sequence = Sequence(cache)
    table, sequence.pages = sequence.pages, Full()
    with pytest.raises(MemoryError):
        sequence.reserve(1)
    assert (cache.used, sequence.room, sequence.blocks) == (0, 0, [])
    sequence.pages = table
    sequence.reserve(130)
    assert (cache.used, sequence.room, len(sequence.table)) == (3, 192, 3)


def test_reserving_less_changes_nothing(cache):
    sequence = Sequence(cache)
    sequence.reserve(130)
    table = sequence.table.tolist()
    for length in (130, 1, 0, 192):
        sequence.reserve(length)
        assert sequence.table.tolist() == table


def test_pages_stay_where_they_are(cache):
    sequence = Sequence(cache)
    sequence.reserve(64)
    first = sequence.table
    kept = first.copy()
    sequence.reserve(200)
    assert sequence.table[0] == kept[0]
    assert (first == kept).all()  # a run may still be reading the old table


def test_rewinding_gives_back_the_pages_behind(cache):
    sequence = Sequence(cache)
    sequence.reserve(200)
    sequence.length = 200
    table = sequence.table.tolist()
    for length, pages in ((200, 4), (193, 4), (192, 3), (65, 2), (64, 1), (1, 1), (0, 0)):
        sequence.rewind(length)
        assert sequence.length == length
        assert sequence.table.tolist() == table[:pages]


def test_rewinding_forward_changes_nothing(cache):
    sequence = Sequence(cache)
    sequence.reserve(10)
    sequence.length = 10
    sequence.rewind(1000)
    assert (sequence.length, len(sequence.table)) == (10, 1)


def test_pages_are_used_again(cache):
    first, second = Sequence(cache), Sequence(cache)
    first.reserve(192)
    given_back = set(first.table.tolist())
    first.close()
    before = memory.statistics()["total_blocks"]
    second.reserve(192)
    assert set(second.table.tolist()) == given_back
    assert memory.statistics()["total_blocks"] == before
    second.reserve(256)
    assert memory.statistics()["total_blocks"] == before + 1


def test_a_closed_sequence_has_nothing_and_may_be_closed_again(cache):
    sequence = Sequence(cache)
    sequence.reserve(100)
    sequence.length = 100
    for _ in range(2):
        sequence.close()
        assert (sequence.length, len(sequence.table)) == (0, 0)
    other, third = Sequence(cache), Sequence(cache)
    other.reserve(128)
    third.reserve(128)
    assert not set(other.table.tolist()) & set(third.table.tolist())


def test_the_memory_goes_with_the_cache():
    gc.collect()
    before = memory.statistics()
    cache = KVCache(4096)
    sequences = [Sequence(cache) for _ in range(3)]
    for sequence in sequences:
        sequence.reserve(300)
    sequences[0].close()
    assert memory.statistics()["live_blocks"] == before["live_blocks"] + 15
    del cache, sequences, sequence
    gc.collect()
    after = memory.statistics()
    assert (after["live_blocks"], after["live_bytes"]) == (before["live_blocks"], before["live_bytes"])


COMMAND = st.tuples(st.sampled_from(["grow", "grow", "rewind", "close"]), st.integers(0, 3), st.integers(0, 400))


@settings(max_examples=100)
@given(st.lists(COMMAND, max_size=40))
def test_a_cache_does_what_a_model_of_it_does(commands):
    cache = KVCache(64)
    sequences, lengths = [Sequence(cache) for _ in range(4)], [0] * 4
    tables, most = [[] for _ in range(4)], 0
    before = memory.statistics()["live_blocks"]
    for command, which, size in commands:
        sequence = sequences[which]
        if command == "grow":
            lengths[which] += size
            sequence.reserve(lengths[which])
            sequence.length = lengths[which]
        elif command == "rewind":
            lengths[which] = min(lengths[which], size)
            sequence.rewind(size)
        else:
            lengths[which] = 0
            sequence.close()
        now = [one.table.tolist() for one in sequences]
        assert [one.length for one in sequences] == lengths
        assert [len(table) for table in now] == [pages_of(length) for length in lengths]
        every = [page for table in now for page in table]
        assert len(set(every)) == len(every)  # nobody shares
        for old, new in zip(tables, now, strict=True):  # nobody's pages move
            assert all(a == b for a, b in zip(old, new, strict=False))
        tables, most = now, max(most, len(every))
        assert memory.statistics()["live_blocks"] - before == most  # no more than were needed at once


# ---- going back


@pytest.mark.parametrize("kv_dtype", ["float32", "float16"])
@pytest.mark.parametrize("back_to", [0, 1, 63, 64, 65, 100, 128, 149])
def test_rewinding_is_as_if_it_had_never_run_further(kv_dtype, back_to):
    runner = tiny.Runner(tiny.program(kv_dtype=kv_dtype), 250)
    other = IDS[::-1].copy()
    never = runner.sequence()
    runner.step([(never, other[:back_to])])
    expected = runner.step([(never, IDS[:90])])[0]
    sequence = runner.sequence()
    runner.step([(sequence, other[:150])])
    sequence.rewind(back_to)
    assert sequence.length == back_to
    assert runner.step([(sequence, IDS[:90])])[0].tobytes() == expected.tobytes()


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(1, 100), st.integers(0, 250)), min_size=1, max_size=6))
def test_any_going_back_and_forth_ends_in_the_same_bits(steps):
    runner = tiny.Runner(PROGRAM, 250)
    sequence, text = runner.sequence(), np.empty(0, np.int32)
    for size, back_to in steps:
        size = min(size, 250 - len(text))
        ids = IDS[:size] if size % 2 else IDS[250 - size :]
        text = np.concatenate([text, ids])
        if size:
            logits = runner.step([(sequence, ids)])[0]
            assert logits.tobytes() == runner.alone(text)[-size:].tobytes()
        sequence.rewind(back_to)
        text = text[:back_to]
        assert sequence.length == len(text)


def test_two_sequences_that_take_each_others_pages_stay_themselves():
    runner = tiny.Runner(PROGRAM, 250)
    expected = runner.alone(IDS)
    first, second = runner.sequence(), runner.sequence()
    runner.step([(first, IDS[:140]), (second, IDS[100:170])])
    first.rewind(60)
    runner.step([(second, IDS[:100])])  # on pages that were the first one's
    found = runner.step([(first, IDS[60:])])[0]
    assert found.tobytes() == expected[60:].tobytes()
