"""Quantisation against plain NumPy, bit for bit: instruction sets x threads x sizes around steps and blocks."""

import re

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from bitnet._core import quant
from bitnet._core.quant import quantize_activations, reciprocal_scales, ternarize
from bitnet.errors import ConfigurationError, QuantizationError, ShapeError, TensorError

THREADS = (1, 2, 3, 5)

# Kernels take steps of 64 numbers; sums are made of blocks of 65536.
COLS = [1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1000]
LONG = [65535, 65536, 65537, 131073]

KINDS = [(False, None), (True, None), (False, 64), (False, 128)]

NOT_FINITE = [(np.nan, "NaN"), (-np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "-inf")]


def exactly(sentence):
    return f"^{re.escape(sentence)}$"


def assert_same_bits(got, expected):
    got, expected = np.asarray(got), np.asarray(expected)
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    assert got.tobytes() == expected.tobytes(), f"{np.count_nonzero(got != expected)} of {got.size} numbers differ"


def check_weights(w, per_row, group_size, threads):
    s = reciprocal_scales(w, per_row, group_size, num_threads=threads)
    assert_same_bits(s, reference.reciprocal_scales(w, per_row, group_size))
    assert_same_bits(ternarize(w, s, group_size, num_threads=threads), reference.ternarize(w, s, group_size))


def check_activations(x, threads):
    q, scale = quantize_activations(x, num_threads=threads)
    expected, a = reference.quantize_activations(x)
    assert_same_bits(q, expected)
    assert_same_bits(scale, np.float32(1) / a)


# ---- weights ----


@pytest.mark.parametrize(("per_row", "group_size"), KINDS)
@pytest.mark.parametrize("cols", COLS)
def test_weights_have_the_bits_of_the_reference(isa, per_row, group_size, cols, rng):
    for rows in (1, 3, 18):
        w = rng.standard_normal((rows, cols)).astype(np.float32)
        for threads in THREADS:
            check_weights(w, per_row, group_size, threads)


@given(
    st.integers(1, 60), st.integers(1, 400), st.sampled_from(KINDS), st.sampled_from(THREADS),
    st.integers(-30, 30), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_weights_of_any_magnitude_have_the_bits_of_the_reference(isa, rows, cols, kind, threads, exponent, seed):
    w = np.random.default_rng(seed).standard_normal((rows, cols)) * 10.0**exponent
    check_weights(w.astype(np.float32), *kind, threads)


@pytest.mark.parametrize("n", LONG)
def test_weights_of_several_blocks_have_the_bits_of_the_reference(isa, n, rng):
    w = rng.standard_normal(n).astype(np.float32)
    for shape in ((1, n), (n, 1)):
        for threads in THREADS:
            check_weights(w.reshape(shape), False, None, threads)
    check_weights(w.reshape(1, n), True, None, 2)
    check_weights(np.stack([w, -2 * w, w]), True, None, 3)


@pytest.mark.parametrize(
    ("n", "at", "exponent", "expected"),
    [
        # In one lane the small ones add up to 2^-52 before they meet the others, and then just count: the mean is
        # above the tie between 1 and the next float32. Alone, each is lost against 1.
        (64, (2, 18, 34, 50), -54, "above"),
        (32, (2, 18), -53, "above"),
        (64, (2, 3, 4, 5), -54, "tie"),
        (32, (2, 3), -53, "tie"),
        (64, (2, 10), -53, "tie"),
        # Blocks are summed for themselves: in the second, different lanes come together before they meet the first.
        (131072, (65536 + 2, 65536 + 3), -53, "above"),
        (131072, (2, 3), -53, "tie"),
    ],
)
@pytest.mark.parametrize("per_row", [False, True])
def test_means_are_summed_in_16_lanes_and_in_blocks(isa, per_row, n, at, exponent, expected):
    w = np.zeros((1, n), np.float32)
    w[0, 0], w[0, 1] = n, -n * 2.0**-24
    w[0, at] = -n * 2.0**exponent
    mean = np.float32(1 + 2.0**-23 if expected == "above" else 1)
    for threads in THREADS:
        assert np.ravel(reciprocal_scales(w, per_row, num_threads=threads)).tolist() == [np.float32(1) / mean]


@pytest.mark.parametrize("group_size", [64, 128])
@pytest.mark.parametrize("cols", [1, 63, 65, 129, 200])
def test_the_last_group_is_as_long_as_what_is_left(isa, group_size, cols):
    w = np.full((2, cols), 3, np.float32)
    w[:, -1] = 5
    s = reciprocal_scales(w, False, group_size)
    left = cols % group_size or group_size
    assert s.shape == (2, -(-cols // group_size))
    np.testing.assert_allclose(1 / s[:, -1], 3 + 2 / left, rtol=1e-6)
    np.testing.assert_allclose(1 / s[:, :-1], 3, rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e-40, 1e-20, 9.9e-6, 1e-5, 1.01e-5])
@pytest.mark.parametrize(("per_row", "group_size"), KINDS)
def test_the_mean_of_a_weight_has_a_floor(isa, value, per_row, group_size):
    w = np.full((3, 130), value, np.float32)
    w[1] *= -1
    check_weights(w, per_row, group_size, 2)
    largest = np.float32(1) / np.float32(1e-5)
    assert (np.asarray(reciprocal_scales(w, per_row, group_size)) == largest).all() == (value <= 1e-5)


@pytest.mark.parametrize(("per_row", "group_size"), KINDS)
def test_huge_weights_do_not_overflow(isa, per_row, group_size, rng):
    w = rng.choice(np.array([3e38, -3e38, 1e38, 0], np.float32), (3, 200))
    check_weights(w, per_row, group_size, 2)
    assert (np.asarray(reciprocal_scales(w, per_row, group_size)) > 0).all()


def test_weights_halfway_between_codes_go_to_the_even_one(isa):
    # n = 131: two steps of a kernel and a rest. s = 1/2, and 0.5 is halfway between 0 and 1.
    above, below = np.nextafter(np.float32(1), np.float32(2)), np.nextafter(np.float32(1), np.float32(0))
    cycle = np.array([1, -1, above, -above, 3, -3, 0, -0.0, below], np.float32)
    w = np.resize(cycle, (1, 131))
    expected = np.resize(np.array([0, 0, 1, -1, 1, -1, 0, 0, 0], np.int8), (1, 131))
    np.testing.assert_array_equal(ternarize(w, np.float32(0.5)), expected)


def test_codes_saturate_however_large_the_weight(isa):
    w = np.resize(np.array([3e38, -3e38, 1e9, -1e9, 2.2e9, -2.2e9], np.float32), (2, 150))
    for s in (np.float32(1), np.float32(1e5), np.float32(3)):
        np.testing.assert_array_equal(ternarize(w, s), np.sign(w).astype(np.int8))


@pytest.mark.parametrize(("value", "name"), NOT_FINITE)
@pytest.mark.parametrize(("per_row", "group_size"), KINDS)
def test_the_place_of_a_weight_that_is_not_finite_is_told(isa, value, name, per_row, group_size):
    w = np.ones((3, 22000), np.float32)  # 66000 numbers: a block and a bit
    for index in ((0, 0), (0, 63), (0, 64), (1, 21999), (2, 21535), (2, 21536), (2, 21999)):
        broken = w.copy()
        broken[index] = value
        sentence = f"w has {name} at index {index}; only finite numbers can be quantised"
        with pytest.raises(QuantizationError, match=exactly(sentence)):
            reciprocal_scales(broken, per_row, group_size, num_threads=2)


@pytest.mark.parametrize("cols", COLS)
def test_the_first_of_several_weights_that_are_not_finite_is_told(isa, cols):
    w = np.ones((4, cols), np.float32)
    w[3, 0], w[2, cols - 1] = np.inf, np.nan
    with pytest.raises(QuantizationError, match=exactly(
        f"w has NaN at index (2, {cols - 1}); only finite numbers can be quantised"
    )):  # fmt: skip
        reciprocal_scales(w)


# ---- activations ----


@pytest.mark.parametrize("cols", COLS)
def test_activations_have_the_bits_of_the_reference(isa, cols, rng):
    for shape in ((cols,), (7, cols), (2, 3, cols)):
        x = rng.standard_normal(shape).astype(np.float32)
        for threads in THREADS:
            check_activations(x, threads)


@given(
    st.integers(0, 40), st.integers(1, 400), st.sampled_from(THREADS), st.integers(-30, 30), st.integers(0, 2**32 - 1)
)
def test_activations_of_any_magnitude_have_the_bits_of_the_reference(isa, tokens, cols, threads, exponent, seed):
    x = np.random.default_rng(seed).standard_normal((tokens, cols)) * 10.0**exponent
    check_activations(x.astype(np.float32), threads)


@pytest.mark.parametrize("cols", LONG)
def test_long_tokens_and_many_tokens_have_the_bits_of_the_reference(isa, cols, rng):
    x = rng.standard_normal((2, cols)).astype(np.float32)
    for threads in THREADS:
        check_activations(x, threads)
        check_activations(x.reshape(cols, 2), threads)


@pytest.mark.parametrize("factor", [1.0, 0.25, 2.0**40, 2.0**-20])
def test_activations_halfway_between_integers_go_to_the_even_one(isa, factor):
    # The largest is 127 times a power of two, so x * a is exactly k + 0.5. Twice, and once more in part: 600 numbers.
    halves = np.arange(-127, 127, dtype=np.float64) + 0.5
    x = np.concatenate([[127], np.resize(halves, 599)])
    q, scale = quantize_activations((x * factor).astype(np.float32))
    assert scale == np.float32(factor)
    expected = np.array([int(v + 0.5) if int(v + 0.5) % 2 == 0 else int(v - 0.5) for v in x[1:]])
    np.testing.assert_array_equal(q[1:], expected)
    assert (expected % 2 == 0).all()


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e-40, 1e-20, 9.9e-6, 1e-5, 1.01e-5, 3e38, 3.4028235e38])
def test_tiny_and_huge_activations_follow_the_reference(isa, value, rng):
    x = rng.choice(np.array([value, -value, value / 2, 0], np.float32), (3, 150))
    x[:, 0] = value
    check_activations(x, 1)
    assert (np.abs(quantize_activations(x)[0][:, 0]) == 127).all() == (value >= 1e-5)


def test_the_largest_activation_becomes_127_wherever_it_is(isa):
    for at in range(131):
        x = np.full(131, 0.1, np.float32)
        x[at] = -5 - at
        q, _ = quantize_activations(x)
        assert q[at] == -127
        assert np.abs(np.delete(q, at)).max() == round(0.1 * 127 / (5 + at))


@pytest.mark.parametrize(("value", "name"), NOT_FINITE)
def test_the_place_of_an_activation_that_is_not_finite_is_told(isa, value, name):
    for shape in ((1, 1), (4, 63), (5, 200), (2, 70000), (1500, 50)):
        for index in ((0, 0), (0, shape[1] - 1), (shape[0] - 1, shape[1] // 2), (shape[0] - 1, shape[1] - 1)):
            x = np.ones(shape, np.float32)
            x[index] = value
            sentence = f"x has {name} at index {index}; only finite numbers can be quantised"
            with pytest.raises(QuantizationError, match=exactly(sentence)):
                quantize_activations(x, num_threads=2)


def test_the_place_in_an_input_of_other_dimensions_is_told(isa):
    x = np.ones((2, 3, 70), np.float32)
    x[1, 2, 69] = x[1, 2, 65] = np.nan
    with pytest.raises(QuantizationError, match=re.escape("x has NaN at index (1, 2, 65);")):
        quantize_activations(x)
    x = np.ones(70, np.float32)
    x[69] = np.inf
    with pytest.raises(QuantizationError, match=re.escape("x has inf at index (69);")):
        quantize_activations(x)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0), (2, 0, 4)])
def test_no_activations_give_empty_arrays(isa, shape):
    q, scale = quantize_activations(np.empty(shape, np.float32))
    assert (q.shape, q.dtype) == (shape, np.int8)
    assert (scale.shape, scale.dtype) == (shape[:-1], np.float32)
    assert_same_bits(scale, np.full(shape[:-1], np.float32(1) / (np.float32(127) / np.float32(1e-5))))


# ---- arguments ----


@pytest.mark.parametrize("shape", [(70,), (5, 70), (2, 3, 70)])
def test_activations_are_written_to_out(isa, shape, rng):
    x = rng.standard_normal(shape).astype(np.float32)
    out = np.full(shape, 99, np.int8)
    q, _ = quantize_activations(x, out=out)
    assert q is out
    np.testing.assert_array_equal(out, reference.quantize_activations(x)[0])


def test_codes_are_written_to_out(isa, rng):
    w = rng.standard_normal((5, 70)).astype(np.float32)
    s = reciprocal_scales(w)
    out = np.full((5, 70), 99, np.int8)
    assert ternarize(w, s, out=out) is out
    np.testing.assert_array_equal(out, reference.ternarize(w, s))
    with pytest.raises(ShapeError, match=exactly("out has shape (70, 5); it must be (5, 70)")):
        ternarize(w, s, out=np.empty((70, 5), np.int8))
    with pytest.raises(TensorError, match=exactly("out shares memory with an input; pass an array of its own")):
        ternarize(w, s, out=w.reshape(-1).view(np.int8)[:350].reshape(5, 70))


def test_inputs_may_be_read_only(isa, rng):
    x = rng.standard_normal((3, 70)).astype(np.float32)
    x.flags.writeable = False
    check_activations(x, 1)
    check_weights(x, True, None, 1)


def test_outputs_that_do_not_fit_are_refused():
    x = np.ones((2, 5), np.float32)
    with pytest.raises(TensorError, match=exactly("out must be a NumPy array, not list")):
        quantize_activations(x, out=[0])
    with pytest.raises(TensorError, match=exactly(
        "out has dtype uint8; it must be int8 (convert it with .astype(np.int8))"
    )):  # fmt: skip
        quantize_activations(x, out=np.empty((2, 5), np.uint8))
    with pytest.raises(ShapeError, match=exactly("out has shape (5, 2); it must be (2, 5)")):
        quantize_activations(x, out=np.empty((5, 2), np.int8))
    with pytest.raises(TensorError, match=r"^out of shape \(2, 5\) is not C-contiguous \(strides \(1, 2\)\); "):
        quantize_activations(x, out=np.empty((5, 2), np.int8).T)
    with pytest.raises(TensorError, match=exactly("out shares memory with an input; pass an array of its own")):
        quantize_activations(x, out=x.reshape(-1).view(np.int8)[:10].reshape(2, 5))
    out = np.full((2, 5), 7, np.int8)
    out.flags.writeable = False
    with pytest.raises(TensorError, match=r"^out is read-only, and the result is to be written there; "):
        quantize_activations(x, out=out)
    assert (out == 7).all()


def test_inputs_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=exactly("x has shape (); it must have shape (..., cols)")):
        quantize_activations(np.ones((), np.float32))
    with pytest.raises(TensorError, match=exactly("x must be a NumPy array, not list")):
        quantize_activations([1.0])
    for function in (reciprocal_scales, lambda w: ternarize(w, np.float32(1))):
        with pytest.raises(TensorError, match=exactly("w must be a NumPy array, not list")):
            function([[1.0]])
        with pytest.raises(TensorError, match=r"^w has dtype float64; it must be float32 "):
            function(np.ones((2, 2)))
        with pytest.raises(ShapeError, match=exactly("w has shape (3,); it must have shape (rows, cols)")):
            function(np.ones(3, np.float32))
        with pytest.raises(ShapeError, match=exactly(
            "w has shape (0, 3); it needs at least one row and one column"
        )):  # fmt: skip
            function(np.ones((0, 3), np.float32))
        with pytest.raises(TensorError, match=r"^w of shape \(3, 2\) is not C-contiguous \(strides \(4, 12\)\); "):
            function(np.ones((2, 3), np.float32).T)


@pytest.mark.parametrize("count", [0, True, 1.5, "2", 2000])
def test_what_is_no_number_of_threads_is_refused(count):
    x = np.ones((2, 5), np.float32)
    sentence = exactly(f"num_threads is {count!r}; it must be a whole number of threads from 1 to 1024")
    for function in (quantize_activations, reciprocal_scales):
        with pytest.raises(ConfigurationError, match=sentence):
            function(x, num_threads=count)
    with pytest.raises(ConfigurationError, match=sentence):
        ternarize(x, np.float32(1), num_threads=count)


@pytest.mark.parametrize("group_size", [0, 32, 64.0, "64", True])
def test_a_group_size_there_is_none_of_is_refused(group_size):
    w = np.ones((2, 128), np.float32)
    for function in (lambda: quant.reciprocal_scales(w, False, group_size),
                     lambda: quant.ternarize(w, np.ones((2, 2), np.float32), group_size)):  # fmt: skip
        with pytest.raises(ConfigurationError, match=f"group_size is {group_size!r}; it must be one of 64, 128"):
            function()


@pytest.mark.parametrize(
    ("shape", "group_size", "needed"),
    [((2,), None, "() or (3,)"), ((3, 1), None, "() or (3,)"), ((), 64, "(3, 2)"), ((3,), 64, "(3, 2)")],
)
def test_scales_of_another_shape_are_refused(shape, group_size, needed):
    with pytest.raises(ShapeError) as caught:
        quant.ternarize(np.ones((3, 100), np.float32), np.ones(shape, np.float32), group_size)
    assert str(caught.value) == f"s has shape {shape}; it must be {needed}"


@pytest.mark.parametrize("offset", [0, 1, 16, 32])
def test_codes_too_many_for_a_cache_are_the_same(isa, offset):
    w = np.tile(np.linspace(-2, 2, 4096, dtype=np.float32), (2048 + 1, 1))
    out = np.zeros(w.size + 64, np.int8)[offset : offset + w.size].reshape(w.shape)
    s = reciprocal_scales(w)
    ternarize(w, s, out=out)
    np.testing.assert_array_equal(out, reference.ternarize(w, s))


def test_scales_of_another_dtype_are_refused():
    with pytest.raises(TensorError, match="s has dtype float64; it must be float32"):
        quant.ternarize(np.ones((3, 100), np.float32), np.ones(3))


def test_the_largest_numbers_have_a_finite_scale(isa):
    w = np.full((2, 70), np.finfo(np.float32).max)
    s = quant.reciprocal_scales(w)
    assert np.isfinite(quant.scales_of(s))
    np.testing.assert_array_equal(quant.ternarize(w, s), 1)
