"""Products of many tokens: the integers and floats of the other kernels, bit for bit, where blocks and parts end, on
each instruction set that has a kernel for them."""

import numpy as np
import pytest

from bitnet._core import cpu, lut, matmul, packing

# Rows around a panel, a group of 16 panels, whose sums take turns with tokens, and the 160 panels of a unit; columns
# around a tile (16 or 20), a pass (32 to 48), ten tiles of t5 (200) and a part (224 or 240); and a real model's.
SHAPES = [(1, 1), (15, 20), (16, 16), (17, 33), (31, 224), (32, 241), (48, 448), (100, 479), (63, 100), (64, 48),
          (64, 200), (65, 221), (130, 300), (256, 500), (257, 1000), (272, 250), (100, 819), (512, 16), (2560, 640),
          (2561, 40), (5136, 36)]  # fmt: skip
# Around eights, squares of 16, blocks of two, of which the last one is looked up from 24 on, and units of 8 blocks.
TOKENS = [8, 9, 12, 13, 15, 16, 17, 24, 25, 31, 32, 33, 47, 48, 55, 64, 128, 129, 140, 257, 300, 513]


@pytest.fixture(params=[name for name in ("avx512vbmi", "avx2") if name in cpu.possible_isas()])
def many(request):
    """Each instruction set with a kernel of its own for many tokens."""
    before = cpu.isa()
    cpu.select_isa(request.param)
    yield request.param
    cpu.select_isa(before)


@pytest.fixture(params=packing.PACKINGS)
def kind(request):
    return request.param


def expected(codes, x):
    # Sums are below 2^53, so float64 has them exactly, and quickly.
    return (x.astype(np.float64) @ codes.T.astype(np.float64)).astype(np.int32)


def test_the_kernel_is_there_where_the_cpu_has_the_instructions(isa):
    names = ["avx512vnni", "avx2"] if isa.startswith("avx512") else ["avx2"] if isa.startswith("avx") else []
    assert lut.kernel_names() == names


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_integers_are_exact(many, kind, rng, rows, cols, num_threads):
    codes = rng.integers(-1, 2, (rows, cols)).astype(np.int8)
    weight = packing.pack_codes(codes, 1.0, kind)
    for tokens in TOKENS if rows < 1000 else (13, 33, 513):
        x = rng.integers(-128, 128, (tokens, cols)).astype(np.int8)
        np.testing.assert_array_equal(matmul.matmul_int(weight, x, num_threads=num_threads), expected(codes, x))


@pytest.mark.parametrize("code", [-1, 0, 1])
@pytest.mark.parametrize("value", [-128, 127])
def test_the_largest_sums_do_not_overflow(many, kind, code, value):
    codes, x = np.full((64, 6912), code, np.int8), np.full((36, 6912), value, np.int8)
    assert (matmul.matmul_int(packing.pack_codes(codes, 1.0, kind), x) == 6912 * code * value).all()


@pytest.mark.parametrize("largest", [0, 1, 8, 40, 128])
def test_sums_are_widened_in_time(many, kind, rng, largest):
    """Short sums go on over as many columns as the magnitudes of the inputs allow, token by token."""
    codes = rng.choice(np.array([-1, 1], np.int8), (48, 4000))
    # Row 0's sums are the largest that there can be.
    x = np.clip(codes[0] * rng.integers(0, largest + 1, (70, 1)), -128, 127).astype(np.int8)
    np.testing.assert_array_equal(matmul.matmul_int(packing.pack_codes(codes, 1.0, kind), x), expected(codes, x))


@pytest.mark.parametrize("per_row", [False, True])
def test_floats_are_those_of_few_tokens(many, kind, rng, per_row):
    codes = rng.integers(-1, 2, (200, 820)).astype(np.int8)
    scale = rng.uniform(0.1, 2, 200).astype(np.float32) if per_row else np.float32(0.37)
    weight, x = packing.pack_codes(codes, scale, kind), rng.normal(size=(92, 820)).astype(np.float32)
    few = np.concatenate([matmul.matmul(weight, x[i : i + 5]) for i in range(0, 92, 5)])
    for num_threads in (1, 2, 4):
        np.testing.assert_array_equal(matmul.matmul(weight, x, num_threads=num_threads), few)


def test_an_output_in_a_wider_array_leaves_its_neighbours_alone(many, kind, rng):
    codes, x = rng.integers(-1, 2, (65, 44)).astype(np.int8), rng.integers(-128, 128, (45, 44)).astype(np.int8)
    out = np.full((47, 65), 77, np.int32)
    matmul.matmul_int(packing.pack_codes(codes, 1.0, kind), x, out[1:46])
    np.testing.assert_array_equal(out[1:46], expected(codes, x))
    assert (out[[0, 46]] == 77).all()


def test_every_isa_gives_the_same_bits(kind, rng):
    codes, x = rng.integers(-1, 2, (130, 500)).astype(np.int8), rng.normal(size=(40, 500)).astype(np.float32)
    weight, before, found = packing.pack_codes(codes, 0.5, kind), cpu.isa(), set()
    try:
        for name in cpu.possible_isas():
            cpu.select_isa(name)
            found.add(matmul.matmul(weight, x).tobytes())
    finally:
        cpu.select_isa(before)
    assert len(found) == 1


def test_bytes_that_are_no_codes_are_read_within_the_tables(many, kind):
    """A mapped file may have any bytes: the numbers are then of no use, but nothing else is touched."""
    cols = 2 * packing.tile_cols(kind)
    room = np.full(2 * 64 + 64, 0xFF, np.uint8)
    stored = room[-room.ctypes.data % 64 :][:128]
    wrong = packing.view_packed_bytes(stored, 16, cols, 1.0, kind)
    assert np.abs(matmul.matmul_int(wrong, np.ones((16, cols), np.int8))).max() <= 4 * cols
