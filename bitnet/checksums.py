"""Checksums of a model's tensors: to find a bit that flipped, in a file or in memory, and to name the tensor."""

import json
import os
import re
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from bitnet import formats
from bitnet.errors import ModelLoadError
from bitnet.formats.sums import compare_sums, sha256

__all__ = ["Checksums", "files_of"]

SIDECAR = "bitnet-checksums.json"


class Checksums:
    """CRC-32 of each tensor of a checkpoint, and of each array that a program made of them is bound to.

    A CRC-32 finds every change of one bit and every burst of up to 32; of other changes it misses one in four thousand
    million.

    Parameters
    ----------
    checkpoint : Checkpoint
        Open.
    program : Program
        It holds the arrays.

    Raises
    ------
    ModelLoadError
        If a file differs from the checksums stored beside it (``SHA256SUMS``, ``.sha256``, those of `save`), or from
        its name in the Hugging Face cache, which is its SHA-256.
    """

    def __init__(self, checkpoint: Any, program: Any) -> None:
        self.path = os.fspath(checkpoint.path)
        self._program = program
        self._stored = _stored(checkpoint)
        self._held = {name: zlib.crc32(data) for name, data in _held(self._program)}
        for file in map(os.path.realpath, files_of(checkpoint)):
            name = os.path.basename(file)
            if re.fullmatch(r"[0-9a-f]{64}", name) and sha256(file) != name:
                raise ModelLoadError.changed(self.path, name, "the cache")
        for file, agrees in compare_sums(self.path, files_of(checkpoint)).items():
            if not agrees:
                raise ModelLoadError.changed(self.path, os.path.basename(file), "the file")
        if os.path.exists(_sidecar(self.path)):
            with open(_sidecar(self.path), encoding="utf-8") as written:
                self._compare(json.load(written), self._stored, "the file")

    def verify(self) -> int:
        """Compute them again, of what is in memory and of what is in the file, and compare.

        Returns
        -------
        int
            How many were compared.

        Raises
        ------
        ModelLoadError
            If one differs; it names the tensor, and says where.
        """
        self._compare(self._held, {name: zlib.crc32(data) for name, data in _held(self._program)}, "memory")
        if not os.path.exists(self.path):  # random weights have no file
            return len(self._held)
        opened: Any = formats.open_checkpoint
        with opened(self.path) as checkpoint:
            self._compare(self._stored, _stored(checkpoint), "the file")
        return len(self._held) + len(self._stored)

    def save(self) -> str:
        """Write those of the file beside it, to be compared whenever it is loaded with ``verify="load"``.

        Returns
        -------
        str
            The path of what was written.
        """
        path = _sidecar(self.path)
        part = f"{path}.{os.getpid()}"
        with open(part, "w", encoding="utf-8") as file:
            json.dump(self._stored, file, indent=0)
        os.replace(part, path)
        return path

    def _compare(self, expected: dict[str, int], found: dict[str, int], where: str) -> None:
        for name, value in expected.items():
            if found.get(name) != value:
                raise ModelLoadError.changed(self.path, name, where)


def files_of(checkpoint: Any) -> list[str]:
    """List the files that have the tensors of a checkpoint.

    Parameters
    ----------
    checkpoint : Checkpoint

    Returns
    -------
    list of str
    """
    return sorted({checkpoint.info(name).file for name in checkpoint.names()})


def _sidecar(path: str) -> str:
    return os.path.join(path, SIDECAR) if os.path.isdir(path) else f"{path}.{SIDECAR}"


def _stored(checkpoint: Any) -> dict[str, int]:
    found = {}
    for name in checkpoint.names():
        found[name] = zlib.crc32(_bytes_of(checkpoint.raw(name)))
        checkpoint.let_go()
    return found


def _held(program: Any) -> Iterator[tuple[str, Any]]:
    """The arrays that a program's operations are bound to; tables that stay in the file are not held."""
    for operation in program.operations:
        for name, value in operation.items():
            for part, array in _arrays(name, value):
                yield f"{operation['name']}.{part}", _bytes_of(array)
    for theta, arrays in program._angles.items():
        for name, array in zip(("cosines", "sines"), arrays, strict=True):
            yield f"rotations by {theta:g}.{name}", _bytes_of(array)


def _arrays(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, np.ndarray):
        yield name, value
    elif hasattr(value, "packed_bytes"):  # ternary weights, and int8 rows of the head
        yield name, value.packed_bytes
        for scales in ("scale", "scales"):
            if hasattr(value, scales):
                yield scales, getattr(value, scales)


def _bytes_of(array: Any) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
