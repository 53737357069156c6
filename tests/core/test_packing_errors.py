"""What packing refuses, and every sentence it says then."""

import re

import numpy as np
import pytest

import bitnet
from bitnet._core import packing as packings
from bitnet._core.packing import from_packed_bytes, pack_codes, pack_hugging_face_bytes, pack_numbers
from bitnet.errors import ConfigurationError, KernelError, QuantizationError, ShapeError, TensorError

# Each way to make a weight of 4 rows and 2 columns: called with a scale, a packing, and keywords.
MAKERS = [
    pytest.param(lambda *a, **k: pack_codes(np.ones((4, 2), np.int8), *a, **k), id="codes"),
    pytest.param(lambda *a, **k: pack_hugging_face_bytes(np.zeros((1, 2), np.uint8), *a, **k), id="hugging_face"),
    pytest.param(lambda *a, **k: from_packed_bytes(np.full(64, 0x55, np.uint8), 4, 2, *a, **k), id="packed"),
]


def exactly(sentence):
    return f"^{re.escape(sentence)}$"


# ---- codes ----


@pytest.mark.parametrize("value", [2, -2, 3, 127, -127, -128])
@pytest.mark.parametrize("index", [(0, 0), (0, 1299), (16, 7), (39, 0), (20, 1280), (39, 1299)])
def test_the_place_of_a_code_that_is_not_ternary_is_told(packing, value, index, rng):
    codes = rng.integers(-1, 2, (40, 1300), np.int8)
    codes[index] = value
    sentence = f"codes has {value} at index {index}; ternary codes are -1, 0 and 1"
    for threads in (1, 3):
        with pytest.raises(QuantizationError, match=exactly(sentence)):
            pack_codes(codes, 1.0, packing, num_threads=threads)


def test_of_several_codes_that_are_not_ternary_the_first_is_told(packing):
    codes = np.zeros((40, 30), np.int8)
    codes[39, 0], codes[2, 29], codes[2, 28] = 5, 6, -7
    sentence = "codes has -7 at index (2, 28); ternary codes are -1, 0 and 1"
    with pytest.raises(QuantizationError, match=exactly(sentence)):
        pack_codes(codes, 1.0, packing)


@pytest.mark.parametrize("quarter", [1, 5, 16, 17])
@pytest.mark.parametrize("field", [0, 1, 2, 3])
def test_the_place_of_the_unused_code_is_told(packing, quarter, field, rng):
    data = np.zeros((quarter, 1290), np.uint8)
    for k in range(4):
        data |= rng.integers(0, 3, data.shape, np.uint8) << np.uint8(2 * k)
    for row, col in ((0, 0), (quarter - 1, 1289), (quarter // 2, 1283)):
        broken = data.copy()
        broken[row, col] |= 3 << (2 * field)
        sentence = (
            f"data has the unused 2-bit code 3 for the weight at index ({field * quarter + row}, {col}); "
            "the bytes are damaged or are not packed ternary weights"
        )
        for threads in (1, 3):
            with pytest.raises(QuantizationError, match=exactly(sentence)):
                pack_hugging_face_bytes(broken, 1.0, packing, num_threads=threads)


SOURCES = [
    pytest.param(lambda array: pack_codes(array, 1.0, "i2"), "codes", np.int8, id="codes"),
    pytest.param(lambda array: pack_hugging_face_bytes(array, 1.0, "i2"), "data", np.uint8, id="hugging_face"),
    pytest.param(lambda array: pack_numbers(array, np.float32(1), "i2"), "w", np.float32, id="numbers"),
]


@pytest.mark.parametrize(("pack", "name", "dtype"), SOURCES)
class TestSources:
    def test_a_list_is_no_array(self, pack, name, dtype):
        with pytest.raises(TensorError, match=exactly(f"{name} must be a NumPy array, not list")):
            pack([[0, 1]])

    def test_another_dtype_is_named(self, pack, name, dtype):
        needed = np.dtype(dtype)
        sentence = f"{name} has dtype int16; it must be {needed} (convert it with .astype(np.{needed}))"
        with pytest.raises(TensorError, match=exactly(sentence)):
            pack(np.zeros((2, 2), np.int16))

    def test_gaps_between_the_elements_are_refused(self, pack, name, dtype):
        size = np.dtype(dtype).itemsize
        sentence = f"{name} of shape (2, 3) is not C-contiguous (strides ({size}, {2 * size})); "
        with pytest.raises(TensorError, match=exactly(sentence + "pass np.ascontiguousarray of it")):
            pack(np.zeros((3, 2), dtype).T)

    @pytest.mark.parametrize("shape", [(), (4,), (1, 2, 3)])
    def test_only_matrices_are_weights(self, pack, name, dtype, shape):
        with pytest.raises(ShapeError, match=exactly(f"{name} has shape {shape}; it must have shape (rows, cols)")):
            pack(np.zeros(shape, dtype))

    @pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
    def test_a_weight_has_rows_and_columns(self, pack, name, dtype, shape):
        sentence = f"{name} has shape {shape}; it needs at least one row and one column"
        with pytest.raises(ShapeError, match=exactly(sentence)):
            pack(np.zeros(shape, dtype))


# ---- packed bytes ----


@pytest.mark.parametrize(("packing_name", "nbytes"), [("i2", 2 * 3 * 64), ("t5", 2 * 2 * 64)])
def test_packed_bytes_of_another_size_are_refused(packing_name, nbytes):
    for wrong in (0, nbytes - 1, nbytes + 1, 2 * nbytes):
        with pytest.raises(ShapeError, match=exactly(f"data has shape ({wrong},); it must be ({nbytes},)")):
            from_packed_bytes(np.zeros(wrong, np.uint8), 17, 33, 1.0, packing_name)
    with pytest.raises(ShapeError, match=exactly(f"data has shape (1, {nbytes}); it must be ({nbytes},)")):
        from_packed_bytes(np.zeros((1, nbytes), np.uint8), 17, 33, 1.0, packing_name)


@pytest.mark.parametrize(("rows", "cols"), [(0, 1), (1, 0), (-1, 1), (1, -16)])
def test_packed_bytes_without_rows_or_columns_are_refused(packing, rows, cols):
    sentence = f"data has shape ({rows}, {cols}); it needs at least one row and one column"
    with pytest.raises(ShapeError, match=exactly(sentence)):
        from_packed_bytes(np.zeros(64, np.uint8), rows, cols, 1.0, packing)


def test_packed_bytes_are_bytes(packing):
    with pytest.raises(TensorError, match=exactly("data must be a NumPy array, not bytes")):
        from_packed_bytes(bytes(64), 1, 1, 1.0, packing)
    with pytest.raises(TensorError, match=r"^data has dtype int8; it must be uint8 "):
        from_packed_bytes(np.zeros(64, np.int8), 1, 1, 1.0, packing)


# ---- scales ----


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(("bad", "name"), [(np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_a_scale_that_is_not_finite_is_refused(packing, make, bad, name):
    with pytest.raises(QuantizationError, match=exactly(f"scale is {name}; a scale must be a finite number")):
        make(bad, packing)
    for index in range(4):
        scale = np.ones(4)
        scale[index] = bad
        sentence = f"scale is {name} at index ({index}); a scale must be a finite number"
        with pytest.raises(QuantizationError, match=exactly(sentence)):
            make(scale, packing)


def test_a_group_scale_that_is_not_finite_is_refused():
    scale = np.ones((4, 3))
    scale[2, 1] = scale[3, 2] = np.nan
    sentence = "scale is NaN at index (2, 1); a scale must be a finite number"
    with pytest.raises(QuantizationError, match=exactly(sentence)):
        pack_codes(np.ones((4, 130), np.int8), scale, "i2", 64)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("shape", [(2,), (5,), (0,), (4, 1), (1, 4), (1, 1), (2, 2)])
def test_a_scale_of_another_shape_is_refused(packing, make, shape):
    with pytest.raises(ShapeError, match=exactly(f"scale has shape {shape}; it must be () or (4,)")):
        make(np.ones(shape), packing)


@pytest.mark.parametrize("shape", [(), (1,), (4,), (4, 2), (4, 4), (3, 4), (12,)])
def test_group_scales_of_another_shape_are_refused(shape):
    with pytest.raises(ShapeError, match=exactly(f"scale has shape {shape}; it must be (4, 3)")):
        pack_codes(np.ones((4, 130), np.int8), np.ones(shape), "i2", 64)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(("scale", "name"), [("large", "str"), ({"scale": 1}, "dict"), (object(), "object")])
def test_a_scale_that_is_no_number_is_refused(packing, make, scale, name):
    with pytest.raises(TensorError, match=exactly(f"scale must be a number or an array of numbers, not {name}")):
        make(scale, packing)


# ---- groups, packings, threads ----


@pytest.mark.parametrize("group_size", [0, 1, 32, 63, 256, -64, True, "64", 1.5])
def test_only_some_group_sizes_are_known(packing, group_size):
    sentence = f"group_size is {group_size!r}; it must be one of 64, 128"
    with pytest.raises(ConfigurationError, match=exactly(sentence)):
        pack_codes(np.ones((4, 130), np.int8), np.ones((4, 3)), packing, group_size)


def test_a_numpy_integer_is_a_group_size():
    packed = pack_codes(np.ones((4, 130), np.int8), np.ones((4, 3)), "i2", np.int32(64))
    assert type(packed.group_size) is int
    assert packed.group_size == 64


@pytest.mark.parametrize("group_size", [64, 128])
def test_a_packing_that_cannot_have_groups_names_one_that_can(group_size):
    sentence = (
        f"packing 't5' stores 20 columns a tile, so groups of {group_size} columns cannot have scales of their own; "
        "use packing 'i2'"
    )
    with pytest.raises(KernelError, match=exactly(sentence)):
        pack_codes(np.ones((4, 128), np.int8), np.ones((4, 128 // group_size)), "t5", group_size)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("name", ["tl1", "I2", "", "auto", None, 2, ["i2"]])
def test_an_unknown_packing_is_refused(make, name):
    with pytest.raises(KernelError, match=exactly(f"no packing is known as {name!r} (known: i2, t5)")):
        make(1.0, name)


def test_an_unknown_packing_has_no_kernel_and_no_tile():
    for function in (packings.kernel_name, packings.tile_cols):
        with pytest.raises(KernelError, match=exactly("no packing is known as 'q4' (known: i2, t5)")):
            function("q4")


@pytest.mark.parametrize("count", [0, True, 1.5, "2", 2000])
def test_what_is_no_number_of_threads_is_refused(packing, count):
    weight = pack_codes(np.ones((4, 2), np.int8), 1.0, packing)
    calls = [
        lambda: pack_codes(np.ones((4, 2), np.int8), 1.0, packing, num_threads=count),
        lambda: pack_hugging_face_bytes(np.zeros((1, 2), np.uint8), 1.0, packing, num_threads=count),
        lambda: pack_numbers(np.ones((4, 2), np.float32), np.float32(1), packing, num_threads=count),
        lambda: weight.unpack(num_threads=count),
    ]
    for call in calls:
        sentence = f"num_threads is {count!r}; it must be a whole number of threads from 1 to 1024"
        with pytest.raises(ConfigurationError, match=exactly(sentence)):
            call()


DAMAGED = [
    ("i2", 0xFF),  # four codes 3
    ("i2", 0x57),
    ("t5", 0x80),
    ("t5", 10),  # between two numbers of five digits
]


@pytest.mark.parametrize(("packing_name", "byte"), DAMAGED)
@pytest.mark.parametrize("at", [0, 70, 383])
def test_packed_bytes_that_packing_does_not_write_are_refused(packing_name, byte, at):
    data = pack_codes(np.zeros((17, 40), np.int8), 1.0, packing_name).packed_bytes.copy()
    at %= len(data)
    data[at] = byte
    sentence = (
        f"data is not what packing '{packing_name}' writes for a 17 x 40 weight (byte {at} is the first that "
        "cannot be); the bytes are damaged"
    )
    with pytest.raises(QuantizationError, match=exactly(sentence)):
        from_packed_bytes(data, 17, 40, 1.0, packing_name)


def test_packed_bytes_with_weights_beyond_the_last_column_are_refused(packing):
    data = pack_codes(np.ones((16, 16), np.int8), 1.0, packing).packed_bytes
    with pytest.raises(QuantizationError, match="the bytes are damaged"):
        from_packed_bytes(data, 16, 15, 1.0, packing)


@pytest.mark.parametrize("rows", [2**63 - 1, 2**62 + 1])
def test_rows_beyond_any_address_are_a_memory_error(packing, rows):
    with pytest.raises(bitnet.MemoryError, match=f"cannot allocate {rows} x 1 bytes for a packed weight"):
        from_packed_bytes(np.zeros(64, np.uint8), rows, 1, 1.0, packing)


@pytest.mark.parametrize("scale", [1e300, -1e39])
def test_a_scale_beyond_float32_is_told_without_a_warning(packing, scale):
    with pytest.raises(QuantizationError, match=r"scale is -?inf; a scale must be a finite number"):
        pack_codes(np.zeros((2, 2), np.int8), scale, packing)


def test_a_complex_scale_is_refused(packing):
    with pytest.raises(TensorError, match="scale must be a number or an array of numbers, not complex"):
        pack_codes(np.zeros((2, 2), np.int8), 1j, packing)


def test_an_array_at_odd_addresses_is_refused():
    x = np.frombuffer(bytes(4 * 6 + 1), np.uint8)[1:].view(np.float32).reshape(2, 3)
    with pytest.raises(TensorError, match="w does not lie at addresses fit for float32; pass a copy of it"):
        pack_numbers(x, np.float32(1), "i2")


@pytest.mark.parametrize("scale", [None, 10**400, "2.5", b"2.5", np.datetime64(5, "s"), True, [1, "2"], [[1], [1, 2]]])
def test_a_scale_of_something_else_than_numbers_is_refused(packing, scale):
    with pytest.raises(TensorError, match=f"scale must be a number or an array of numbers, not {type(scale).__name__}"):
        pack_codes(np.zeros((2, 2), np.int8), scale, packing)


def test_nobody_can_change_a_weight(packing):
    packed = pack_codes(np.ones((20, 20), np.int8), [2.0] * 20, packing)
    for view in (packed.scale, packed.packed_bytes):
        with pytest.raises(ValueError, match="cannot set WRITEABLE"):
            view.flags.writeable = True
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 0


@pytest.mark.parametrize("make", [np.asmatrix, np.ma.masked_array])
@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_matrices_and_masked_arrays_are_refused(packing, make):
    codes = make(np.zeros((2, 2), np.int8))
    with pytest.raises(TensorError, match=f"codes must be a NumPy array, not {type(codes).__name__}"):
        pack_codes(codes, 1.0, packing)
