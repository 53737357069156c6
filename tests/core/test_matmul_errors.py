"""What products refuse, and every sentence they say then."""

import re

import numpy as np
import pytest
import reference

from bitnet._core import packing as packings
from bitnet._core.matmul import matmul, matmul_int
from bitnet._core.packing import PackedWeight, pack_codes
from bitnet.errors import ConfigurationError, QuantizationError, ShapeError, TensorError

ROWS, COLS = 5, 3

# function, the dtype it takes, the dtype it gives
FUNCTIONS = [
    pytest.param(matmul, np.float32, np.float32, id="matmul"),
    pytest.param(matmul_int, np.int8, np.int32, id="matmul_int"),
]


def exactly(sentence):
    return f"^{re.escape(sentence)}$"


@pytest.fixture
def weight(packing):
    codes = np.arange(ROWS * COLS).reshape(ROWS, COLS).astype(np.int8) % 3 - 1
    return pack_codes(codes.astype(np.int8), 0.5, packing)


@pytest.mark.parametrize(("function", "taken", "given"), FUNCTIONS)
class TestInputs:
    @pytest.mark.parametrize("wrong", [np.float64, np.float16, np.int32, np.uint8, np.bool_])
    def test_another_dtype_is_named(self, weight, function, taken, given, wrong):
        needed, got = np.dtype(taken), np.dtype(wrong)
        sentence = f"x has dtype {got}; it must be {needed} (convert it with .astype(np.{needed}))"
        with pytest.raises(TensorError, match=exactly(sentence)):
            function(weight, np.zeros((2, COLS), wrong))

    @pytest.mark.parametrize(("array", "name"), [([[1, 2, 3]], "list"), (None, "NoneType"), (1.5, "float")])
    def test_what_is_no_array_is_named(self, weight, function, taken, given, array, name):
        with pytest.raises(TensorError, match=exactly(f"x must be a NumPy array, not {name}")):
            function(weight, array)

    def test_gaps_between_the_elements_are_refused(self, weight, function, taken, given):
        size = np.dtype(taken).itemsize
        sentence = f"x of shape (2, 3) is not C-contiguous (strides ({6 * size}, {2 * size})); "
        with pytest.raises(TensorError, match=exactly(sentence + "pass np.ascontiguousarray of it")):
            function(weight, np.zeros((2, 2 * COLS), taken)[:, ::2])

    def test_fortran_order_is_refused(self, weight, function, taken, given):
        size = np.dtype(taken).itemsize
        sentence = f"x of shape (2, 3) is not C-contiguous (strides ({size}, {2 * size})); "
        with pytest.raises(TensorError, match=exactly(sentence + "pass np.ascontiguousarray of it")):
            function(weight, np.zeros((2, COLS), taken, order="F"))

    def test_a_single_number_is_refused(self, weight, function, taken, given):
        with pytest.raises(ShapeError, match=exactly("x has shape (); it must have shape (..., cols)")):
            function(weight, np.zeros((), taken))

    @pytest.mark.parametrize(("shape", "got"), [((4,), 4), ((2, 2), 2), ((0, 4), 4), ((3, 0), 0), ((3, 1), 1)])
    def test_other_columns_than_those_of_the_weight_are_refused(self, weight, function, taken, given, shape, got):
        sentence = f"cannot multiply a 5 x 3 ternary weight: the weight has 3 columns, the input {got}"
        with pytest.raises(ShapeError, match=exactly(sentence)):
            function(weight, np.zeros(shape, taken))

    @pytest.mark.parametrize("no_weight", [None, np.ones((ROWS, COLS), np.int8)])
    def test_only_packed_weights_can_be_multiplied(self, function, taken, given, no_weight):
        with pytest.raises(TypeError, match=r"^Argument 'weight' "):
            function(no_weight, np.zeros(COLS, taken))

    @pytest.mark.parametrize("count", [0, -1, 1025, 2000, 10**30, True, False, 1.5, 2.0, "2", [2]])
    def test_what_is_no_number_of_threads_is_refused(self, weight, function, taken, given, count):
        sentence = f"num_threads is {count!r}; it must be a whole number of threads from 1 to 1024"
        with pytest.raises(ConfigurationError, match=exactly(sentence)):
            function(weight, np.zeros((2, COLS), taken), num_threads=count)

    def test_a_numpy_integer_is_a_number_of_threads(self, weight, function, taken, given):
        assert function(weight, np.zeros((2, COLS), taken), num_threads=np.int64(2)).shape == (2, ROWS)


def test_another_byte_order_is_refused(weight):
    sentence = "x has dtype >f4; it must be float32 (convert it with .astype(np.float32))"
    with pytest.raises(TensorError, match=exactly(sentence)):
        matmul(weight, np.zeros((2, COLS), ">f4"))


@pytest.mark.parametrize(("function", "taken", "given"), FUNCTIONS)
class TestOutputs:
    def test_another_dtype_is_named(self, weight, function, taken, given):
        needed = np.dtype(given)
        sentence = f"out has dtype float64; it must be {needed} (convert it with .astype(np.{needed}))"
        with pytest.raises(TensorError, match=exactly(sentence)):
            function(weight, np.zeros((2, COLS), taken), out=np.zeros((2, ROWS)))

    def test_another_byte_order_is_refused(self, weight, function, taken, given):
        other = np.dtype(given).newbyteorder()
        needed = np.dtype(given)
        sentence = f"out has dtype {other}; it must be {needed} (convert it with .astype(np.{needed}))"
        with pytest.raises(TensorError, match=exactly(sentence)):
            function(weight, np.zeros((2, COLS), taken), out=np.zeros((2, ROWS), other))

    def test_a_list_is_no_array(self, weight, function, taken, given):
        with pytest.raises(TensorError, match=exactly("out must be a NumPy array, not list")):
            function(weight, np.zeros((2, COLS), taken), out=[[0] * ROWS] * 2)

    @pytest.mark.parametrize("shape", [(2, ROWS - 1), (1, ROWS), (2 * ROWS,), (1, 2, ROWS), ()])
    def test_another_shape_is_refused(self, weight, function, taken, given, shape):
        with pytest.raises(ShapeError, match=exactly(f"out has shape {shape}; it must be (2, 5)")):
            function(weight, np.zeros((2, COLS), taken), out=np.zeros(shape, given))

    def test_gaps_between_the_elements_are_refused(self, weight, function, taken, given):
        sentence = "out of shape (2, 5) is not C-contiguous (strides (40, 8)); pass np.ascontiguousarray of it"
        with pytest.raises(TensorError, match=exactly(sentence)):
            function(weight, np.zeros((2, COLS), taken), out=np.zeros((2, 2 * ROWS), given)[:, ::2])

    def test_read_only_memory_is_not_written(self, weight, function, taken, given):
        out = np.full((2, ROWS), 7, given)
        out.flags.writeable = False
        sentence = "out is read-only, and the result is to be written there; pass a writable array"
        with pytest.raises(TensorError, match=exactly(sentence)):
            function(weight, np.ones((2, COLS), taken), out=out)
        assert (out == 7).all()

    def test_the_memory_of_the_input_is_not_written(self, weight, function, taken, given):
        memory = np.zeros(256, np.uint8)
        x, out = memory[8:20].view(taken)[:COLS], memory[:20].view(given)
        with pytest.raises(TensorError, match=exactly("out shares memory with an input; pass an array of its own")):
            function(weight, x, out=out)
        assert not memory.any()


@pytest.mark.parametrize(("bad", "name"), [(np.nan, "NaN"), (-np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "-inf")])
@pytest.mark.parametrize("position", [0, 1, 31, 63, 64, 127, 128, 149])
def test_the_place_of_what_is_not_finite_is_told_and_out_stays(packing, isa, position, bad, name):
    weight = pack_codes(np.ones((17, 150), np.int8), 0.5, packing)
    for shape, leading in (((150,), ()), ((4, 150), (2,)), ((2, 3, 150), (1, 2))):
        x = np.ones(shape, np.float32)
        x[(*leading, position)] = bad
        out = np.full((*shape[:-1], 17), 7, np.float32)
        where = ", ".join(str(i) for i in (*leading, position))
        sentence = f"x has {name} at index ({where}); only finite numbers can be quantised"
        for threads in (1, 3):
            with pytest.raises(QuantizationError, match=exactly(sentence)):
                matmul(weight, x, out=out, num_threads=threads)
            assert (out == 7).all()


def test_of_several_numbers_that_are_not_finite_the_first_is_told(packing, isa):
    weight = pack_codes(np.ones((17, 70), np.int8), 0.5, packing)
    x = np.ones((2000, 70), np.float32)
    x[1999, 0], x[1200, 69], x[1200, 3] = np.nan, np.nan, -np.inf
    for threads in (1, 2, 5):
        with pytest.raises(QuantizationError, match=re.escape("x has -inf at index (1200, 3);")) as caught:
            matmul(weight, x, num_threads=threads)
        assert caught.value.facts["index"] == (1200, 3)


def test_groups_of_columns_tell_the_place_too(isa):
    weight = pack_codes(np.ones((17, 150), np.int8), np.ones((17, 3)), "i2", 64)
    x = np.ones((3, 150), np.float32)
    x[1, 140] = np.nan
    with pytest.raises(QuantizationError, match=re.escape("x has NaN at index (1, 140);")):
        matmul(weight, x)


def test_a_product_after_a_refused_one_is_right(packing, isa, rng):
    codes = rng.integers(-1, 2, (40, 90), np.int8)
    weight = pack_codes(codes, 0.5, packing)
    x = rng.standard_normal((9, 90)).astype(np.float32)
    broken = x.copy()
    broken[4, 4] = np.nan
    with pytest.raises(QuantizationError):
        matmul(weight, broken)
    np.testing.assert_array_equal(matmul(weight, x), reference.matmul(codes, 0.5, x))


def test_a_packed_weight_is_not_made_by_hand():
    with pytest.raises(TypeError, match=exactly("a PackedWeight is made by the functions of bitnet._core.packing")):
        PackedWeight()


def test_the_attributes_of_a_packed_weight_cannot_be_set(weight):
    for name in ("rows", "cols", "scale", "group_size", "packing", "nbytes", "packed_bytes", "anything"):
        with pytest.raises(AttributeError):
            setattr(weight, name, 1)
    assert packings.tile_cols(weight.packing) in (16, 20)
