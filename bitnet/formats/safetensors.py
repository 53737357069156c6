"""A reader of safetensors files that believes nothing.

A file is 8 bytes with the length of the header (little-endian), the header, and the data. The header is a JSON object
that gives each tensor's ``dtype``, ``shape`` and ``data_offsets``, the first byte and the one after the last, counted
from the start of the data; ``__metadata__`` holds strings. Tensors cover the data without gaps, in any order.

All of that is checked when a file is opened, so that every view lies within it. Opening costs the header only: the
file is mapped into memory, and a tensor is read when it is looked at.

References
----------
.. [1] huggingface/safetensors, README.md ("Format") and safetensors/src/tensor.rs.
"""

import itertools
import math

import numpy as np

from bitnet.errors import ModelLoadError
from bitnet.formats.base import DAMAGED, TensorInfo, mapped, need, parsed_json, quoted, released

__all__ = ["DTYPES", "HEADER_LIMIT", "SafetensorsFile"]

HEADER_LIMIT = 100_000_000  # bytes, as in [1]
MAX_DIMENSIONS = 32  # of NumPy 1
ADDRESSES = 2**63

# How an element lies in a NumPy array. NumPy has no BF16 and no 8-bit floats, and a BOOL may be any byte.
DTYPES = {
    "BOOL": "u1", "U8": "u1", "I8": "i1", "F8_E4M3": "u1", "F8_E5M2": "u1", "F8_E8M0": "u1",
    "U16": "<u2", "I16": "<i2", "F16": "<f2", "BF16": "<u2",
    "U32": "<u4", "I32": "<i4", "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8", "C64": "<c8",
}  # fmt: skip


class SafetensorsFile:
    """A safetensors file, mapped into memory.

    Parameters
    ----------
    path : str
        The file.

    Attributes
    ----------
    path : str
    tensors : dict of str to TensorInfo
        What the header says about each tensor, in the order of the header.
    metadata : dict of str to str
        What the header says about the file.

    Raises
    ------
    FormatError
        If the bytes are not a safetensors file.
    ModelLoadError
        If the file cannot be read.
    """

    def __init__(self, path):
        self.path = path
        self.tensors, self.metadata = {}, {}
        self._map, self._first_bytes = None, {}
        self._file, mapping = mapped(path, 8)
        self._read_header(mapping)
        self._map = mapping

    def close(self):
        """Let go of the file. Views stay valid: the mapping goes with the last of them."""
        self._map = None

    def place(self, name):
        """The open file, and where in it a tensor begins."""
        return self._file, self._first_bytes[name]

    def let_go(self):
        """Give back the memory of what has been read; views stay valid, and read the file again."""
        if self._map is not None:
            released(self._map)

    def raw(self, name):
        """View a tensor in the file.

        Parameters
        ----------
        name : str
            One of `tensors`.

        Returns
        -------
        ndarray
            Read-only; the dtype is that of `DTYPES`.
        """
        mapping, info = self._map, self.tensors[name]
        if mapping is None:
            raise ModelLoadError.unreadable(self.path, "it was closed; open it again")
        count = math.prod(info.shape)
        if not count:
            return np.frombuffer(b"", DTYPES[info.dtype]).reshape(info.shape)
        return np.frombuffer(mapping, DTYPES[info.dtype], count, self._first_bytes[name]).reshape(info.shape)

    def _read_header(self, mapping):
        length, room = int.from_bytes(mapping[:8], "little"), len(mapping) - 8
        self._need(length <= room, "the length of the header", length, f"at most {room} bytes, which is what follows")
        self._need(length <= HEADER_LIMIT, "the length of the header", length, f"at most {HEADER_LIMIT} bytes")
        header = parsed_json(mapping[8 : 8 + length], self.path, "the header")
        metadata = header.pop("__metadata__", {})
        is_text = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
        self._need(is_text, "'__metadata__' of the header", metadata, "an object of strings")
        self.metadata = metadata
        spans = {name: self._read_entry(name, entry) for name, entry in header.items()}
        self._check_cover(spans, room - length)
        self._first_bytes = {name: 8 + length + first for name, (first, _) in spans.items()}

    def _read_entry(self, name, entry):
        """Note a tensor, and give its span of the data."""
        label = quoted(name)
        self._need(isinstance(entry, dict), f"the entry {label}", entry, "an object")
        dtype, shape, span = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
        known = isinstance(dtype, str) and dtype in DTYPES
        self._need(known, f"the dtype of {label}", dtype, f"one of {', '.join(DTYPES)}", "")
        fits = isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS and all(map(_is_size, shape))
        self._need(fits, f"the shape of {label}", shape, f"a list of at most {MAX_DIMENSIONS} sizes")
        itemsize = np.dtype(DTYPES[dtype]).itemsize
        # Zeros count as ones, because NumPy makes no array of shape (0, 2**63) either.
        fits = math.prod(size or 1 for size in shape) * itemsize < ADDRESSES
        self._need(fits, f"the shape of {label}", shape, "that of a tensor below 2**63 bytes")
        fits = isinstance(span, list) and len(span) == 2 and all(map(_is_size, span)) and span[0] <= span[1]
        self._need(fits, f"data_offsets of {label}", span, "the first byte and the one after the last")
        nbytes = math.prod(shape) * itemsize
        self._need(span[1] - span[0] == nbytes, f"data_offsets of {label}", span,
                   f"{nbytes} bytes long, as {dtype} of shape {tuple(shape)} is")  # fmt: skip
        self.tensors[name] = TensorInfo(name, dtype, tuple(shape), nbytes, self.path)
        return tuple(span)

    def _check_cover(self, spans, room):
        """Each tensor begins where another one ends, and the last ends with the file."""
        ordered = sorted(spans.items(), key=lambda item: item[1])
        ends = itertools.chain([0], (end for _, (_, end) in ordered))
        for (name, span), begin in zip(ordered, ends, strict=False):
            self._need(span[0] == begin, f"data_offsets of {quoted(name)}", list(span),
                       f"from {begin} on, where the tensor before ends: tensors neither overlap nor leave gaps")
            self._need(span[1] <= room, f"data_offsets of {quoted(name)}", list(span),
                       f"within the data, which has {room} bytes")  # fmt: skip
        end = ordered[-1][1][1] if ordered else 0
        self._need(end == room, "the size of the data", room, f"{end} bytes, which is where the last tensor ends")

    def _need(self, fits, what, got, needed, advice=DAMAGED):
        need(fits, self.path, what, got, needed + advice)


def _is_size(value):
    return type(value) is int and 0 <= value < ADDRESSES
