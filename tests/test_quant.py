"""Numbers to codes and back, as users see it."""

import re

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bitnet import QuantizationConfig, dequantize, quantize_activations, quantize_weights
from bitnet.errors import ConfigurationError, QuantizationError, ShapeError, TensorError

CONFIGS = [
    pytest.param(None, False, None, id="default"),
    pytest.param(QuantizationConfig(), False, None, id="whole"),
    pytest.param(QuantizationConfig(per_channel=True), True, None, id="rows"),
    pytest.param(QuantizationConfig(group_size=64), False, 64, id="groups of 64"),
    pytest.param(QuantizationConfig(group_size=128), False, 128, id="groups of 128"),
]

# Finite, and so far from the ends of float32 that no sum or reciprocal of them leaves it.
NUMBERS = st.floats(-(2.0**100), 2.0**100, width=32)


def exactly(sentence):
    return f"^{re.escape(sentence)}$"


def matrices(max_rows, max_cols):
    shapes = st.tuples(st.integers(1, max_rows), st.integers(1, max_cols))
    return arrays.arrays(np.float32, shapes, elements=NUMBERS)


# ---- weights ----


@pytest.mark.parametrize(("config", "per_row", "group_size"), CONFIGS)
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (5, 64), (17, 129), (40, 300)])
def test_weights_become_the_codes_and_scales_of_the_reference(config, per_row, group_size, rows, cols, rng):
    w = rng.standard_normal((rows, cols)).astype(np.float32)
    codes, scale = quantize_weights(w, config)
    s = reference.reciprocal_scales(w, per_row, group_size)
    np.testing.assert_array_equal(codes, reference.ternarize(w, s, group_size))
    np.testing.assert_array_equal(scale, np.float32(1) / s)
    assert (codes.dtype, scale.dtype, scale.shape) == (np.int8, np.float32, s.shape)


@pytest.mark.parametrize(("config", "per_row", "group_size"), CONFIGS)
@given(w=matrices(6, 200))
def test_a_weight_is_off_by_half_a_scale_or_by_what_exceeds_the_scale(config, per_row, group_size, w):
    # Codes round w / scale to the nearest of -1, 0, 1: half a scale at most, beyond 1.5 scales the excess. In
    # float32: s and 1 / s are each rounded, and so is the product.
    codes, scale = quantize_weights(w, config)
    step = reference.per_column(scale, w.shape, group_size).astype(np.float64)
    error = np.abs(w - dequantize(codes, scale, group_size=group_size).astype(np.float64))
    assert (error <= np.maximum(step / 2, np.abs(w) - step) + 2.0**-20 * np.maximum(step, np.abs(w))).all()


def test_quantizing_what_is_ternary_already_changes_nothing(rng):
    # Equally many of each sign and no zeros: the mean magnitude is the scale.
    codes = rng.choice(np.array([-1, 1], np.int8), (16, 128))
    again, scale = quantize_weights(codes.astype(np.float32) * np.float32(0.25))
    np.testing.assert_array_equal(again, codes)
    assert scale == 0.25


def test_codes_are_written_to_out(rng):
    w = rng.standard_normal((5, 70)).astype(np.float32)
    out = np.full((5, 70), 99, np.int8)
    codes, _ = quantize_weights(w, out=out)
    assert codes is out
    np.testing.assert_array_equal(out, quantize_weights(w)[0])


def test_weights_do_not_depend_on_the_number_of_threads(rng):
    w = rng.standard_normal((300, 700)).astype(np.float32)
    codes, scale = quantize_weights(w, num_threads=1)
    for threads in (2, 3, 5):
        other_codes, other_scale = quantize_weights(w, num_threads=threads)
        np.testing.assert_array_equal(other_codes, codes)
        assert other_scale == scale


def test_weights_that_are_not_finite_are_refused():
    w = np.ones((3, 70), np.float32)
    w[2, 65] = -np.inf
    with pytest.raises(QuantizationError, match=exactly(
        "w has -inf at index (2, 65); only finite numbers can be quantised"
    )):  # fmt: skip
        quantize_weights(w)


# ---- activations ----


@given(matrices(6, 200))
def test_an_activation_is_off_by_half_a_scale(x):
    # Half an integer, and float32: x * a is off by at most 127 * 2^-24 integers, q * scale by 127 * 2^-23 scales.
    q, scale = quantize_activations(x)
    error = np.abs(x - dequantize(q, scale).astype(np.float64))
    assert (error <= (0.5 + 127 * 2.0**-22) * scale[:, None].astype(np.float64)).all()


@given(matrices(6, 200))
def test_activations_are_never_minus_128_and_the_largest_is_127(x):
    q, _ = quantize_activations(x)
    largest = np.abs(x).max(axis=1)
    assert q.min() >= -127
    assert (np.abs(q).max(axis=1)[largest >= 1e-5] == 127).all()


@pytest.mark.parametrize("shape", [(70,), (3, 70), (2, 3, 70), (0, 70)])
def test_each_token_has_a_scale(shape, rng):
    x = rng.standard_normal(shape).astype(np.float32)
    q, scale = quantize_activations(x)
    expected, a = reference.quantize_activations(x)
    np.testing.assert_array_equal(q, expected)
    np.testing.assert_array_equal(scale, np.float32(1) / a)
    assert np.shape(scale) == shape[:-1]
    assert dequantize(q, scale).shape == shape


def test_activations_are_written_to_out(rng):
    x = rng.standard_normal((5, 70)).astype(np.float32)
    out = np.full((5, 70), 99, np.int8)
    assert quantize_activations(x, out=out)[0] is out
    np.testing.assert_array_equal(out, quantize_activations(x, num_threads=2)[0])


# ---- back ----


@pytest.mark.parametrize(
    ("scale", "group_size", "expected"),
    [
        (2, None, [[2, -2, 0], [0, 2, 2]]),
        (np.float32(0.5), None, [[0.5, -0.5, 0], [0, 0.5, 0.5]]),
        ([1, 3], None, [[1, -1, 0], [0, 3, 3]]),
        (np.array([-1.0, 2.0]), None, [[-1, 1, 0], [0, 2, 2]]),
        ([[4], [5]], 64, [[4, -4, 0], [0, 5, 5]]),
    ],
)
def test_codes_times_scales(scale, group_size, expected):
    numbers = dequantize(np.array([[1, -1, 0], [0, 1, 1]], np.int8), scale, group_size=group_size)
    assert numbers.dtype == np.float32
    np.testing.assert_array_equal(numbers, np.array(expected, np.float32))


def test_each_group_of_columns_has_its_own_scale():
    numbers = dequantize(np.ones((2, 130), np.int8), [[1, 2, 3], [4, 5, 6]], group_size=64)
    np.testing.assert_array_equal(numbers[:, [0, 63, 64, 127, 128, 129]], [[1, 1, 2, 2, 3, 3], [4, 4, 5, 5, 6, 6]])


@pytest.mark.parametrize(
    ("scale", "group_size", "needed"),
    [
        ([1, 2, 3], None, (2,)),
        ([[1], [2]], None, (2,)),
        ([[1, 2]], 64, (2, 3)),
        ([1, 2], 64, (2, 3)),
        (1.0, 64, (2, 3)),
        ([[1, 2, 3], [4, 5, 6]], 128, (2, 2)),
    ],
)
def test_scales_that_do_not_fit_the_codes_are_refused(scale, group_size, needed):
    with pytest.raises(ShapeError, match=exactly(f"scale has shape {np.shape(scale)}; it must be {needed}")):
        dequantize(np.ones((2, 130), np.int8), scale, group_size=group_size)


def test_codes_must_be_an_array():
    with pytest.raises(TensorError, match=exactly("codes must be a NumPy array, not list")):
        dequantize([[1, 0]], 1.0)


def test_dequantize_refuses_a_group_size_there_is_none_of():
    with pytest.raises(ConfigurationError, match="group_size is 0; it must be one of 64, 128"):
        dequantize(np.ones((2, 2), np.int8), np.ones((2, 1)), group_size=0)


@pytest.mark.parametrize("codes", [np.array([["a"]]), np.ones((2, 2)), np.ones((2, 2), complex)])
def test_dequantize_takes_int8_codes_only(codes):
    with pytest.raises(TensorError, match=r"codes has dtype .*; it must be int8"):
        dequantize(codes, 1.0)


def test_scales_are_arrays():
    for scale in (quantize_weights(np.ones((2, 2), np.float32))[1], quantize_activations(np.ones(3, np.float32))[1]):
        assert isinstance(scale, np.ndarray)
        assert scale.shape == ()
