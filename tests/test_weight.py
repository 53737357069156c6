"""A ternary weight, as users see it."""

import copy
import doctest
import pickle
import re

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

import bitnet.weight
from bitnet import QuantizationConfig, TernaryWeight
from bitnet._core import cpu
from bitnet._core import packing as packings
from bitnet.errors import ConfigurationError, KernelError, QuantizationError, ShapeError, TensorError
from bitnet.tuning import choose_packing

# config, per_row, group_size
CONFIGS = [
    pytest.param(None, False, None, id="default"),
    pytest.param(QuantizationConfig(), False, None, id="whole"),
    pytest.param(QuantizationConfig(per_channel=True), True, None, id="rows"),
    pytest.param(QuantizationConfig(group_size=64), False, 64, id="groups of 64"),
    pytest.param(QuantizationConfig(group_size=128), False, 128, id="groups of 128"),
]


def exactly(sentence):
    return f"^{re.escape(sentence)}$"


def packing_for(packing, group_size):
    """t5 cannot have groups: test_packing_errors.py reads what it says."""
    return "i2" if group_size else packing


def random_weight(rng, packing, kind="one", rows=20, cols=130):
    codes = rng.integers(-1, 2, (rows, cols), np.int8)
    shape, group_size = {"one": ((), None), "rows": ((rows,), None), "groups": ((rows, -(-cols // 64)), 64)}[kind]
    scale = rng.uniform(0.5, 2, shape).astype(np.float32)
    return TernaryWeight.from_codes(codes, scale, packing_for(packing, group_size), group_size=group_size)


@pytest.fixture(params=["one", "rows", "groups"])
def weight(request, packing, rng):
    return random_weight(rng, packing, request.param)


# ---- making ----


@pytest.mark.parametrize(("config", "per_row", "group_size"), CONFIGS)
@pytest.mark.parametrize(("rows", "cols"), [(2, 1), (5, 64), (17, 129), (40, 300)])
def test_a_float_weight_gets_the_codes_and_scales_of_the_reference(
    packing, config, per_row, group_size, rows, cols, rng
):
    w = rng.standard_normal((rows, cols)).astype(np.float32)
    packing = packing_for(packing, group_size)
    made = TernaryWeight.from_float(w, config, packing)
    s = reference.reciprocal_scales(w, per_row, group_size)
    np.testing.assert_array_equal(made.codes(), reference.ternarize(w, s, group_size))
    np.testing.assert_array_equal(made.scale, np.float32(1) / s)
    assert (made.shape, made.packing, made.group_size) == ((rows, cols), packing, group_size)
    codes, scale = bitnet.quantize_weights(w, config)
    assert made == TernaryWeight.from_codes(codes, scale, packing, group_size=group_size)


def test_codes_come_back(weight, packing, rng):
    codes = rng.integers(-1, 2, (33, 77), np.int8)
    made = TernaryWeight.from_codes(codes, 0.5, packing)
    np.testing.assert_array_equal(made.codes(), codes)
    assert made.codes().dtype == np.int8
    assert (made.shape, made.scale, made.group_size) == ((33, 77), 0.5, None)
    assert made.nbytes == {"i2": 3 * 5 * 64, "t5": 3 * 4 * 64}[packing]


def test_weights_do_not_depend_on_the_number_of_threads(packing, rng):
    w = rng.standard_normal((300, 700)).astype(np.float32)
    alone = TernaryWeight.from_float(w, packing=packing, num_threads=1)
    for count in (2, 3, 5):
        assert TernaryWeight.from_float(w, packing=packing, num_threads=count) == alone
        assert TernaryWeight.from_codes(alone.codes(), alone.scale, packing, num_threads=count) == alone


def test_a_weight_is_not_made_by_hand():
    sentence = "a TernaryWeight is made by TernaryWeight.from_float() or TernaryWeight.from_codes()"
    with pytest.raises(TypeError, match=exactly(sentence)):
        TernaryWeight()


@pytest.mark.parametrize("config", [{"group_size": 64}, "absmean", 64])
def test_only_a_configuration_configures(config):
    sentence = f"TernaryWeight.from_float.config is {config!r}; it must be a QuantizationConfig"
    with pytest.raises(ConfigurationError, match=exactly(sentence)):
        TernaryWeight.from_float(np.ones((2, 2), np.float32), config)


def test_what_cannot_be_a_weight_is_refused():
    with pytest.raises(QuantizationError, match=exactly(
        "w has NaN at index (1, 0); only finite numbers can be quantised"
    )):  # fmt: skip
        TernaryWeight.from_float(np.array([[1, 2], [np.nan, 3]], np.float32))
    with pytest.raises(TensorError, match=r"^w has dtype float64; it must be float32 "):
        TernaryWeight.from_float(np.ones((2, 2)))
    with pytest.raises(ShapeError, match=exactly("w has shape (2,); it must have shape (rows, cols)")):
        TernaryWeight.from_float(np.ones(2, np.float32))
    with pytest.raises(QuantizationError, match=exactly(
        "codes has 2 at index (0, 1); ternary codes are -1, 0 and 1"
    )):  # fmt: skip
        TernaryWeight.from_codes(np.array([[1, 2]], np.int8), 1.0)
    with pytest.raises(TensorError, match=exactly("codes must be a NumPy array, not list")):
        TernaryWeight.from_codes([[1, 0]], 1.0)
    with pytest.raises(ShapeError, match=exactly("codes has shape (0, 5); it needs at least one row and one column")):
        TernaryWeight.from_codes(np.ones((0, 5), np.int8), 1.0)
    with pytest.raises(KernelError, match=exactly("no packing is known as 'tl2' (known: i2, t5)")):
        TernaryWeight.from_float(np.ones((2, 2), np.float32), packing="tl2")
    with pytest.raises(KernelError, match=r"^packing 't5' stores 20 columns a tile, so groups of 64 columns "):
        TernaryWeight.from_float(np.ones((2, 2), np.float32), QuantizationConfig(group_size=64), "t5")


# ---- products ----


@given(st.integers(1, 40), st.integers(1, 300), st.integers(-8, 8), st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("kind", ["one", "rows", "groups"])
def test_a_product_is_that_of_numbers_but_for_half_a_scale_of_each_input(packing, kind, rows, cols, exponent, seed):
    # Each input is off by half its token's scale 1 / a, which meets |weight|. Float32 then rounds x * a (127 * 2^-24
    # of a scale), the scales, the sum, and the sum over groups: each 2^-24 of the magnitudes that are added up.
    rng = np.random.default_rng(seed)
    weight = random_weight(rng, packing, kind, rows, cols)
    x = (rng.standard_normal((3, cols)) * 10.0**exponent).astype(np.float32)
    w = weight.dequantize().astype(np.float64)
    half = np.maximum(np.abs(x).max(axis=1, keepdims=True), 1e-5) / 127 / 2 * np.abs(w).sum(axis=1)
    rounding = (8 + weight.scale.shape[-1] if weight.scale.ndim else 8) * 2.0**-24 * (np.abs(x) @ np.abs(w).T + half)
    error = np.abs(weight.matmul(x) - x.astype(np.float64) @ w.T)
    assert (error <= half * (1 + 127 * 2.0**-22) + rounding).all()


def test_products_take_out_and_threads(weight, rng):
    x = rng.standard_normal((4, 130)).astype(np.float32)
    expected = reference.matmul(weight.codes(), weight.scale, x, weight.group_size)
    out = np.empty((4, 20), np.float32)
    assert weight.matmul(x, out=out, num_threads=2) is out
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(weight.matmul(x), expected)
    q = rng.integers(-128, 128, (4, 130), np.int8)
    out = np.empty((4, 20), np.int32)
    assert weight.matmul_int(q, out=out, num_threads=2) is out
    np.testing.assert_array_equal(out, reference.matmul_int(weight.codes(), q))
    np.testing.assert_array_equal(weight.matmul_int(q), out)


def test_products_of_what_does_not_fit_are_refused(weight):
    sentence = "cannot multiply a 20 x 130 ternary weight: the weight has 130 columns, the input 131"
    with pytest.raises(ShapeError, match=exactly(sentence)):
        weight.matmul(np.zeros((4, 131), np.float32))
    with pytest.raises(ShapeError, match=exactly(sentence)):
        weight.matmul_int(np.zeros((4, 131), np.int8))
    sentence = "num_threads is 0; it must be a whole number of threads from 1 to 1024"
    with pytest.raises(ConfigurationError, match=exactly(sentence)):
        weight.matmul(np.zeros((4, 130), np.float32), num_threads=0)


def test_numbers_are_codes_times_scales(weight):
    numbers = weight.dequantize()
    assert (numbers.dtype, numbers.shape) == (np.float32, (20, 130))
    np.testing.assert_array_equal(numbers, reference.dequantize(weight.codes(), weight.scale, weight.group_size))


# ---- one weight and another ----


def test_a_repacked_weight_is_the_same_weight(rng):
    for kind in ("one", "rows"):
        weight = random_weight(rng, "i2", kind)
        other = weight.repack("t5")
        assert (weight.packing, other.packing, other.nbytes) == ("i2", "t5", 2 * 7 * 64)
        assert other == weight
        assert other.repack("i2").packing == "i2"
        x = rng.standard_normal((3, 130)).astype(np.float32)
        np.testing.assert_array_equal(other.matmul(x), weight.matmul(x))
        assert weight.repack("auto").packing == choose_packing(weight.shape)
    grouped = random_weight(rng, "i2", "groups")
    assert grouped.repack("auto") == grouped
    with pytest.raises(KernelError, match=r"; use packing 'i2'$"):
        grouped.repack("t5")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_weight_comes_back_as_it_was(weight, protocol, rng):
    again = pickle.loads(pickle.dumps(weight, protocol))
    assert again == weight
    assert again is not weight
    assert (again.packing, again.group_size, again.nbytes) == (weight.packing, weight.group_size, weight.nbytes)
    x = rng.standard_normal((3, 130)).astype(np.float32)
    np.testing.assert_array_equal(again.matmul(x), weight.matmul(x))
    assert not again.scale.flags.writeable


def test_copies_are_the_weight_itself_as_it_cannot_change(weight):
    assert copy.copy(weight) is weight
    assert copy.deepcopy([weight])[0] is weight


def test_weights_are_equal_if_shape_scales_and_codes_are(rng):
    codes = rng.integers(-1, 2, (6, 128), np.int8)
    weight = TernaryWeight.from_codes(codes, 0.5, "i2")
    assert weight == TernaryWeight.from_codes(codes.copy(), 0.5, "t5")
    other = codes.copy()
    other[5, 127] = (other[5, 127] + 2) % 3 - 1
    groups = TernaryWeight.from_codes(codes, np.full((6, 2), 0.5), "i2", group_size=64)
    different = [
        TernaryWeight.from_codes(other, 0.5, "i2"),
        TernaryWeight.from_codes(codes, 0.25, "i2"),
        TernaryWeight.from_codes(codes, np.full(6, 0.5), "i2"),
        TernaryWeight.from_codes(codes[:5], 0.5, "i2"),
        TernaryWeight.from_codes(codes.reshape(12, 64), 0.5, "i2"),
        groups,
        codes.tolist(),
        None,
    ]
    assert [weight == it for it in different] == [False] * len(different)
    assert groups == TernaryWeight.from_codes(codes, np.full((6, 2), 0.5), "i2", group_size=64)
    with pytest.raises(TypeError, match="unhashable"):
        hash(weight)


def test_a_weight_cannot_be_changed(weight):
    for name in ("shape", "packing", "scale", "group_size", "nbytes", "anything"):
        with pytest.raises(AttributeError):
            setattr(weight, name, 1)
    with pytest.raises(ValueError, match="read-only"):
        weight.scale[...] = 1


def test_a_weight_keeps_nothing_of_what_it_was_made_from(packing):
    codes, scale = np.ones((3, 4), np.int8), np.ones(3, np.float32)
    weight = TernaryWeight.from_codes(codes, scale, packing)
    codes[:], scale[:] = -1, 7
    weight.codes()[:] = 0
    np.testing.assert_array_equal(weight.dequantize(), np.ones((3, 4), np.float32))


def test_a_weight_says_what_it_is(rng):
    codes = rng.integers(-1, 2, (2000, 130), np.int8)
    made = [
        (TernaryWeight.from_codes(codes, 1.0, "i2"), "packing='i2', one scale, nbytes=72,000"),
        (TernaryWeight.from_codes(codes, np.ones(2000), "t5"), "packing='t5', a scale per row, nbytes=56,000"),
        (TernaryWeight.from_codes(codes, np.ones((2000, 3)), "i2", group_size=64),
         "packing='i2', a scale per 64 columns, nbytes=72,000"),
    ]  # fmt: skip
    for weight, rest in made:
        assert repr(weight) == f"TernaryWeight(shape=(2000, 130), {rest})"


def test_auto_is_what_is_chosen(rng, monkeypatch):
    w = rng.standard_normal((40, 128)).astype(np.float32)
    for chosen in packings.PACKINGS:
        monkeypatch.setattr(bitnet.weight, "choose_packing", lambda *_, chosen=chosen: chosen)
        assert TernaryWeight.from_float(w).packing == chosen
        assert TernaryWeight.from_codes(np.ones((40, 101), np.int8), 1.0).packing == chosen
        assert TernaryWeight.from_float(w, packing="i2").repack("auto").packing == chosen


def test_the_example_in_the_docstring_runs():
    results = doctest.testmod(bitnet.weight)
    assert results.failed == 0
    assert results.attempted >= 2


def test_a_list_is_no_array():
    with pytest.raises(TensorError, match="codes must be a NumPy array, not list"):
        TernaryWeight.from_codes([[1, 0], [1]], 1.0)


@pytest.mark.parametrize("config", [{}, {"per_channel": True}, "absmean"])
def test_a_configuration_of_another_type_is_refused(config):
    w = np.ones((2, 2), np.float32)
    for function in (TernaryWeight.from_float, bitnet.quantize_weights):
        with pytest.raises(ConfigurationError, match=r"config is .*; it must be a QuantizationConfig"):
            function(w, config)


def test_the_largest_numbers_can_be_quantised():
    w = np.full((3, 5), np.finfo(np.float32).max)
    assert np.isfinite(TernaryWeight.from_float(w).dequantize()).all()


def test_the_argument_spares_the_environment(monkeypatch):
    monkeypatch.setenv("BITNET_NUM_THREADS", "nonsense")
    monkeypatch.setattr(cpu, "last_level_cache_bytes", lambda: 0)
    weight = TernaryWeight.from_codes(np.ones((40, 40), np.int8), 1.0, num_threads=2)
    assert weight.matmul_int(np.ones(40, np.int8), num_threads=2).tolist() == [40] * 40
