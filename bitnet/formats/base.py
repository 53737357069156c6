"""What every format gives, a `Checkpoint` of named tensors, and the checks that the readers share.

A file may come from anywhere. `need` is how a reader doubts it: each fact is checked before it is used, and what does
not hold becomes a `FormatError` with the file, the fact and the value.
"""

import abc
import contextlib
import difflib
import json
import mmap
import os
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitnet.errors import FormatError, ModelLoadError

__all__ = [
    "DAMAGED",
    "Checkpoint",
    "OpenFile",
    "StoredTernary",
    "TensorInfo",
    "mapped",
    "need",
    "parsed_json",
    "quoted",
    "read_bytes",
    "released",
]

FLOATS = ("BF16", "F16", "F32", "F64")  # dtypes that `Checkpoint.floats` converts
JSON_LIMIT = 100_000_000  # bytes; the largest tokenizers have 40 MB
JSON_DEPTH = 64  # so that whoever walks through the values may do so by recursion

DAMAGED = "; the file is damaged or cut short: get it again"

_NAME = reprlib.Repr()
_NAME.maxstring = 200


@dataclass(frozen=True)
class TensorInfo:
    """What a file says about a tensor.

    Parameters
    ----------
    name : str
        Its name in the file.
    dtype : str
        The type of its elements in safetensors' words, as ``"BF16"``, or in GGUF's, as ``"I2_S"``.
    shape : tuple of int
        Its dimensions, in elements of that type.
    nbytes : int
        Bytes of the file that it takes.
    file : str
        The path of the file.
    """

    name: str
    dtype: str
    shape: tuple
    nbytes: int
    file: str


@dataclass(frozen=True, eq=False)
class StoredTernary:
    """A ternary weight as a file stores it: as codes, or as the masters it is to be quantised from.

    Parameters
    ----------
    kind : {"packed", "codes", "panels", "masters"}
        Which of the four it is: "packed" is Hugging Face's way of codes, "panels" the bytes of a packing.
    rows, cols : int
        The shape of the weight: outputs and inputs.
    data : ndarray of uint8, shape (rows // 4, cols), optional
        Of a packed weight: bits ``2 * k`` and ``2 * k + 1`` of ``data[r, c]`` hold the code of row
        ``k * rows // 4 + r`` plus 1. A view of the file, for as long as it lives.
    scale : float or ndarray of float32, shape (), (rows,) or (rows, groups), optional
        Of codes: what a code of 1 stands for, a number that float32 holds.
    floats : callable, optional
        Of masters: ``floats()`` gives them as float32, ``floats(slice)`` some of their rows.
    codes : callable, optional
        Of "codes": ``codes()`` gives them, int8 of shape (rows, cols), -1, 0 or 1.
    group_size : int, optional
        Columns that share a scale, 64 or 128, where `scale` has a shape of (rows, groups).
    packing : str, optional
        Of "panels": the packing whose bytes `data` has, uint8 of shape (nbytes,).
    """

    kind: str
    rows: int
    cols: int
    data: np.ndarray | None = None
    scale: float | np.ndarray | None = None
    floats: Callable | None = None
    codes: Callable | None = None
    group_size: int | None = None
    packing: str | None = None


class OpenFile:
    """A file that stays open for as long as somebody holds it.

    Parameters
    ----------
    path : str
        The file; opened for reading.
    """

    def __init__(self, path):
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115

    def fileno(self):
        """The operating system's number of the open file."""
        return self._file.fileno()

    def __del__(self):
        if hasattr(self, "_file"):  # it could be opened
            self._file.close()


class Checkpoint(abc.ABC):
    """Named tensors in mapped files, and what the files say about the model.

    A context manager; `close` may be called twice. Reading is safe from several threads.

    Parameters
    ----------
    path : str
        What was opened.

    Attributes
    ----------
    path : str
    format : str
        The name of the format, as ``"hugging_face"``.
    config, generation_config, tokenizer_config : dict
        The content of the files of these names; empty if there is none.
    tokenizer_path : str or None
        The path of the ``tokenizer.json``, or of the GGUF file that has the vocabulary.
    chat_template : str or None
        The template, in Jinja's language.
    notes : list of str
        What was decided although the files do not say it for certain: sentences for whoever loads the model. More may
        come while weights are read.
    pooling : {"last", "mean", "cls", None}
        How the vectors of a text's tokens become that of the text, where the files say it.
    activations : {"int8", "float32"}
        Which function the weights were made for: of activations rounded to 8 bits, or of activations as they are.

    Notes
    -----
    Arrays from `raw` are views of the mapping. Those that outlive `close` stay valid: the mapping goes with the last
    of them. A file must not be cut short by someone else while it is mapped, or reading it ends the process.
    """

    format = ""
    activations = "int8"
    pooling = None
    LOOKED_FOR = ""  # what `knows` wants to see, for the sentence that says it was not there

    def __init__(self, path):
        self.path = path
        self.config, self.generation_config, self.tokenizer_config = {}, {}, {}
        self.tokenizer_path = self.chat_template = None
        self.notes = []
        # tensor name -> an open file, which has `tensors` (name -> TensorInfo), `raw(name)`, `place(name)` and
        # `let_go()`
        self._files = {}
        self._stored_names = {}  # names of tensors to those in the files, where they differ
        self._resources = contextlib.ExitStack()

    @classmethod
    @abc.abstractmethod
    def knows(cls, path):
        """Whether what is at `path` looks like this format."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def __repr__(self):
        return f"<{type(self).__name__} '{self.path}': {len(self._files)} tensors>"

    def __contains__(self, name):
        return name in self._files

    def close(self):
        """Let go of the files; what has been read stays."""
        self._resources.close()

    def let_go(self):
        """Give back the memory of what has been read of the files; views stay valid, and read the files again."""
        for file in dict.fromkeys(self._files.values()):
            file.let_go()

    def names(self):
        """List the names of the tensors, in the order of the files."""
        return list(self._files)

    def info(self, name):
        """Say what the file says about a tensor.

        Parameters
        ----------
        name : str
            The name of a tensor.

        Returns
        -------
        TensorInfo

        Raises
        ------
        ModelLoadError
            If there is no such tensor.
        """
        if name not in self._files:
            close = difflib.get_close_matches(name, self._files, n=1)
            raise ModelLoadError.missing_tensor(self.path, name, close[0] if close else None)
        return self._files[name].tensors[self._stored_names.get(name, name)]

    @abc.abstractmethod
    def matrix_shape(self, name):
        """Say how many rows and columns a weight stands for, packed or not.

        Parameters
        ----------
        name : str
            The layer: the name of its weight without ``.weight``.

        Returns
        -------
        tuple of int
        """

    def raw(self, name):
        """View a tensor in the file.

        Parameters
        ----------
        name : str
            The name of a tensor.

        Returns
        -------
        ndarray
            Read-only. The dtype is the file's; BF16 comes as uint16, BOOL and 8-bit floats as uint8. The address may
            not be a multiple of the element's size, as files do not align tensors.
        """
        self.info(name)
        return self._files[name].raw(self._stored_names.get(name, name))

    def place(self, name):
        """Say where a tensor lies, for who wants to read parts of it without the mapping.

        Parameters
        ----------
        name : str
            The name of a tensor.

        Returns
        -------
        file : OpenFile
        offset : int
            Of the tensor's first byte in the file.
        """
        self.info(name)
        return self._files[name].place(self._stored_names.get(name, name))

    def floats(self, name, rows=None):
        """Read a tensor of floats as float32.

        BF16, F16 and F32 are converted exactly, F64 to the nearest float32.

        Parameters
        ----------
        name : str
            The name of a tensor.
        rows : slice, optional
            Of the first axis; None for all of it.

        Returns
        -------
        ndarray of float32
            A copy, C-contiguous.

        Raises
        ------
        FormatError
            If the tensor has another dtype, or numbers beyond float32.
        """
        info, data = self.info(name), self.raw(name)
        need(info.dtype in FLOATS, info.file, f"the dtype of {quoted(name)}", info.dtype,
             "BF16, F16, F32 or F64, because it is read as real numbers")  # fmt: skip
        if rows is not None:
            need(data.ndim > 0, info.file, f"the shape of {quoted(name)}", data.shape, "(rows, ...)")
            data = data[rows]
        found = np.empty(data.shape, np.float32)
        if info.dtype == "BF16":  # the upper half of a float32
            np.left_shift(data, np.uint32(16), out=found.view(np.uint32))
            return found
        with np.errstate(all="ignore"):
            found[...] = data
        if info.dtype == "F64":
            fits = np.isinf(found) == np.isinf(data)
            need(fits.all(), info.file, f"a number of {quoted(name)}", float(data[~fits][0]) if not fits.all() else 0.0,
                 "within float32, which ends at 3.4e38")  # fmt: skip
        return found

    @abc.abstractmethod
    def is_quantized(self, name):
        """Whether a layer is ternary, to be read by `ternary`, and no ordinary one, to be read by `floats`.

        Parameters
        ----------
        name : str
            The layer: the name of its weight without ``.weight``.

        Returns
        -------
        bool
        """

    @abc.abstractmethod
    def ternary(self, name):
        """Find a ternary weight, and what its codes stand for.

        Parameters
        ----------
        name : str
            The layer: the name of its weight without ``.weight``, as ``"model.layers.0.self_attn.q_proj"``.

        Returns
        -------
        StoredTernary

        Raises
        ------
        FormatError
            If the weight and its scale contradict each other or the configuration.
        ModelLoadError
            If there is no such weight, or nothing says that it is ternary.
        """


def need(fits, file, what, got, needed):
    """Refuse a file in which something does not fit.

    Parameters
    ----------
    fits : bool
        Whether it does.
    file, what : str
        Where it is, and what it is.
    got : object
        The value.
    needed : str
        The rest of the sentence "it must be".

    Raises
    ------
    FormatError
        If `fits` is false.
    """
    if not fits:
        raise FormatError.value(file, what, got, needed)


def quoted(name):
    """Write a name that a file gives: in quotes, its control characters escaped, its middle left out if it is long."""
    return _NAME.repr(name)


def mapped(path, least):
    """Open a file and map it into memory, read-only.

    Parameters
    ----------
    path : str
    least : int
        Bytes that it must have; above 0.

    Returns
    -------
    file : OpenFile
    mapping : mmap.mmap
    """
    try:
        file = OpenFile(path)
        size = os.fstat(file.fileno()).st_size
        need(size >= least, path, "the size of the file", size, f"at least {least} bytes{DAMAGED}")  # mmap refuses 0
        return file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelLoadError.unreadable(path, error.strerror) from error


def released(mapping):
    """Give back the memory of a file's mapping: its pages stay in the system's cache, and out of this process's size.

    Huge pages are declined: a row of an embedding would bring 2 MiB of its neighbours along.

    Parameters
    ----------
    mapping : mmap.mmap
        Read-only.
    """
    for name in ("MADV_NOHUGEPAGE", "MADV_DONTNEED"):
        advice = getattr(mmap, name, None)
        if advice is not None and hasattr(mapping, "madvise"):
            with contextlib.suppress(OSError):  # advice that the system may not know
                mapping.madvise(advice)


def read_bytes(path: str, limit: int = JSON_LIMIT) -> bytes:
    """Read a small file.

    Parameters
    ----------
    path : str
        The file.
    limit : int
        The most bytes that it may have.

    Returns
    -------
    bytes
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            need(size <= limit, path, "the size of the file", size, f"at most {limit} bytes")
            return file.read(size or limit)  # Python takes memory for as many bytes as it is told to read
    except OSError as error:
        raise ModelLoadError.unreadable(path, error.strerror) from error


def parsed_json(content: bytes, file: str, what: str, unique: bool = True) -> dict[str, Any]:
    """Parse JSON that is an object.

    Parameters
    ----------
    content : bytes
        The JSON, in UTF-8.
    file, what : str
        Where it comes from, and what it is there.
    unique : bool
        Whether to refuse names that come twice in an object; otherwise the last holds.

    Returns
    -------
    dict

    Raises
    ------
    FormatError
        If it is no JSON, or no object.
    """
    repeated = []

    def gather(pairs):
        seen = set()
        repeated.extend(name for name, _ in pairs if name in seen or seen.add(name))
        return dict(pairs)

    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=gather if unique else None)
    except (ValueError, RecursionError) as error:  # also numbers of too many digits, and nesting without end
        raise FormatError.not_json(file, what, error) from error
    need(not repeated, file, f"a name that comes twice in {what}", repeated[0] if repeated else "", "there once")
    need(isinstance(value, dict), file, what, value, "a JSON object")
    level, depth = [value], 0
    while level:
        depth += 1
        inside = [item for one in level for item in (one.values() if isinstance(one, dict) else one)]
        level = [item for item in inside if isinstance(item, dict | list)]
    need(depth <= JSON_DEPTH, file, f"the depth of {what}", depth, f"at most {JSON_DEPTH}")
    return value
