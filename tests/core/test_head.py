"""The int8 head: exact sums of split inputs, the same bits on every instruction set, and how near it is to floats."""

import numpy as np
import pytest

from bitnet._core import cpu, head
from bitnet._core.head import Int8Rows
from bitnet.errors import InferenceError, ShapeError, TensorError

SHAPES = [(1, 1), (3, 5), (16, 4), (17, 8), (33, 127), (100, 256), (40, 2561)]
LARGEST = 127 * 256 + 127


def table(rng, rows, cols):
    weights = rng.integers(-127, 128, (rows, cols)).astype(np.int8)
    scales = rng.uniform(0.01, 0.1, rows).astype(np.float32)
    made = Int8Rows(rows, cols)
    made.fill(0, weights, scales)
    return made, weights, scales


def formula(weights, scales, x):
    """The docstring of head.pyx, in NumPy."""
    most = np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(1e-30))
    n = np.rint(x * (np.float32(LARGEST) / most)).astype(np.int64)
    total = (n @ weights.T.astype(np.int64)).astype(np.float64).astype(np.float32)
    return total * (scales * (most / np.float32(LARGEST)))


def test_the_forced_kernel_is_the_one_that_runs(isa):
    assert head.kernel_name() == {"avx512vbmi": "avx512vnni"}.get(isa, isa)


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_a_product_is_the_formula_bit_for_bit(isa, rng, rows, cols, tokens):
    made, weights, scales = table(rng, rows, cols)
    x = (rng.normal(size=(tokens, cols)) * 10.0 ** rng.integers(-8, 8, (tokens, 1))).astype(np.float32)
    for num_threads in (1, 3):
        np.testing.assert_array_equal(made.multiply(x, num_threads), formula(weights, scales, x))


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_sums_do_not_overflow(isa, sign):
    cols = 65536
    made = Int8Rows(2, cols)
    weights = np.full((2, cols), 127, np.int8) * np.array([[1], [-1]], np.int8)
    made.fill(0, weights, np.ones(2, np.float32))
    x = np.full((1, cols), sign * 3.0, np.float32)
    np.testing.assert_array_equal(made.multiply(x), formula(weights, np.ones(2, np.float32), x))


def test_rows_may_come_in_parts_and_be_read_back(rng):
    weights = rng.integers(-127, 128, (50, 21)).astype(np.int8)
    scales = rng.uniform(0.01, 0.1, 50).astype(np.float32)
    made = Int8Rows(50, 21)
    for start in (0, 7, 30):
        made.fill(start, weights[start : start + 23], scales[start : start + 23])
    np.testing.assert_array_equal(made.dequantize(), weights * scales[:, None])
    assert made.nbytes == 64 * 24


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_a_table_is_used_where_it_lies(isa, rng, rows, cols):
    made, weights, scales = table(rng, rows, cols)
    where = np.empty(made.nbytes + 64, np.uint8)
    data = where[-where.ctypes.data % 64 :][: made.nbytes]
    data[:] = made.packed_bytes
    data.flags.writeable = False
    viewed = head.rows_of_bytes(data, rows, cols, scales)
    x = rng.normal(size=(3, cols)).astype(np.float32)
    assert (viewed.multiply(x) == made.multiply(x)).all()
    assert np.shares_memory(viewed.packed_bytes, where)
    assert viewed.nbytes == made.nbytes == Int8Rows.bytes_of(rows, cols)
    np.testing.assert_array_equal(viewed.dequantize(), weights * scales[:, None])
    with pytest.raises(TensorError, match="the int8 table is read-only"):
        viewed.fill(0, weights, scales)


def test_the_input_is_rounded_far_less_than_the_weights_were(rng):
    made, weights, scales = table(rng, 64, 2560)
    x = rng.normal(size=(8, 2560)).astype(np.float32)
    exact = x.astype(np.float64) @ (weights * scales.astype(np.float64)[:, None]).T
    # Half a step of max |x| / 32639 for each number, and float32's rounding of the result.
    bound = np.abs(x).max(-1, keepdims=True) / 65278 * np.abs(weights * scales[:, None]).sum(-1) + 1e-5 * np.abs(exact)
    assert (np.abs(made.multiply(x) - exact) <= bound).all()


def test_zeros_and_tiny_numbers_give_finite_products(isa, rng):
    made, *_ = table(rng, 5, 8)
    assert (made.multiply(np.zeros((1, 8), np.float32)) == 0).all()
    assert np.isfinite(made.multiply(np.full((1, 8), 1e-45, np.float32))).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_input_that_is_not_finite_is_refused(isa, rng, bad):
    made, *_ = table(rng, 5, 8)
    x = np.ones((2, 8), np.float32)
    x[1, 3] = bad
    with pytest.raises(InferenceError, match="not finite"):
        made.multiply(x)


def test_every_isa_gives_the_same_bits(rng):
    made, *_ = table(rng, 37, 130)
    x = rng.normal(size=(3, 130)).astype(np.float32)
    before, found = cpu.isa(), []
    try:
        for name in cpu.possible_isas():
            cpu.select_isa(name)
            found.append(made.multiply(x).tobytes())
    finally:
        cpu.select_isa(before)
    assert len(set(found)) == 1


def test_what_does_not_fit_is_refused(rng):
    made, weights, scales = table(rng, 4, 8)
    with pytest.raises(ShapeError, match=r"an int8 table has shape \(0, 3\)"):
        Int8Rows(0, 3)
    with pytest.raises(ShapeError, match="the number of columns is 65537; the limit is 65536 columns"):
        Int8Rows(1, 65537)
    with pytest.raises(ShapeError, match=r"weights has shape \(4, 8\); it must be \(3, 8\)"):
        made.fill(1, weights, scales)
    with pytest.raises(TensorError, match="weights has dtype int16"):
        made.fill(0, weights.astype(np.int16), scales)
    with pytest.raises(ShapeError, match="the weight has 8 columns, the input 7"):
        made.multiply(np.ones((1, 7), np.float32))


# ---- only the largest: screening.pyx


def like_a_model(rng, rows, cols, tokens):
    """Rows of which some stand out for each token, as words do."""
    weights = np.clip(np.rint(rng.normal(size=(rows, cols)) * 35), -127, 127).astype(np.int8)
    scales = rng.uniform(0.01, 0.02, rows).astype(np.float32)
    x = rng.normal(size=(tokens, cols)).astype(np.float32)
    for token in range(tokens):
        for row in rng.integers(0, rows, 40):
            x[token] += rng.uniform(0.2, 0.4) * weights[row] / 35
    made = Int8Rows(rows, cols)
    made.fill(0, weights, scales)
    return made, scales, x


@pytest.mark.parametrize("tokens", [4, 5, 8, 9, 16, 23])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_the_largest_are_the_same_bits_and_the_rest_is_below(isa, rng, tokens, num_threads):
    made, _, x = like_a_model(rng, 3001, 260, tokens)
    leaders = rng.integers(1, 9, tokens).astype(np.int32)
    whole, screened = made.multiply(x), made.multiply(x, num_threads, leaders)
    left_out = 0
    for token, k in enumerate(leaders):
        least = np.sort(whole[token])[-k]
        those = whole[token] >= least
        np.testing.assert_array_equal(screened[token][those], whole[token][those])
        assert (screened[token][~those] < least).all()
        left_out += np.count_nonzero(screened[token] != whole[token])
    # It was no product with everything; but a kernel that takes both halves at once has nothing to leave out.
    assert left_out > 1500 * tokens if isa != "avx2" else left_out == 0


def test_equal_numbers_all_stay(rng):
    made, _, x = like_a_model(rng, 500, 128, 4)
    best = made.multiply(x).argmax(1)
    codes = made.packed_bytes.view(np.int8).reshape(made.shape[0] // 16 + 1, -1, 16, 4).transpose(0, 2, 1, 3)
    codes = codes.reshape(-1, 128)[:500].copy()
    scales = made.scales.copy()
    for token, row in enumerate(best):  # the same row again, far away
        codes[7 * token], scales[7 * token] = codes[row], scales[row]
    twice = Int8Rows(500, 128)
    twice.fill(0, codes, scales)
    whole, screened = twice.multiply(x), twice.multiply(x, leaders=np.ones(4, np.int32))
    for token in range(4):
        those = np.flatnonzero(whole[token] == whole[token].max())
        assert len(those) >= 2
        np.testing.assert_array_equal(screened[token][those], whole[token][those])
        assert screened[token].argmax() == those[0]


def test_where_nothing_stands_out_all_is_computed_and_the_next_products_do_not_try(rng):
    made = Int8Rows(320, 64)
    made.fill(0, np.full((320, 64), 3, np.int8), np.ones(320, np.float32))
    x, one = rng.normal(size=(4, 64)).astype(np.float32), np.ones(4, np.int32)
    np.testing.assert_array_equal(made.multiply(x, leaders=one), made.multiply(x))
    np.testing.assert_array_equal(made.multiply(x, leaders=one), made.multiply(x))


@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e30])
def test_sizes_at_the_ends_of_float32_are_screened_right(rng, size):
    _, scales, x = like_a_model(rng, 500, 64, 6)
    weights = np.clip(np.rint(rng.normal(size=(500, 64)) * 35), -127, 127).astype(np.int8)
    other = Int8Rows(500, 64)
    other.fill(0, weights, (scales * np.float32(size) * 50).astype(np.float32))
    whole, screened = other.multiply(x), other.multiply(x, leaders=np.full(6, 3, np.int32))
    for token in range(6):
        those = whole[token] >= np.sort(whole[token])[-3]
        np.testing.assert_array_equal(screened[token][those], whole[token][those])


def test_few_tokens_and_those_that_want_all_get_all(rng):
    made, _, x = like_a_model(rng, 3001, 260, 4)
    whole = made.multiply(x)
    np.testing.assert_array_equal(made.multiply(x[:3], leaders=np.ones(3, np.int32)), whole[:3])
    np.testing.assert_array_equal(made.multiply(x, leaders=np.array([1, 1, 0, 1], np.int32)), whole)


def test_leaders_out_of_range_are_refused(rng):
    made, _, x = like_a_model(rng, 40, 8, 4)
    with pytest.raises(ShapeError, match="the number of leaders is 65; the limit is 64 logits"):
        made.multiply(x, leaders=np.full(4, 65, np.int32))
    with pytest.raises(ShapeError, match=r"leaders .*\(4,\)"):
        made.multiply(x, leaders=np.ones(3, np.int32))
