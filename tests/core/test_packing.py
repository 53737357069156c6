"""Packed weights: the layouts byte by byte, and each way to make one."""

import gc
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet._core.memory import HybridMemoryPool
from bitnet._core.packing import (
    PACKINGS,
    from_packed_bytes,
    pack_codes,
    pack_hugging_face_bytes,
    pack_numbers,
    tile_cols,
)
from bitnet._core.quant import reciprocal_scales, ternarize
from bitnet.memory import TagStats

THREADS = (1, 2, 3, 5)

# Around a panel of 16 rows, tiles of 16 and 20 columns, and the 1280 columns that are packed at once.
SHAPES = [(1, 1), (15, 15), (16, 16), (17, 17), (16, 20), (1, 21), (33, 40), (47, 41), (3, 1279), (2, 1280),
          (18, 1281), (5, 2561)]  # fmt: skip


def random_codes(rng, rows, cols):
    return rng.integers(-1, 2, (rows, cols), np.int8)


# ---- the layouts, as the docstrings of packings/i2.pyx and packings/t5.pyx tell them ----


def byte_of_i2(weights):
    """Four weights, as codes of two bits, the first lowest."""
    return sum((weight + 1) << (2 * k) for k, weight in enumerate(weights))


def byte_of_t5(weights):
    """Five digits of balanced ternary, the first most significant, as a fraction of 256."""
    v = sum(weight * 3 ** (4 - k) for k, weight in enumerate(weights))
    return round(v * 256 / 243) & 0xFF


def slowly_packed(codes, packing):
    """Byte 4 * row + c of a tile has the weights of the row's columns c, 4 + c, 8 + c, ..."""
    byte_of = {"i2": byte_of_i2, "t5": byte_of_t5}[packing]
    cols = {"i2": 16, "t5": 20}[packing]
    panels, tiles = -(-codes.shape[0] // 16), -(-codes.shape[1] // cols)
    padded = np.zeros((16 * panels, cols * tiles), int)
    padded[: codes.shape[0], : codes.shape[1]] = codes
    data = []
    for panel, tile, row, c in itertools.product(range(panels), range(tiles), range(16), range(4)):
        data.append(byte_of(padded[16 * panel + row, cols * tile + c : cols * (tile + 1) : 4].tolist()))
    return np.array(data, np.uint8)


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (16, 16), (16, 20), (17, 17), (15, 41), (33, 40), (2, 1300)])
def test_the_layout_is_the_one_documented(packing, rows, cols, rng):
    codes = random_codes(rng, rows, cols)
    packed = pack_codes(codes, 1.0, packing)
    np.testing.assert_array_equal(packed.packed_bytes, slowly_packed(codes, packing))


@pytest.mark.parametrize(
    ("packing_name", "codes", "golden", "padding"),
    [
        ("i2", [[1]], "56", "55"),
        ("i2", [[-1]], "54", "55"),
        ("i2", [[1, -1, 0, 1, -1, 1]], "52 58 55 56", "55"),
        ("i2", [[1] * 16, [-1] * 16, [0] * 16], "aaaaaaaa 00000000 55555555", "55"),
        ("t5", [[1]], "55", "00"),
        ("t5", [[-1]], "ab", "00"),
        ("t5", [[1, -1, 0, 1, -1, 1]], "39 c7 00 55", "00"),
        ("t5", [[1] * 20, [-1] * 20, [0] * 20], "7f7f7f7f 81818181 00000000", "00"),
    ],
)
def test_the_golden_bytes_of_small_weights_and_their_padding(packing_name, codes, golden, padding):
    packed = pack_codes(np.array(codes, np.int8), 1.0, packing_name)
    start = bytes.fromhex(golden)
    assert packed.packed_bytes.tobytes() == start + bytes.fromhex(padding) * (64 - len(start))


def test_rows_and_columns_are_padded_with_the_weight_zero(packing, rng):
    codes = random_codes(rng, 17, 21)
    cols = 2 * tile_cols(packing)
    padded = np.zeros((32, cols), np.int8)
    padded[:17, :21] = codes
    whole = pack_codes(padded, 1.0, packing)
    np.testing.assert_array_equal(pack_codes(codes, 1.0, packing).packed_bytes, whole.packed_bytes)


def test_a_tile_has_64_bytes_for_16_rows():
    assert {name: tile_cols(name) for name in PACKINGS} == {"i2": 16, "t5": 20}
    for name, nbytes in (("i2", 3 * 7 * 64), ("t5", 3 * 6 * 64)):
        packed = pack_codes(np.zeros((33, 101), np.int8), 1.0, name)
        assert (packed.packing, packed.rows, packed.cols, packed.nbytes) == (name, 33, 101, nbytes)


# ---- codes in, codes out ----


@given(st.integers(1, 70), st.integers(1, 1400), st.sampled_from(THREADS), st.integers(0, 2**32 - 1))
def test_unpacking_gives_the_codes_that_were_packed(packing, rows, cols, threads, seed):
    codes = random_codes(np.random.default_rng(seed), rows, cols)
    unpacked = pack_codes(codes, 1.0, packing, num_threads=threads).unpack(num_threads=threads)
    assert unpacked.dtype == np.int8
    np.testing.assert_array_equal(unpacked, codes)


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
@pytest.mark.parametrize("code", [-1, 0, 1])
def test_equal_codes_survive_in_awkward_shapes(packing, rows, cols, code):
    codes = np.full((rows, cols), code, np.int8)
    np.testing.assert_array_equal(pack_codes(codes, 1.0, packing).unpack(), codes)


def test_packed_bytes_do_not_depend_on_the_number_of_threads(packing, rng):
    codes = random_codes(rng, 700, 1300)
    alone = pack_codes(codes, 1.0, packing, num_threads=1)
    for threads in THREADS[1:]:
        several = pack_codes(codes, 1.0, packing, num_threads=threads)
        np.testing.assert_array_equal(several.packed_bytes, alone.packed_bytes)
        np.testing.assert_array_equal(several.unpack(num_threads=threads), codes)


def test_packing_twice_gives_the_same_bytes_padding_included(packing, rng):
    # The padding must not be what lay in memory before.
    codes = random_codes(rng, 17, 21)
    first = pack_codes(codes, 1.0, packing).packed_bytes.copy()
    for _ in range(5):
        pack_codes(random_codes(rng, 200, 200), 1.0, packing)
        np.testing.assert_array_equal(pack_codes(codes, 1.0, packing).packed_bytes, first)


# ---- Hugging Face bytes ----


def hugging_face_bytes(codes):
    """Bits 2k and 2k + 1 of a byte in row r are the code of row k * quarter + r."""
    quarter = len(codes) // 4
    fields = (codes.reshape(4, quarter, -1) + 1).astype(np.uint8)
    return np.ascontiguousarray(fields[0] | fields[1] << 2 | fields[2] << 4 | fields[3] << 6)


@pytest.mark.parametrize("quarter", [1, 3, 4, 15, 16, 17, 40, 64])
@pytest.mark.parametrize("cols", [1, 7, 8, 21, 1281, 2570])
def test_hugging_face_bytes_become_the_weight_they_stand_for(packing, quarter, cols, rng):
    codes = random_codes(rng, 4 * quarter, cols)
    data = hugging_face_bytes(codes)
    data.flags.writeable = False
    for threads in (1, 3):
        packed = pack_hugging_face_bytes(data, 0.5, packing, num_threads=threads)
        np.testing.assert_array_equal(packed.packed_bytes, pack_codes(codes, 0.5, packing).packed_bytes)
    assert (packed.rows, packed.cols, packed.scale) == (4 * quarter, cols, 0.5)


def test_hugging_face_bytes_may_have_a_scale_per_row(packing, rng):
    codes = random_codes(rng, 12, 5)
    scale = rng.standard_normal(12).astype(np.float32)
    np.testing.assert_array_equal(pack_hugging_face_bytes(hugging_face_bytes(codes), scale, packing).scale, scale)


# ---- numbers ----


@pytest.mark.parametrize(("per_row", "group_size"), [(False, None), (True, None), (False, 64), (False, 128)])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (17, 65), (33, 129), (20, 1281), (3, 2700)])
def test_packing_numbers_is_ternarizing_and_packing_codes(packing, isa, per_row, group_size, rows, cols, rng):
    if group_size is not None:
        packing = "i2"
    w = rng.standard_normal((rows, cols)).astype(np.float32)
    s = reciprocal_scales(w, per_row, group_size)
    codes = ternarize(w, s, group_size)
    expected = pack_codes(codes, np.float32(1) / s, packing, group_size)
    for threads in THREADS:
        packed = pack_numbers(w, s, packing, group_size, num_threads=threads)
        np.testing.assert_array_equal(packed.packed_bytes, expected.packed_bytes)
        np.testing.assert_array_equal(packed.scale, expected.scale)
        assert packed.group_size == group_size
    assert len(np.unique(codes)) == min(3, codes.size), "a weight without all three codes would show little"


# ---- packed bytes ----


@given(st.integers(1, 70), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_packed_bytes_come_back_as_the_same_weight(packing, rows, cols, seed):
    rng = np.random.default_rng(seed)
    codes, scale = random_codes(rng, rows, cols), rng.standard_normal(rows).astype(np.float32)
    packed = pack_codes(codes, scale, packing)
    again = from_packed_bytes(packed.packed_bytes, rows, cols, scale, packing)
    np.testing.assert_array_equal(again.packed_bytes, packed.packed_bytes)
    np.testing.assert_array_equal(again.unpack(), codes)
    np.testing.assert_array_equal(again.scale, packed.scale)
    assert (again.rows, again.cols, again.packing) == (rows, cols, packing)


def test_packed_bytes_of_groups_come_back(rng):
    codes, scale = random_codes(rng, 20, 130), rng.standard_normal((20, 3)).astype(np.float32)
    again = from_packed_bytes(pack_codes(codes, scale, "i2", 64).packed_bytes, 20, 130, scale, "i2", 64)
    np.testing.assert_array_equal(again.unpack(), codes)
    np.testing.assert_array_equal(again.scale, scale)
    assert again.group_size == 64


def test_packed_bytes_are_copied(packing):
    data = pack_codes(np.ones((3, 3), np.int8), 1.0, packing).packed_bytes.copy()
    weight = from_packed_bytes(data, 3, 3, 1.0, packing)
    data[:] = 0x55
    np.testing.assert_array_equal(weight.unpack(), np.ones((3, 3), np.int8))


def test_the_view_of_packed_bytes_is_read_only_and_keeps_them_alive(packing, rng):
    codes = random_codes(rng, 40, 40)
    weight = pack_codes(codes, 1.0, packing)
    view = weight.packed_bytes
    assert (view.dtype, view.shape) == (np.uint8, (weight.nbytes,))
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    before = view.copy()
    del weight
    gc.collect()
    others = [pack_codes(random_codes(rng, 40, 40), 1.0, packing) for _ in range(20)]
    np.testing.assert_array_equal(view, before)
    assert len(others) == 20


# ---- memory ----


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_packed_bytes_begin_on_a_cache_line(packing, rows, cols):
    packed = pack_codes(np.zeros((rows, cols), np.int8), 1.0, packing)
    assert packed.packed_bytes.ctypes.data % 64 == 0


@pytest.mark.parametrize("packing_name", PACKINGS)
def test_a_weight_lives_in_the_pool_under_its_tag(packing_name):
    before = HybridMemoryPool.instance().get_stats()
    packed = pack_codes(np.zeros((1024, 8192), np.int8), 1.0, packing_name)
    found = HybridMemoryPool.instance().get_stats() - before
    assert found.by_tag == {"weights": TagStats(packed.nbytes, 1)}
    assert found.large_block.active == 1
    assert packed.packed_bytes.ctypes.data % 64 == 0


# ---- scales ----


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (2, np.float32(2)),
        (0.1, np.float32(0.1)),
        (-1.5, np.float32(-1.5)),
        ([3.0], np.float32(3)),
        (np.float64(0.1), np.float32(0.1)),
        (np.float16(0.5), np.float32(0.5)),
        (np.array(0.3), np.float32(0.3)),
        ([1, 2, 3], np.array([1, 2, 3], np.float32)),
        ((0.1, 0.2, 0.3), np.array([0.1, 0.2, 0.3], np.float32)),
        (np.array([0.1, 0.2, 0.3]), np.array([0.1, 0.2, 0.3], np.float32)),
        (np.array([0.1, 0.2, 0.3], ">f4"), np.array([0.1, 0.2, 0.3], np.float32)),
        (np.arange(6, dtype=np.float32)[::2], np.array([0, 2, 4], np.float32)),
        # A bfloat16 widened to float32, as checkpoints have them.
        (np.array([0x3F81, 0xC049, 0], np.uint32) << 16, None),
    ],
)
def test_a_scale_may_be_any_number_or_array_of_numbers(packing, scale, expected):
    if expected is None:
        scale = scale.astype(np.uint32).view(np.float32)
        expected = scale.copy()
    packed = pack_codes(np.ones((3, 2), np.int8), scale, packing)
    assert packed.scale.dtype == np.float32
    assert packed.scale.shape == expected.shape
    np.testing.assert_array_equal(packed.scale, expected)


def test_a_scale_is_copied_and_read_only(packing):
    scale = np.array([1, 2, 3], np.float32)
    packed = pack_codes(np.ones((3, 2), np.int8), scale, packing)
    scale[:] = 9
    assert packed.scale.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="read-only"):
        packed.scale[0] = 9
    one = pack_codes(np.ones((3, 2), np.int8), np.ones(1), packing)
    with pytest.raises(ValueError, match="read-only"):
        one.scale[()] = 9
