"""Products of many tokens by look-up: the integers and floats of the other kernels, bit for bit, where panels, tables,
parts and units end."""

import numpy as np
import pytest

from bitnet._core import cpu, lut, matmul, packing

# Rows around a panel and around the 160 panels of a unit; columns around a tile (16 or 20), two of them, and a part,
# after which sums are widened (224 or 240).
SHAPES = [(1, 1), (15, 20), (16, 16), (17, 33), (31, 224), (32, 241), (48, 448), (100, 479), (257, 1000), (2561, 40),
          (5136, 36)]  # fmt: skip
# Around a block of 16 and a unit of 8 blocks; from 9 (t5) or 13 (i2) on the last ones are looked up, too.
TOKENS = [8, 9, 12, 13, 15, 16, 17, 24, 25, 28, 29, 32, 128, 129, 140, 300]

pytestmark = pytest.mark.skipif("avx2" not in cpu.possible_isas(), reason="this CPU has no kernel that looks up")


@pytest.fixture(autouse=True)
def avx2():
    before = cpu.isa()
    cpu.select_isa("avx2")
    yield
    cpu.select_isa(before)


@pytest.fixture(params=packing.PACKINGS)
def kind(request):
    return request.param


def expected(codes, x):
    # Sums are below 2^53, so float64 has them exactly, and quickly.
    return (x.astype(np.float64) @ codes.T.astype(np.float64)).astype(np.int32)


def test_the_kernel_is_there():
    assert lut.kernel_name() == "avx2"
    cpu.select_isa("portable")
    assert lut.kernel_name() is None


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_integers_are_exact(kind, rng, rows, cols, num_threads):
    codes = rng.integers(-1, 2, (rows, cols)).astype(np.int8)
    weight = packing.pack_codes(codes, 1.0, kind)
    for tokens in TOKENS if rows < 1000 else (13, 33):
        x = rng.integers(-128, 128, (tokens, cols)).astype(np.int8)
        np.testing.assert_array_equal(matmul.matmul_int(weight, x, num_threads=num_threads), expected(codes, x))


@pytest.mark.parametrize("code", [-1, 0, 1])
@pytest.mark.parametrize("value", [-128, 127])
def test_the_largest_sums_do_not_overflow(kind, code, value):
    codes, x = np.full((64, 6912), code, np.int8), np.full((36, 6912), value, np.int8)
    assert (matmul.matmul_int(packing.pack_codes(codes, 1.0, kind), x) == 6912 * code * value).all()


@pytest.mark.parametrize("per_row", [False, True])
def test_floats_are_those_of_few_tokens(kind, rng, per_row):
    codes = rng.integers(-1, 2, (200, 820)).astype(np.int8)
    scale = rng.uniform(0.1, 2, 200).astype(np.float32) if per_row else np.float32(0.37)
    weight, x = packing.pack_codes(codes, scale, kind), rng.normal(size=(92, 820)).astype(np.float32)
    few = np.concatenate([matmul.matmul(weight, x[i : i + 5]) for i in range(0, 92, 5)])
    for num_threads in (1, 2, 4):
        np.testing.assert_array_equal(matmul.matmul(weight, x, num_threads=num_threads), few)


def test_an_output_in_a_wider_array_leaves_its_neighbours_alone(kind, rng):
    codes, x = rng.integers(-1, 2, (65, 44)).astype(np.int8), rng.integers(-128, 128, (45, 44)).astype(np.int8)
    out = np.full((47, 65), 77, np.int32)
    matmul.matmul_int(packing.pack_codes(codes, 1.0, kind), x, out[1:46])
    np.testing.assert_array_equal(out[1:46], expected(codes, x))
    assert (out[[0, 46]] == 77).all()


def test_bytes_that_are_no_codes_are_read_within_the_tables(kind):
    """A mapped file may have any bytes: the numbers are then of no use, but nothing else is touched."""
    cols = 2 * packing.tile_cols(kind)
    room = np.full(2 * 64 + 64, 0xFF, np.uint8)
    stored = room[-room.ctypes.data % 64 :][:128]
    wrong = packing.view_packed_bytes(stored, 16, cols, 1.0, kind)
    assert np.abs(matmul.matmul_int(wrong, np.ones((16, cols), np.int8))).max() <= 4 * cols
