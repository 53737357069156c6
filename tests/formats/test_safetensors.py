"""The reader of safetensors: it reads what the library writes, and says of each thing that does not fit what it is."""

import json
import os
import re
import struct
import weakref

import numpy as np
import pytest
from checkpoints import header_of, safetensors_bytes, write_safetensors
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from bitnet import FormatError, ModelLoadError
from bitnet.formats.safetensors import DTYPES, HEADER_LIMIT, SafetensorsFile

DAMAGED = "; the file is damaged or cut short: get it again"


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "model.safetensors")


def written(path, content):
    with open(path, "wb") as file:
        file.write(content)
    return path


def refusal(path, content):
    """What is said of a file of these bytes, without its name."""
    with pytest.raises(FormatError) as caught:
        SafetensorsFile(written(path, content))
    file, _, rest = str(caught.value).partition(": ")
    assert file == f"'{path}'"
    return rest


def entry(dtype="F32", shape=(2,), span=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(span)}


# ---- what is read


@pytest.mark.parametrize(
    ("dtype", "name"),
    [("uint8", "U8"), ("int8", "I8"), ("uint16", "U16"), ("int16", "I16"), ("float16", "F16"), ("uint32", "U32"),
     ("int32", "I32"), ("float32", "F32"), ("uint64", "U64"), ("int64", "I64"), ("float64", "F64")],
)  # fmt: skip
def test_it_reads_what_the_library_writes(path, dtype, name, rng):
    array = rng.integers(0, 100, (3, 5)).astype(dtype)
    save_file({"a": array, "b": array[:1]}, path, metadata={"format": "np"})
    file = SafetensorsFile(path)
    assert file.metadata == {"format": "np"}
    assert file.tensors["a"].__dict__ == {
        "name": "a", "dtype": name, "shape": (3, 5), "nbytes": array.nbytes, "file": path,
    }  # fmt: skip
    assert file.raw("a").dtype == array.dtype
    np.testing.assert_array_equal(file.raw("a"), array)
    np.testing.assert_array_equal(file.raw("b"), array[:1])


def test_what_numpy_lacks_comes_as_integers(path):
    data = np.arange(6, dtype=np.uint16)
    write_safetensors(path, {"a": ("BF16", data)})
    np.testing.assert_array_equal(SafetensorsFile(path).raw("a"), data)
    for dtype in ("BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"):
        written(path, safetensors_bytes({"a": entry(dtype, (2,), (0, 2))}, b"\x02\xff"))
        assert SafetensorsFile(path).raw("a").tolist() == [2, 255]


def test_a_tensor_is_a_read_only_view_of_the_file(path):
    write_safetensors(path, {"a": ("F32", np.zeros((2, 3), np.float32))})
    file = SafetensorsFile(path)
    view = file.raw("a")
    assert not view.flags.writeable
    assert not view.flags.owndata
    with open(path, "r+b") as other:  # a view sees what the file has
        other.seek(-4, os.SEEK_END)
        other.write(struct.pack("<f", 7))
    assert view[1, 2] == 7


def test_data_need_not_be_aligned(path):
    header = {"a": entry("U8", (1,), (0, 1)), "b": entry("F32", (2,), (1, 9))}
    file = SafetensorsFile(written(path, safetensors_bytes(header, b"\x05" + struct.pack("<2f", 1, -2))))
    assert file.raw("a").tolist() == [5]
    assert file.raw("b").tolist() == [1, -2]


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (0, 2**62 // 4)])
def test_shapes_without_and_with_no_elements(path, shape):
    nbytes = 4 if shape == () else 0
    file = SafetensorsFile(written(path, safetensors_bytes({"a": entry("F32", shape, (0, nbytes))}, bytes(nbytes))))
    assert file.raw("a").shape == shape
    assert file.tensors["a"].nbytes == nbytes


def test_the_order_in_the_header_is_free(path):
    header = {"b": entry(span=(8, 16)), "none": entry(shape=(0,), span=(8, 8)), "a": entry()}
    file = SafetensorsFile(written(path, safetensors_bytes(header, struct.pack("<4f", 1, 2, 3, 4))))
    assert list(file.tensors) == ["b", "none", "a"]
    assert (file.raw("a").tolist(), file.raw("b").tolist()) == ([1, 2], [3, 4])


def test_a_file_may_have_no_tensors(path):
    assert SafetensorsFile(written(path, safetensors_bytes({}))).tensors == {}


def test_the_header_may_be_padded(path):
    assert SafetensorsFile(written(path, safetensors_bytes(b"{}      "))).tensors == {}


@given(st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"])).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(["U8", "F16", "BF16", "F32", "F64"]), st.lists(st.integers(0, 4), max_size=3)),
    max_size=6,
))  # fmt: skip
def test_any_names_and_shapes_are_read_back(tmp_path, tensors):
    header, size = header_of(tensors)
    data = bytes(np.arange(size, dtype=np.uint8))
    file = SafetensorsFile(written(tmp_path / "any", safetensors_bytes(header, data)))
    assert {name: (info.dtype, list(info.shape)) for name, info in file.tensors.items()} == tensors
    assert b"".join(file.raw(name).tobytes() for name in file.tensors) == data


# ---- closing


def test_views_outlive_the_file(path):
    write_safetensors(path, {"a": ("F32", np.arange(3, dtype=np.float32))})
    file = SafetensorsFile(path)
    view = file.raw("a")
    file.close()
    file.close()
    os.remove(path)
    assert view.tolist() == [0, 1, 2]
    with pytest.raises(ModelLoadError) as caught:
        file.raw("a")
    assert str(caught.value) == f"cannot read '{path}': it was closed; open it again"


def test_the_mapping_goes_with_the_last_view(path):
    write_safetensors(path, {"a": ("F32", np.arange(3, dtype=np.float32))})
    file = SafetensorsFile(path)
    mapping = weakref.ref(file._map)
    view = file.raw("a")[1:]
    file.close()
    assert mapping() is not None
    del view
    assert mapping() is None


# ---- what is refused

ONE = "one of " + ", ".join(DTYPES)
SIZES = "a list of at most 32 sizes"
SPAN = "the first byte and the one after the last"

# (header, data, what is said)
REFUSED = [
    ([1], b"", "the header is [1]; it must be a JSON object"),
    ({"__metadata__": {"a": 1}}, b"", "'__metadata__' of the header is {'a': 1}; it must be an object of strings"),
    ({"__metadata__": "a"}, b"", "'__metadata__' of the header is 'a'; it must be an object of strings"),
    ({"a": 5}, b"", "the entry 'a' is 5; it must be an object"),
    ({"a": {}}, b"", f"the dtype of 'a' is None; it must be {ONE}"),
    ({"a": entry("Q4")}, bytes(8), f"the dtype of 'a' is 'Q4'; it must be {ONE}"),
    ({"a": entry(["F32"])}, bytes(8), f"the dtype of 'a' is ['F32']; it must be {ONE}"),
    ({"a": {**entry(), "shape": 2}}, bytes(8), f"the shape of 'a' is 2; it must be {SIZES}"),
    ({"a": entry(shape=[2.0])}, bytes(8), f"the shape of 'a' is [2.0]; it must be {SIZES}"),
    ({"a": entry(shape=[True, 2])}, bytes(8), f"the shape of 'a' is [True, 2]; it must be {SIZES}"),
    ({"a": entry(shape=[-1, -2])}, bytes(8), f"the shape of 'a' is [-1, -2]; it must be {SIZES}"),
    ({"a": entry(shape=[1] * 33)}, bytes(8), f"the shape of 'a' is [1, 1, 1, 1, 1, 1, ...]; it must be {SIZES}"),
    ({"a": entry(shape=[2**63])}, bytes(8), f"the shape of 'a' is [{2**63}]; it must be {SIZES}"),
    ({"a": entry(shape=[2**32, 2**30, 2])}, bytes(8),
     f"the shape of 'a' is [{2**32}, {2**30}, 2]; it must be that of a tensor below 2**63 bytes"),
    ({"a": entry(shape=[2**62, 0], span=[0, 0])}, b"",
     f"the shape of 'a' is [{2**62}, 0]; it must be that of a tensor below 2**63 bytes"),
    ({"a": {**entry(), "data_offsets": None}}, bytes(8), f"data_offsets of 'a' is None; it must be {SPAN}"),
    ({"a": entry(span=[0, 8, 16])}, bytes(8), f"data_offsets of 'a' is [0, 8, 16]; it must be {SPAN}"),
    ({"a": entry(span=[-8, 0])}, bytes(8), f"data_offsets of 'a' is [-8, 0]; it must be {SPAN}"),
    ({"a": entry(span=[8, 0])}, bytes(8), f"data_offsets of 'a' is [8, 0]; it must be {SPAN}"),
    ({"a": entry(span=["0", "8"])}, bytes(8), f"data_offsets of 'a' is ['0', '8']; it must be {SPAN}"),
    ({"a": entry(span=[0, 2**64])}, bytes(8), f"data_offsets of 'a' is [0, {2**64}]; it must be {SPAN}"),
    ({"a": entry(shape=[3])}, bytes(8),
     "data_offsets of 'a' is [0, 8]; it must be 12 bytes long, as F32 of shape (3,) is"),
    ({"a": entry(), "b": entry(span=[4, 12])}, bytes(12),
     "data_offsets of 'b' is [4, 12]; it must be from 8 on, where the tensor before ends: tensors neither overlap nor "
     "leave gaps"),
    ({"a": entry(), "b": entry(span=[12, 20])}, bytes(20),
     "data_offsets of 'b' is [12, 20]; it must be from 8 on, where the tensor before ends: tensors neither overlap nor "
     "leave gaps"),
    ({"a": entry(span=[4, 12])}, bytes(12),
     "data_offsets of 'a' is [4, 12]; it must be from 0 on, where the tensor before ends: tensors neither overlap nor "
     "leave gaps"),
    ({"a": entry()}, bytes(7), "data_offsets of 'a' is [0, 8]; it must be within the data, which has 7 bytes"),
    ({"a": entry()}, bytes(9), "the size of the data is 9; it must be 8 bytes, which is where the last tensor ends"),
    ({}, bytes(1), "the size of the data is 1; it must be 0 bytes, which is where the last tensor ends"),
    ({"a\n'": 5}, b"", 'the entry "a\\n\'" is 5; it must be an object'),
    (b'{"a": 1, "a": 2}', b"", "a name that comes twice in the header is 'a'; it must be there once"),
    (b'{"a": {"dtype": "F32", "dtype": "U8"}}', b"",
     "a name that comes twice in the header is 'dtype'; it must be there once"),
    (b'{"a": ' + b"[" * 80 + b"]" * 80 + b"}", b"", "the depth of the header is 81; it must be at most 64"),
]  # fmt: skip


@pytest.mark.parametrize(("header", "data", "said"), REFUSED)
def test_what_does_not_fit_is_said(path, header, data, said):
    assert refusal(path, safetensors_bytes(header, data)).removesuffix(DAMAGED) == said


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b"{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b'{"a": 1}x', "Extra data: line 1 column 9 (char 8)"),
        (b'{"\xff": 1}', "'utf-8' codec can't decode byte 0xff in position 2: invalid start byte"),
        (b"{}".decode().encode("utf-16"), "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b'{"a": ' + b"[" * 100_000, "maximum recursion depth exceeded.*"),
        (b'{"a": ' + b"1" * 5000 + b"}", "Exceeds the limit .*"),
    ],
)  # fmt: skip
def test_a_header_that_is_no_json_is_said(path, text, reason):
    said = refusal(path, safetensors_bytes(text))
    start, end = "the header is not JSON (", "); the file is damaged: get it again"
    assert said.startswith(start)
    assert said.endswith(end)
    found = said[len(start) : -len(end)]
    assert found == reason or re.fullmatch(reason, found)


@pytest.mark.parametrize("length", [3, 100, 2**31, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file_is_not_looked_for(path, length):
    assert refusal(path, safetensors_bytes(b"{}", length=length)) == (
        f"the length of the header is {length}; it must be at most 2 bytes, which is what follows{DAMAGED}"
    )


def test_the_header_has_a_limit(path):
    length = HEADER_LIMIT + 1
    written(path, length.to_bytes(8, "little"))
    os.truncate(path, 8 + length)  # no disk is used
    with pytest.raises(FormatError) as caught:
        SafetensorsFile(path)
    assert str(caught.value) == (
        f"'{path}': the length of the header is 100000001; it must be at most 100000000 bytes{DAMAGED}"
    )


@pytest.mark.parametrize("size", range(8))
def test_a_file_too_short_for_a_length_is_refused(path, size):
    assert refusal(path, bytes(size)) == f"the size of the file is {size}; it must be at least 8 bytes{DAMAGED}"


def test_long_names_are_shortened_in_messages(path):
    said = refusal(path, safetensors_bytes({"a" * 100_000: {"dtype": "b" * 100_000}}))
    assert len(said) < 700


def test_what_cannot_be_read_is_said(tmp_path):
    for path, reason in [(tmp_path, "Is a directory"), (tmp_path / "none", "No such file or directory")]:
        with pytest.raises(ModelLoadError) as caught:
            SafetensorsFile(str(path))
        assert str(caught.value) == f"cannot read '{path}': {reason}"
        assert isinstance(caught.value.__cause__, OSError)


def test_opening_reads_the_header_only(path):
    size = 3 << 30
    header = json.dumps({"a": entry("U8", (size,), (0, size))}).encode()
    written(path, safetensors_bytes(header))
    os.truncate(path, 8 + len(header) + size)  # a hole: reading it would show as memory
    file = SafetensorsFile(path)
    assert file.raw("a").shape == (size,)
    assert file.raw("a")[-1] == 0
