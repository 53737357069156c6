"""Products against plain NumPy, bit for bit: packings x instruction sets x threads x splits of the batch."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from bitnet._core.matmul import matmul, matmul_int, panel_units
from bitnet._core.packing import PACKINGS, from_packed_bytes, pack_codes, pack_hugging_face_bytes
from bitnet.errors import ShapeError

THREADS = (1, 2, 3, 5)
MAX_COLS = 1 << 22

# 1 row or column; around a panel of 16 rows; around a group of 4, a tile of 16 and of 20 columns, and the 256 and 240
# columns after which AVX2 widens its sums; the width of the 2B model's down projection.
SHAPES = [
    (1, 1), (1, 2), (1, 3), (1, 700), (200, 1), (33, 5),
    *((rows, 40) for rows in (15, 16, 17)),
    *((16, cols) for cols in range(15, 22)),
    *((17, cols) for cols in (239, 240, 241, 255, 256, 257)),
    (18, 6912),
]  # fmt: skip

SCALES = [("i2", None), ("t5", None), ("i2", 64), ("i2", 128)]


def random_codes(rng, rows, cols):
    return rng.integers(-1, 2, (rows, cols), np.int8)


def random_scale(rng, kind, rows, cols, group_size=None):
    """Of both signs: a checkpoint may have negative ones."""
    shape = {"one": (), "rows": (rows,), "groups": (rows, -(-cols // (group_size or cols)))}[kind]
    return np.asarray(rng.uniform(-2, 2, shape), np.float32)


def assert_same_bits(got, expected):
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert got.tobytes() == expected.tobytes(), f"{np.count_nonzero(got != expected)} of {got.size} numbers differ"


@st.composite
def products(draw, max_tokens=20):
    """A shape, a number of tokens, a number of threads, where to cut the batch, and a seed."""
    tokens = draw(st.integers(0, max_tokens))
    cuts = sorted(draw(st.lists(st.integers(0, tokens), max_size=3)))
    return (
        draw(st.integers(1, 200)), draw(st.integers(1, 700)), tokens, draw(st.sampled_from(THREADS)),
        [0, *cuts, tokens], draw(st.integers(0, 2**32 - 1)),
    )  # fmt: skip


def in_parts(function, weight, x, cuts, threads):
    parts = [function(weight, x[a:b], num_threads=threads) for a, b in itertools.pairwise(cuts)]
    return np.concatenate(parts)


# ---- integers ----


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_integers_are_exact_for_awkward_shapes_and_any_number_of_tokens(packing, isa, rows, cols, rng):
    codes = random_codes(rng, rows, cols)
    weight = pack_codes(codes, 1.0, packing)
    for tokens in (*range(1, 10), 17):
        x = rng.integers(-128, 128, (tokens, cols), np.int8)
        for threads in THREADS:
            assert_same_bits(matmul_int(weight, x, num_threads=threads), reference.matmul_int(codes, x))


@given(products())
def test_integers_do_not_depend_on_threads_or_on_the_split_of_the_batch(packing, isa, product):
    rows, cols, tokens, threads, cuts, seed = product
    rng = np.random.default_rng(seed)
    codes = random_codes(rng, rows, cols)
    weight = pack_codes(codes, 1.0, packing)
    x = rng.integers(-128, 128, (tokens, cols), np.int8)
    expected = reference.matmul_int(codes, x)
    assert_same_bits(matmul_int(weight, x, num_threads=threads), expected)
    assert_same_bits(in_parts(matmul_int, weight, x, cuts, threads), expected)
    for token, y in zip(x, expected, strict=True):
        assert_same_bits(matmul_int(weight, token, num_threads=threads), y)


@pytest.mark.parametrize(("rows", "cols", "tokens"), [(33, 6912, 70), (5, 3, 3000), (700, 130, 12)])
def test_integers_are_exact_where_the_work_is_cut_into_many_units(packing, isa, rows, cols, tokens, rng):
    codes = random_codes(rng, rows, cols)
    weight = pack_codes(codes, 1.0, packing)
    x = rng.integers(-128, 128, (tokens, cols), np.int8)
    expected = reference.matmul_int(codes, x)
    for threads in THREADS:
        assert_same_bits(matmul_int(weight, x, num_threads=threads), expected)


@pytest.mark.parametrize("code", [-1, 0, 1])
@pytest.mark.parametrize("value", [-128, -127, 127])
def test_extreme_integers_do_not_overflow(packing, isa, code, value):
    # 2 * 64 groups and a rest: an AVX2 lane of int16 is filled to its bound, -32768, and widened in time.
    codes = np.full((17, 1034), code, np.int8)
    weight = pack_codes(codes, 1.0, packing)
    for tokens in (1, 4, 9):
        y = matmul_int(weight, np.full((tokens, 1034), value, np.int8))
        np.testing.assert_array_equal(y, np.full((tokens, 17), code * value * 1034, np.int32))


def test_extreme_inputs_beside_codes_of_either_sign_do_not_overflow(packing, isa, rng):
    codes = random_codes(rng, 32, 1034)
    weight = pack_codes(codes, 1.0, packing)
    x = np.where(codes < 0, -128, 127).astype(np.int8)
    x = np.concatenate([x, -1 - x, rng.choice(np.array([-128, 127], np.int8), x.shape)])
    assert_same_bits(matmul_int(weight, x), reference.matmul_int(codes, x))


def test_a_very_wide_weight_is_exact(packing, isa):
    weight = pack_codes(np.ones((1, 300_000), np.int8), 1.0, packing)
    assert matmul_int(weight, np.full(300_000, -128, np.int8)).tolist() == [-38_400_000]
    assert matmul_int(weight, np.full(300_000, 127, np.int8)).tolist() == [38_100_000]


@pytest.mark.parametrize("packing_name", PACKINGS)
def test_the_widest_weight_is_exact_at_the_bound_of_int32(packing_name, isa):
    # Three tokens: then a kernel of AVX-512 sums 4 * code * x of half of the columns in one lane, -2^31.
    weight = pack_codes(np.ones((1, MAX_COLS), np.int8), 1.0, packing_name)
    x = np.empty((3, MAX_COLS), np.int8)
    x[0], x[1], x[2] = -128, 127, -127
    expected = [-128 * MAX_COLS, 127 * MAX_COLS, -127 * MAX_COLS]
    # Kernels take one or two tokens another way than more.
    assert [matmul_int(weight, x[:n]).ravel().tolist() for n in (1, 2, 3)] == [expected[:n] for n in (1, 2, 3)]
    assert matmul_int(weight, x[1]).tolist() == expected[1:2]


def test_a_weight_with_more_columns_than_int32_can_sum_is_refused(packing):
    sentence = r"^the number of columns is 4194305; the limit is 4194304 columns$"
    wide = np.zeros((1, MAX_COLS + 1), np.int8)
    with pytest.raises(ShapeError, match=sentence):
        pack_codes(wide, 1.0, packing)
    with pytest.raises(ShapeError, match=sentence):
        pack_hugging_face_bytes(wide.view(np.uint8), 1.0, packing)
    with pytest.raises(ShapeError, match=sentence):
        from_packed_bytes(np.zeros(64, np.uint8), 1, MAX_COLS + 1, 1.0, packing)


def test_integers_do_not_see_the_scale(rng):
    codes, x = random_codes(rng, 20, 130), rng.integers(-128, 128, (3, 130), np.int8)
    for scale, group_size in ((0.0, None), (1e30, None), (np.full(20, -3.0), None), (np.full((20, 2), 7.0), 128)):
        weight = pack_codes(codes, scale, "i2", group_size)
        assert_same_bits(matmul_int(weight, x), reference.matmul_int(codes, x))


# ---- floats ----


def check_floats(codes, scale, group_size, packing, x, cuts, threads):
    weight = pack_codes(codes, scale, packing, group_size)
    expected = reference.matmul(codes, weight.scale, x, group_size)
    assert_same_bits(matmul(weight, x, num_threads=threads), expected)
    assert_same_bits(in_parts(matmul, weight, x, cuts, threads), expected)
    for token, y in zip(x, expected, strict=True):
        assert_same_bits(matmul(weight, token, num_threads=threads), y)


@pytest.mark.parametrize("kind", ["one", "rows"])
@given(product=products(max_tokens=11), exponent=st.integers(-6, 6))
def test_floats_have_the_bits_of_the_reference_whatever_threads_and_split(packing, isa, kind, product, exponent):
    rows, cols, tokens, threads, cuts, seed = product
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((tokens, cols)) * 10.0**exponent).astype(np.float32)
    check_floats(random_codes(rng, rows, cols), random_scale(rng, kind, rows, cols), None, packing, x, cuts, threads)


@pytest.mark.parametrize("group_size", [64, 128])
@given(product=products(max_tokens=11))
def test_group_scales_have_the_bits_of_the_reference_whatever_threads_and_split(isa, group_size, product):
    rows, cols, tokens, threads, cuts, seed = product
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, cols)).astype(np.float32)
    scale = random_scale(rng, "groups", rows, cols, group_size)
    check_floats(random_codes(rng, rows, cols), scale, group_size, "i2", x, cuts, threads)


@pytest.mark.parametrize("cols", [1, 63, 64, 65, 127, 128, 129, 192])
@pytest.mark.parametrize("group_size", [64, 128])
def test_a_short_last_group_has_its_own_scale(isa, group_size, cols, rng):
    codes, x = random_codes(rng, 17, cols), rng.standard_normal((9, cols)).astype(np.float32)
    scale = random_scale(rng, "groups", 17, cols, group_size)
    weight = pack_codes(codes, scale, "i2", group_size)
    assert_same_bits(matmul(weight, x), reference.matmul(codes, scale, x, group_size))
    q = rng.integers(-128, 128, (9, cols), np.int8)
    assert_same_bits(matmul_int(weight, q), reference.matmul_int(codes, q))


@pytest.mark.parametrize(("packing_name", "group_size"), SCALES)
def test_floats_have_the_bits_of_the_reference_where_the_work_is_cut_into_many_units(
    packing_name, group_size, isa, rng
):
    codes = random_codes(rng, 34, 6912)
    x = rng.standard_normal((70, 6912)).astype(np.float32)
    weight = pack_codes(codes, random_scale(rng, "groups" if group_size else "rows", 34, 6912, group_size),
                        packing_name, group_size)  # fmt: skip
    expected = reference.matmul(codes, weight.scale, x, group_size)
    for threads in THREADS:
        assert_same_bits(matmul(weight, x, num_threads=threads), expected)


def test_tokens_are_quantised_one_by_one(packing, isa):
    weight = pack_codes(np.ones((1, 130), np.int8), 1.0, packing)
    x = np.ones((3, 130), np.float32) * np.array([[1e-3], [1.0], [1e6]], np.float32)
    np.testing.assert_allclose(matmul(weight, x).ravel(), [0.13, 130, 1.3e8], rtol=1e-6)


def test_zeros_and_numbers_under_the_floor_follow_the_reference(packing, isa, rng):
    codes = random_codes(rng, 20, 100)
    weight = pack_codes(codes, 0.75, packing)
    x = np.zeros((5, 100), np.float32)
    x[1], x[2, ::3], x[3], x[4, 99] = -0.0, 1e-40, 9e-6, 3e38
    assert_same_bits(matmul(weight, x), reference.matmul(codes, 0.75, x))


# ---- arrays in, arrays out ----


@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3), (1, 1, 1), (2, 1, 5)])
def test_leading_axes_of_the_input_become_those_of_the_result(packing, isa, shape, rng):
    codes = random_codes(rng, 19, 21)
    weight = pack_codes(codes, 0.5, packing)
    q = rng.integers(-128, 128, (*shape, 21), np.int8)
    assert_same_bits(matmul_int(weight, q), reference.matmul_int(codes, q))
    x = rng.standard_normal((*shape, 21)).astype(np.float32)
    assert_same_bits(matmul(weight, x), reference.matmul(codes, 0.5, x))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0)])
def test_no_tokens_give_no_results(packing, isa, shape):
    weight = pack_codes(np.ones((19, 21), np.int8), 0.5, packing)
    for function, taken, given_ in ((matmul_int, np.int8, np.int32), (matmul, np.float32, np.float32)):
        y = function(weight, np.empty((*shape, 21), taken))
        assert (y.shape, y.dtype) == ((*shape, 19), given_)
        out = np.empty((*shape, 19), given_)
        assert function(weight, np.empty((*shape, 21), taken), out=out) is out


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_out_is_filled_and_returned(packing, isa, shape, rng):
    codes = random_codes(rng, 19, 21)
    weight = pack_codes(codes, 0.5, packing)
    q = rng.integers(-128, 128, (*shape, 21), np.int8)
    out = np.full((*shape, 19), 7, np.int32)
    assert matmul_int(weight, q, out=out) is out
    assert_same_bits(out, reference.matmul_int(codes, q))
    x = rng.standard_normal((*shape, 21)).astype(np.float32)
    out = np.full((*shape, 19), np.nan, np.float32)
    assert matmul(weight, x, out=out) is out
    assert_same_bits(out, reference.matmul(codes, 0.5, x))


def test_nothing_is_written_beside_out(packing, isa, rng):
    codes = random_codes(rng, 19, 21)
    weight = pack_codes(codes, 0.5, packing)
    memory = np.full(19 * 9 + 64, 7, np.int32)
    q = rng.integers(-128, 128, (9, 21), np.int8)
    matmul_int(weight, q, out=memory[32:-32].reshape(9, 19))
    assert_same_bits(memory[32:-32].reshape(9, 19), reference.matmul_int(codes, q))
    assert (memory[:32] == 7).all()
    assert (memory[-32:] == 7).all()


def test_inputs_may_be_read_only_and_stay_as_they_are(packing, rng):
    codes = random_codes(rng, 19, 21)
    codes.flags.writeable = False
    weight = pack_codes(codes, 0.5, packing)
    q = rng.integers(-128, 128, (3, 21), np.int8)
    x = rng.standard_normal((3, 21)).astype(np.float32)
    for function, array in ((matmul_int, q), (matmul, x)):
        before = array.copy()
        array.flags.writeable = False
        function(weight, array)
        assert_same_bits(array, before)


# ---- several callers ----


def test_python_threads_may_share_weights(isa, rng):
    weights = []
    for packing, rows, cols in itertools.product(PACKINGS, (48, 600), (64, 333)):
        codes = random_codes(rng, rows, cols)
        weights.append((codes, pack_codes(codes, 0.5, packing)))

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(12):
            codes, weight = weights[rng.integers(len(weights))]
            threads, tokens = int(rng.choice(THREADS)), int(rng.integers(1, 10))
            q = rng.integers(-128, 128, (tokens, codes.shape[1]), np.int8)
            assert_same_bits(matmul_int(weight, q, num_threads=threads), reference.matmul_int(codes, q))
            x = rng.standard_normal((tokens, codes.shape[1])).astype(np.float32)
            assert_same_bits(matmul(weight, x, num_threads=threads), reference.matmul(codes, 0.5, x))
        return seed

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(work, range(12))) == list(range(12))


@pytest.mark.parametrize("panels", [1, 2, 160, 432, 8016, 262144])
@pytest.mark.parametrize("threads", [1, 2, 3, 16, 128, 1024])
def test_no_unit_of_work_is_more_than_a_fair_share(panels, threads):
    units = panel_units(panels, threads)
    assert sum(units) == panels
    assert min(units) >= 1
    if threads == 1:
        assert units == [panels]
    else:
        assert max(units) <= -(-panels // (2 * threads))
        assert units == sorted(units, reverse=True)
