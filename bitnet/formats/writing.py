"""What the writers of checkpoints share: the tensors to be written, files that appear whole or not at all, checksums.

A writer is given `Item` objects: the tensors of a model under Hugging Face names, as floats or as ternary codes with
their scales. It takes them one after another, so that one tensor at a time is in memory.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitnet.errors import ModelLoadError
from bitnet.formats.sums import BESIDE, sha256

__all__ = [
    "Codes",
    "Entry",
    "Item",
    "is_float16",
    "new_checkpoint",
    "new_path",
    "pack_quarters",
    "storable",
    "write_json",
    "write_safetensors",
]

CHUNK = 1 << 24  # bytes written, and hashed, at once
NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "U8": np.uint8, "I8": np.int8}


@dataclass(frozen=True, eq=False)
class Codes:
    """A ternary weight.

    Parameters
    ----------
    codes : ndarray of int8, shape (rows, cols)
        -1, 0 or 1.
    scale : ndarray of float32, shape (), (rows,) or (rows, groups)
        What a code of 1 stands for.
    group_size : int, optional
        64 or 128 columns that share a scale.
    """

    codes: np.ndarray
    scale: np.ndarray
    group_size: int | None = None


@dataclass(frozen=True, eq=False)
class Item:
    """A tensor to be written.

    Parameters
    ----------
    name : str
        Its Hugging Face name; of a ternary weight that of its layer, without ``.weight``.
    kind : {"floats", "ternary", "panels"}
        The last are bytes as kernels read them, of a head.
    shape : tuple of int
        Of a ternary weight (rows, cols).
    read : callable
        Gives an array of the type `dtype`, BF16 as uint16; or a `Codes`.
    dtype : {"F32", "F16", "BF16", "U8"}, optional
        Of floats; of panels U8.
    """

    name: str
    kind: str
    shape: tuple
    read: Callable[[], Any]
    dtype: str = "F32"


@dataclass(frozen=True, eq=False)
class Entry:
    """A tensor as a file will have it: what its header says, and how its bytes are made."""

    name: str
    dtype: str
    shape: tuple
    nbytes: int
    make: Callable[[], np.ndarray]


@contextlib.contextmanager
def new_path(path, force=False):
    """Make a file or a folder that appears under its name when it is whole.

    Parameters
    ----------
    path : str
        The name.
    force : bool, optional
        Whether something of that name may be replaced.

    Yields
    ------
    str
        A name beside it, to be written to; nothing of it stays if an error, or Ctrl-C, comes.

    Raises
    ------
    ModelLoadError
        If there is something of that name, or no folder for it.
    """
    path = os.path.abspath(path)
    if os.path.lexists(path) and not force:
        raise ModelLoadError.exists(path)
    try:
        with tempfile.TemporaryDirectory(
            prefix=f".{os.path.basename(path)}.", suffix=".part", dir=os.path.dirname(path), ignore_cleanup_errors=True
        ) as scratch:
            new, old = os.path.join(scratch, "new"), os.path.join(scratch, "old")
            yield new
            if os.path.isdir(path) and not os.path.islink(path):
                os.rename(path, old)  # a folder cannot be replaced in one step; for a moment there is none
            os.replace(new, path)
    except OSError as error:
        raise ModelLoadError.unwritable(path, error.strerror or str(error)) from error


@contextlib.contextmanager
def new_checkpoint(path, force=False):
    """Make a checkpoint as `new_path` does; beside a file its checksum appears, after it.

    Parameters
    ----------
    path, force
        As of `new_path`.

    Yields
    ------
    str
        A name beside it, to be written to.
    """
    with new_path(path, force) as scratch:
        yield scratch
        digest = sha256(scratch) if os.path.isfile(scratch) else None
        if digest:  # an older file's would be wrong from here on
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path + BESIDE)
    if digest:
        with new_path(path + BESIDE, force=True) as scratch, open(scratch, "w", encoding="utf-8") as file:
            file.write(f"{digest}  {os.path.basename(path)}\n")


def write_json(folder, name, content):
    """Write a JSON file."""
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")


def write_entries(file, entries, progress, alignment=1):
    """Write the bytes of tensors one after another, each at a multiple of `alignment`."""
    total, done = sum(entry.nbytes for entry in entries), 0
    for entry in entries:
        data = np.ascontiguousarray(entry.make()).reshape(-1).view(np.uint8)
        assert data.nbytes == entry.nbytes, entry.name
        for start in range(0, data.nbytes, CHUNK):
            file.write(data[start : start + CHUNK])
        file.write(bytes(-entry.nbytes % alignment))
        done += entry.nbytes
        progress(done, total, entry.name)


def write_safetensors(path, entries, metadata, progress):
    """Write a safetensors file.

    Parameters
    ----------
    path : str
    entries : list of Entry
        In this order; those whose bytes are a multiple of 64 begin at one.
    metadata : dict of str to str
    progress : callable
        Called as ``progress(done_bytes, total_bytes, name)``.
    """
    header, end = {"__metadata__": metadata}, 0
    for entry in entries:
        begin, end = end, end + entry.nbytes
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        write_entries(file, entries, progress)
        file.flush()
        os.fsync(file.fileno())


def pack_quarters(codes):
    """Pack codes as Transformers does: four rows a byte, each from another quarter of the rows.

    Parameters
    ----------
    codes : ndarray of int8, shape (rows, cols)
        4 divides `rows`.

    Returns
    -------
    ndarray of uint8, shape (rows // 4, cols)
    """
    quarters = (codes + np.int8(1)).view(np.uint8).reshape(4, -1, codes.shape[1])
    return quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6


def storable(fits, name, reason):
    """Refuse a model that a format cannot hold.

    Parameters
    ----------
    fits : bool
        Whether it can.
    name : str
        What it cannot hold.
    reason : str
        Why, a clause.

    Raises
    ------
    ModelLoadError
        If `fits` is false.
    """
    if not fits:
        raise ModelLoadError.unstorable(name, reason)


def is_float16(scale):
    """Whether float16 holds a scale."""
    with np.errstate(over="ignore"):
        return bool((np.asarray(scale, np.float32).astype(np.float16).astype(np.float32) == scale).all())
