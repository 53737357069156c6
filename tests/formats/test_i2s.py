"""I2_S: the three layouts, and telling them apart."""

import gguf_files
import numpy as np
import pytest

from bitnet import FormatError
from bitnet.formats import i2s


def stored(codes, scale=1.0, layout="x86"):
    return np.frombuffer(gguf_files.i2_s(codes, scale, layout)[2], np.uint8)


@pytest.mark.parametrize("layout", i2s.LAYOUTS)
def test_a_weight_is_read_as_it_was_written(rng, layout):
    codes = rng.integers(-1, 2, (8, 384)).astype(np.int8)
    data = stored(codes, 0.5, layout)
    assert (i2s.codes_of(data[:-32], 8, 384, layout, "file", "w") == codes).all()
    assert i2s.scale_of(data, "file", "w") == 0.5
    assert (i2s.zeros_of_columns(data[:-32], 8, 384, layout) == (codes == 0).sum(0)).all()
    assert (i2s.zeros_of_rows(data[:-32], 8, 384, layout) == (codes == 0).sum(1)).all()
    for other in set(i2s.LAYOUTS) - {layout}:
        assert (i2s.codes_of(data[:-32], 8, 384, other, "file", "w") != codes).any()


def test_rows_may_end_within_a_block():
    codes = np.arange(6 * 192).reshape(6, 192).astype(np.int8) % 3 - 1
    assert (i2s.codes_of(stored(codes)[:-32], 6, 192, "x86", "file", "w") == codes).all()


def test_packing_is_what_official_files_have(rng):
    codes = rng.integers(-1, 2, (4, 128)).astype(np.int8)
    assert i2s.pack(codes, 0.25).tobytes() == stored(codes, 0.25).tobytes()


def test_the_unused_code_is_zero():
    assert (i2s.codes_of(np.full(32, 255, np.uint8), 1, 128, "x86", "file", "w") == 0).all()


@pytest.mark.parametrize(
    ("layout", "rows", "cols", "needed"),
    [
        ("x86", 1, 64, "that 128 divides them"),
        ("arm", 1, 96, "that 64 divides them"),
        ("rows4", 6, 64, "that 4 divides"),
    ],
)
def test_a_weight_that_a_layout_cannot_hold_is_refused(layout, rows, cols, needed):
    with pytest.raises(FormatError, match=needed):
        i2s.codes_of(np.zeros(rows * cols // 4, np.uint8), rows, cols, layout, "file", "w")


def test_a_scale_that_is_no_number_is_refused():
    with pytest.raises(FormatError, match="it must be a finite number"):
        i2s.scale_of(stored(np.zeros((1, 128), np.int8), np.nan), "file", "w")


def uneven(rng, rows, cols, share):
    """Codes whose columns have the given shares of zeros."""
    return np.where(rng.random((rows, cols)) < share, 0, rng.choice([-1, 1], (rows, cols))).astype(np.int8)


def pairs(rng, layout, strength):
    """A weight whose zeros go with a gain, in a layout; as `GGUFCheckpoint` hands them to `detect`."""
    gain = rng.uniform(0.5, 1.5, 512)
    codes = uneven(rng, 256, 512, 0.4 + strength * (gain - 1))
    data = stored(codes, 1, layout)[:-32]
    return [(lambda one: i2s.zeros_of_columns(data, 256, 512, one), lambda _: gain)]


@pytest.mark.parametrize("layout", i2s.LAYOUTS)
def test_the_layout_is_detected_where_columns_differ(rng, layout):
    assert i2s.detect(pairs(rng, layout, 0.3)) == (layout, True)


@pytest.mark.parametrize("layout", i2s.LAYOUTS)
def test_the_layout_is_detected_by_the_rows_that_make_the_input(rng, layout):
    shares = rng.uniform(0.2, 0.7, 512)
    makes, takes = uneven(rng, 512, 384, shares[:, None]), uneven(rng, 256, 512, shares)
    made, taken = stored(makes, 1, layout)[:-32], stored(takes, 1, layout)[:-32]
    found = i2s.detect([(lambda one: i2s.zeros_of_columns(taken, 256, 512, one),
                         lambda one: i2s.zeros_of_rows(made, 512, 384, one))])  # fmt: skip
    assert found == (layout, True)


@pytest.mark.parametrize("layout", i2s.LAYOUTS)
def test_even_columns_leave_a_doubt_and_the_official_layout(rng, layout):
    assert i2s.detect(pairs(rng, layout, 0)) == ("x86", False)


def test_nothing_to_compare_leaves_a_doubt():
    assert i2s.detect([]) == ("x86", False)
