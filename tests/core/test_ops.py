"""The vector operations: formulas in double, bit patterns, and the same bits on every instruction set."""

import math

import numpy as np
import pytest

from bitnet._core import cpu, ops

LENGTHS = [*range(1, 71), 2560]
EPS32 = np.finfo(np.float32).eps  # 2^-23, twice the error of one rounding

ERF = np.vectorize(math.erf, otypes=[float])
FORMULAS = {
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x / 2 * (1 + ERF(x / math.sqrt(2))),
    "gelu_pytorch_tanh": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}
SPECIAL = np.array([0, 0x80000000, 1, 0x80000001, 0x00800000, 0x007FFFFF, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000,
                    0xFF800000, 0x7FC00000, 0xFFC00000, 0x7F800001, 0x7FFFFFFF, 0xFF812345], np.uint32)  # fmt: skip


def floats(*numbers):
    return np.array([numbers], np.float32)


def each_isa(compute):
    """What `compute` gives on each instruction set, by name."""
    before, found = cpu.isa(), {}
    try:
        for name in cpu.possible_isas():
            cpu.select_isa(name)
            found[name] = compute()
    finally:
        cpu.select_isa(before)
    return found


def assert_same_bits(compute):
    found = each_isa(compute)
    first = next(iter(found.values()))
    for name, other in found.items():
        assert other.tobytes() == first.tobytes(), name


# ---- which kernels run


def test_the_forced_kernels_are_the_ones_that_run(isa):
    # avx512vbmi is a feature of one packing's kernels only.
    assert ops.kernel_name() == {"avx512vbmi": "avx512vnni"}.get(isa, isa)


# ---- rms_norm


@pytest.mark.parametrize("eps", [1e-5, 1e-6])
@pytest.mark.parametrize("n", LENGTHS)
def test_rms_norm_is_the_formula(isa, rng, n, eps):
    x = (rng.normal(size=(3, n)) * [[1e-4], [1], [1e4]]).astype(np.float32)
    gain = rng.uniform(-2, 2, n).astype(np.float32)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide * wide).mean(-1, keepdims=True) + eps) * gain
    # Squares are positive, so the sum's relative error is at most that of adding n / 32 numbers in a lane, 32 lanes and
    # a rest of 31; half of it passes the root. Six roundings follow.
    bound = ((n / 32 + 40) / 4 + 6) * EPS32
    assert (np.abs(ops.rms_norm(x, gain, eps) - expected) <= bound * np.abs(expected)).all()


@pytest.mark.parametrize("n", [1, 16, 33, 64])
def test_rms_norm_of_zeros_is_zero(isa, n):
    assert (ops.rms_norm(np.zeros((2, n), np.float32), np.ones(n, np.float32), 1e-5) == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [1, 16, 33, 64])
def test_rms_norm_shows_what_is_not_finite(isa, n, bad):
    for at in {0, n // 2, n - 1}:
        x = np.ones((2, n), np.float32)
        x[1, at] = bad
        y = ops.rms_norm(x, np.ones(n, np.float32), 1e-5)
        assert np.isnan(y[1, at])
        assert np.isfinite(y[0]).all()


def test_rms_norm_keeps_small_and_large_numbers(isa):
    # Up to the root of float32's range the mean square is finite; above, the row becomes 0, as in PyTorch's float32.
    for size in (1e-18, 1e-10, 1e18):
        y = ops.rms_norm(np.full((1, 40), size, np.float32), np.ones(40, np.float32), 1e-30)
        assert np.allclose(y, size / math.sqrt(size**2 + 1e-30), rtol=1e-5)
    assert (ops.rms_norm(np.full((1, 40), 1e30, np.float32), np.ones(40, np.float32), 1e-5) == 0).all()


@pytest.mark.parametrize("n", LENGTHS)
def test_rms_norm_has_the_same_bits_everywhere(rng, n):
    x, gain = rng.normal(size=(2, n)).astype(np.float32), rng.normal(size=n).astype(np.float32)
    assert_same_bits(lambda: ops.rms_norm(x, gain, 1e-5))


# ---- gates


@pytest.mark.parametrize("name", FORMULAS)
def test_a_gate_is_the_formula(isa, rng, name):
    x = np.concatenate([np.linspace(-100, 100, 4001), rng.normal(size=999), [1e4, -1e4, 1e-30, -1e-30, 0, -0.0]])
    x = x.astype(np.float32)[None]
    up = rng.normal(size=x.shape).astype(np.float32)
    with np.errstate(over="ignore"):
        expected = FORMULAS[name](x.astype(np.float64))
    # exp is good to 1.3e-7 (ops_body.h), and some roundings: four units in the last place of x, or of the result
    # where that is larger. Where x is far below 0 the two terms of GELU cancel, so x is the measure there too.
    bound = 4 * EPS32 * np.maximum(np.abs(x), np.abs(expected))
    assert (np.abs(ops.gate(name, x, up) - expected * up) <= bound * np.abs(up) + 1e-45).all()


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("n", range(1, 71))
def test_a_gate_of_any_length_is_that_of_its_numbers(isa, rng, name, n):
    x, up = rng.normal(size=(2, 3, n)).astype(np.float32)
    alone = [[ops.gate(name, floats(a), floats(b))[0, 0] for a, b in zip(*rows, strict=True)]
             for rows in zip(x[:1], up[:1], strict=True)]  # fmt: skip
    assert ops.gate(name, x, up)[:1].tobytes() == np.array(alone, np.float32).tobytes()


@pytest.mark.parametrize("name", FORMULAS)
def test_a_gate_of_huge_numbers_is_nothing_or_the_number(isa, name):
    huge = floats(1e5, 1e10, 1e18)
    above = ops.gate(name, huge, np.ones_like(huge))
    assert np.allclose(above, huge.astype(np.float64) ** (2 if name == "relu2" else 1), rtol=4 * EPS32)
    # e^-87 is the least a sigmoid is taken for.
    assert (np.abs(ops.gate(name, -huge, np.ones_like(huge))) <= huge * 1.7e-38).all()
    assert ops.gate(name, floats(np.inf), floats(1))[0, 0] == np.inf
    assert ops.gate("relu2", floats(1e20), floats(1))[0, 0] == np.inf


@pytest.mark.parametrize("name", FORMULAS)
def test_a_gate_of_zero_is_zero(isa, name):
    assert (ops.gate(name, floats(0.0, -0.0), floats(3, 3)) == 0).all()


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("n", [1, 16, 20])
def test_a_gate_shows_a_nan(isa, name, n):
    x, up = np.ones((1, n), np.float32), np.ones((1, n), np.float32)
    x[0, -1] = np.nan
    for first, second in ((x, up), (up, x)):
        y = ops.gate(name, first, second)
        assert np.isnan(y[0, -1])
        assert np.isfinite(y[0, :-1]).all()


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("n", LENGTHS)
def test_a_gate_has_the_same_bits_everywhere(rng, name, n):
    x, up = (rng.normal(size=(2, 2, n)) * 10).astype(np.float32)
    x[0, : len(SPECIAL)] = SPECIAL.view(np.float32)[:n]
    x[0, np.isnan(x[0])] = np.nan  # which payload a NaN has is the instruction's own business
    found = each_isa(lambda: np.nan_to_num(ops.gate(name, x, up), nan=123.0))
    assert len({y.tobytes() for y in found.values()}) == 1


# ---- to_half


def halves(x):
    with np.errstate(over="ignore"):
        return x.astype(np.float16)


def assert_half(x):
    y, expected = ops.to_half(x), halves(x)
    assert (np.isnan(y) == np.isnan(expected)).all()
    finite = ~np.isnan(expected)
    assert (y.view(np.uint16) == expected.view(np.uint16))[finite].all()
    assert (np.signbit(y) == np.signbit(x)).all()


def test_to_half_is_that_of_numpy_for_special_numbers(isa):
    half = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32).view(np.uint32)
    # Each half, the floats around it, and around the middles between two.
    near = half[None] + np.array([[0], [1], [-1], [0x1000], [0x0FFF], [0x1001]]).astype(np.uint32)
    assert_half(near.view(np.float32))
    assert_half(SPECIAL.view(np.float32)[None])
    exponents = np.arange(512, dtype=np.uint32) << 23
    patterns = exponents[:, None] + np.array([0, 1, 0x3FFFFF, 0x400000, 0x400001, 0x7FFFFF], np.uint32)
    assert_half(patterns.view(np.float32))


def test_to_half_is_that_of_numpy_for_random_bits(isa, rng):
    assert_half(rng.integers(0, 2**32, (16, 1 << 14), np.uint32).view(np.float32))
    assert_half(rng.normal(size=(1, 1 << 16)).astype(np.float32))
    assert_half((rng.normal(size=(1, 1 << 16)) * 1e-6).astype(np.float32))


@pytest.mark.parametrize("n", LENGTHS)
def test_to_half_has_the_same_bits_everywhere(rng, n):
    x = rng.integers(0, 2**32, (2, n), np.uint32).view(np.float32)
    assert_same_bits(lambda: ops.to_half(x).view(np.uint16))


# ---- bad input


def test_other_arrays_are_refused():
    x = np.ones((2, 4), np.float32)
    for call in (lambda bad: ops.rms_norm(bad, x[0], 1e-5), lambda bad: ops.gate("silu", bad, x), ops.to_half):
        with pytest.raises(TypeError, match=r"x has dtype float64; it must be float32"):
            call(x.astype(np.float64))
        with pytest.raises(ValueError, match=r"x has shape \(4,\); it must have shape \(rows, cols\)"):
            call(x[0])
        with pytest.raises(ValueError, match=r"x has shape \(0, 4\); it needs at least one row and one column"):
            call(x[:0])


def test_a_gain_or_a_second_factor_that_does_not_fit_is_refused():
    x = np.ones((2, 4), np.float32)
    with pytest.raises(ValueError, match="gain has shape"):
        ops.rms_norm(x, np.ones(3, np.float32), 1e-5)
    for up in (x[:1], x[:, :3].copy()):
        with pytest.raises(ValueError, match="up has shape"):
            ops.gate("silu", x, up)
