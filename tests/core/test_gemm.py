"""Products of many tokens: the integers and floats of the other kernels, bit for bit, where blocks and chunks end."""

import numpy as np
import pytest

from bitnet._core import cpu, gemm, matmul, packing

# Rows around a block of 64, columns around a step of 20 and a chunk of 320, and those of a real model.
SHAPES = [(63, 100), (64, 20), (64, 320), (65, 321), (130, 300), (257, 1000), (100, 819), (2560, 640)]
TOKENS = [15, 16, 17, 24, 33, 35, 64, 257, 513]


@pytest.fixture(params=packing.PACKINGS)
def kind(request):
    return request.param


def expected(codes, x):
    # Sums are below 2^53, so float64 has them exactly, and quickly.
    return (x.astype(np.float64) @ codes.T.astype(np.float64)).astype(np.int32)


def test_the_kernel_is_there_where_the_cpu_has_the_instructions(isa):
    assert gemm.kernel_name() == ("avx512vnni" if isa.startswith("avx512") else None)


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_integers_are_exact(kind, rng, rows, cols, num_threads):
    codes = rng.integers(-1, 2, (rows, cols)).astype(np.int8)
    weight = packing.pack_codes(codes, 1.0, kind)
    for tokens in TOKENS:
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
    weight, x = packing.pack_codes(codes, scale, kind), rng.normal(size=(70, 820)).astype(np.float32)
    few = np.concatenate([matmul.matmul(weight, x[i : i + 5]) for i in range(0, 70, 5)])
    for num_threads in (1, 2, 4):
        np.testing.assert_array_equal(matmul.matmul(weight, x, num_threads=num_threads), few)


def test_an_output_in_a_wider_array_leaves_its_neighbours_alone(kind, rng):
    codes, x = rng.integers(-1, 2, (65, 44)).astype(np.int8), rng.integers(-128, 128, (34, 44)).astype(np.int8)
    out = np.full((36, 65), 77, np.int32)
    matmul.matmul_int(packing.pack_codes(codes, 1.0, kind), x, out[1:35])
    np.testing.assert_array_equal(out[1:35], expected(codes, x))
    assert (out[[0, 35]] == 77).all()


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
