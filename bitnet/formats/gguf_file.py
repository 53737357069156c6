"""A reader of GGUF files that believes nothing.

A file is ``GGUF``, a version (2 and 3 are alike), the number of tensors and of metadata values; then the values, each
a key, a type and what belongs to it; then of each tensor a name, its dimensions (the contiguous one first), a type and
an offset; then the data, which like every tensor begins at a multiple of ``general.alignment``. Numbers are
little-endian.

Every count is checked against the bytes that are left before anything is made of it, so that memory is bounded by the
file's size. Opening costs the header only: the file is mapped, and a tensor is read when it is looked at.

References
----------
.. [1] ggml-org/ggml, docs/gguf.md.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitnet.errors import ModelLoadError
from bitnet.formats.base import DAMAGED, mapped, need, quoted, released
from bitnet.formats.ggml import BY_NUMBER, I2_S, TYPES, Type
from bitnet.formats.i2s import TAIL

__all__ = ["GGUFFile", "GGUFTensor"]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
MAX_DIMENSIONS = 4
MAX_KEY = 65535  # bytes, as in [1]
ADDRESSES = 2**63

# How a value is written: its format for `struct` and its size.
SCALARS = {0: ("<B", 1), 1: ("<b", 1), 2: ("<H", 2), 3: ("<h", 2), 4: ("<I", 4), 5: ("<i", 4), 6: ("<f", 4),
           7: ("<?", 1), 10: ("<Q", 8), 11: ("<q", 8), 12: ("<d", 8)}  # fmt: skip
STRING, ARRAY = 8, 9
MIN_BYTES = {**{number: size for number, (_, size) in SCALARS.items()}, STRING: 8, ARRAY: 12}

OTHERS = {38: "TL1 of bitnet.cpp, or MXFP4 of other forks", 39: "TL2 of bitnet.cpp, or MXFP4 of llama.cpp"}
TL_ADVICE = (
    "; the layout of bitnet.cpp's TL1 and TL2 depends on tile sizes that the file does not tell: convert the model "
    "from its Hugging Face files instead"
)


@dataclass(frozen=True)
class GGUFTensor:
    """What a file says about a tensor.

    Parameters
    ----------
    name : str
    type : Type
        Of `bitnet.formats.ggml.TYPES`.
    shape : tuple of int
        Its dimensions as NumPy counts them, the contiguous one last.
    nbytes, begin : int
        The bytes it takes, and where they begin in the file.
    """

    name: str
    type: Type
    shape: tuple
    nbytes: int
    begin: int


class GGUFFile:
    """A GGUF file, mapped into memory.

    Parameters
    ----------
    path : str
        The file.

    Attributes
    ----------
    path : str
    version : int
    metadata : dict
        The values by their keys: numbers, booleans, strings, and lists of them; a list of numbers is an array.
    tensors : dict of str to GGUFTensor
        In the order of the file.

    Raises
    ------
    FormatError
        If the bytes are not a GGUF file, or a tensor is of a type that is not read here.
    ModelLoadError
        If the file cannot be read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, GGUFTensor] = {}
        self._map: mmap.mmap | None = None
        self._file, mapping = mapped(path, 24)
        reader = _Reader(mapping, self._need)
        self._read(reader)
        self._map = mapping

    def close(self) -> None:
        """Let go of the file. Views stay valid: the mapping goes with the last of them."""
        self._map = None

    def place(self, name):
        """The open file, and where in it a tensor begins."""
        return self._file, self.tensors[name].begin

    def let_go(self):
        """Give back the memory of what has been read; views stay valid, and read the file again."""
        if self._map is not None:
            released(self._map)

    def raw(self, name):
        """View the bytes of a tensor in the file.

        Parameters
        ----------
        name : str
            One of `tensors`.

        Returns
        -------
        ndarray of uint8, shape (nbytes,)
            Read-only.
        """
        if self._map is None:
            raise ModelLoadError.unreadable(self.path, "it was closed; open it again")
        tensor = self.tensors[name]
        return np.frombuffer(self._map, np.uint8, tensor.nbytes, tensor.begin)

    # ---- reading

    def _read(self, reader):
        magic, self.version = reader.take(4), reader.number(4)
        self._need(magic == MAGIC, "the first four bytes", magic, "GGUF", "")
        self._need(self.version in VERSIONS, "the version", self.version, "2 or 3, and little-endian", "")
        n_tensors, n_values = reader.count("the number of tensors", 28), reader.number(8)
        reader.need_room(n_values, 13, "the number of metadata values")
        for _ in range(n_values):
            key = reader.string("a key", MAX_KEY)
            self._need(key not in self.metadata, "a key that comes twice", key, "there once")
            self.metadata[key] = self._value(reader, key)
        alignment = self.metadata.get("general.alignment", ALIGNMENT)
        fits = type(alignment) is int and 0 < alignment <= MAX_ALIGNMENT and alignment & (alignment - 1) == 0
        self._need(fits, "general.alignment", alignment, f"a power of two up to {MAX_ALIGNMENT}")
        entries = [self._entry(reader, alignment) for _ in range(n_tensors)]
        begin = -(-reader.at // alignment) * alignment
        self._place(entries, begin, len(reader.data))

    def _value(self, reader, key):
        kind = reader.number(4)
        if kind == ARRAY:
            return self._array(reader, key)
        self._need(kind in SCALARS or kind == STRING, f"the type of {quoted(key)}", kind, "a number from 0 to 12")
        return reader.string(f"the value of {quoted(key)}") if kind == STRING else reader.scalar(kind)

    def _array(self, reader, key):
        kind, label = reader.number(4), f"the length of {quoted(key)}"
        # Nested lists occur in no model, and would be another way to ask for memory without end.
        self._need(kind in SCALARS or kind == STRING, f"the type in the list {quoted(key)}", kind,
                   "a number from 0 to 12 and not 9: lists of lists are not read")  # fmt: skip
        count = reader.count(label, MIN_BYTES[kind])
        if kind == STRING:
            return reader.strings(count, f"a text of {quoted(key)}")
        code, size = SCALARS[kind]
        data = reader.take(count * size)
        return np.frombuffer(data, np.bool_ if kind == 7 else code)

    def _entry(self, reader, alignment):
        name = reader.string("the name of a tensor", MAX_KEY)
        label = quoted(name)
        self._need(name not in self.tensors, "a tensor that comes twice", name, "there once")
        dimensions = reader.number(4)
        self._need(0 < dimensions <= MAX_DIMENSIONS, f"the number of dimensions of {label}", dimensions,
                   f"1 to {MAX_DIMENSIONS}")  # fmt: skip
        shape = tuple(reader.number(8) for _ in range(dimensions))[::-1]
        number, offset = reader.number(4), reader.number(8)
        self._need(number in BY_NUMBER, f"the type of {label}", f"{number}{_meant(number)}",
                   "one of " + ", ".join(f"{one.number} ({one.name})" for one in TYPES),
                   TL_ADVICE if number in OTHERS else "")  # fmt: skip
        kind = BY_NUMBER[number]
        elements = math.prod(shape)
        fits = all(shape) and elements < ADDRESSES
        self._need(fits, f"the shape of {label}", shape, "sizes above 0 whose product is below 2**63")
        unit = elements if kind is I2_S else shape[-1]
        self._need(unit % kind.elements == 0, f"the shape of {label}", shape,
                   f"rows of a multiple of {kind.elements} elements, which {kind.name} has in a block")  # fmt: skip
        nbytes = elements // kind.elements * kind.nbytes + (TAIL if kind is I2_S else 0)
        self._need(offset % alignment == 0 and offset < ADDRESSES, f"the offset of {label}", offset,
                   f"a multiple of general.alignment, {alignment}")  # fmt: skip
        self.tensors[name] = None
        return name, kind, shape, nbytes, offset

    def _place(self, entries, data, size):
        """Tensors lie within the file, and not upon each other."""
        end = 0
        for name, _, _, nbytes, offset in sorted(entries, key=lambda entry: entry[4]):
            self._need(offset >= end, f"the offset of {quoted(name)}", offset,
                       f"at least {end}, where the tensor before ends")  # fmt: skip
            end = offset + nbytes
            self._need(data + end <= size, f"the end of {quoted(name)}", data + end,
                       f"within the file, which has {size} bytes")  # fmt: skip
        self.tensors = {name: GGUFTensor(name, kind, shape, nbytes, data + offset)
                        for name, kind, shape, nbytes, offset in entries}  # fmt: skip

    def _need(self, fits, what, got, needed, advice=DAMAGED):
        need(fits, self.path, what, got, needed + advice)


class _Reader:
    """Goes through the header; every step looks first whether the bytes are there."""

    def __init__(self, data, need_):
        self.data, self.at, self._need = data, 0, need_

    @property
    def room(self):
        return len(self.data) - self.at

    def need_room(self, count, size, what):
        self._need(count <= self.room // size, what, count, f"at most {self.room // size}, for which the file has room")

    def take(self, size):
        self._need(size <= self.room, "the end of the header", self.at + size, f"within {len(self.data)} bytes")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size):
        return int.from_bytes(self.take(size), "little")

    def count(self, what, size):
        """A number of things that have at least so many bytes each."""
        found = self.number(8)
        self.need_room(found, size, what)
        return found

    def scalar(self, kind):
        code, size = SCALARS[kind]
        return struct.unpack(code, self.take(size))[0]

    def string(self, what, limit=None):
        length = self.count(f"the length of {what}", 1)
        self._need(limit is None or length <= limit, f"the length of {what}", length, f"at most {limit}")
        return self._text(self.take(length), what)

    def strings(self, count, what):
        """Many texts: vocabularies have hundreds of thousands."""
        found, data, at, end = [], self.data, self.at, len(self.data)
        for _ in range(count):
            length = int.from_bytes(data[at : at + 8], "little")
            at += 8 + length
            if at > end:
                self._need(False, f"the length of {what}", length, f"at most {max(end - at + length, 0)}")
            found.append(self._text(data[at - length : at], what))
        self.at = at
        return found

    def _text(self, data, what):
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            self._need(False, f"the encoding of {what}", data[:40], "UTF-8")


def _meant(number):
    return f" ({OTHERS[number]})" if number in OTHERS else ""
