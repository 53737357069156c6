"""Keys and values in a file: what a text begins with need not be computed again by another process.

The file: eight bytes of magic; the length of a header, 4 bytes, little-endian; the header in JSON; the tokens, int32;
the pages, of which the last may be full of anything behind its tokens; and SHA-256 of all that. The header says which
model it belongs to, by a digest of what makes a model's function: its configuration, how keys and values are stored,
the gains of its norms and the scales of its weights. Kernels of another instruction set round the last bit of floats
otherwise, and so may what is computed from such a file there.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bitnet._core.program import PAGE_TOKENS
from bitnet.errors import FormatError, ModelLoadError
from bitnet.formats.sums import new_sha256

__all__ = ["identity", "read_state", "write_state"]

MAGIC = b"BITNETKV"
VERSION = 2
MOST_HEADER = 4096  # bytes; ours has some hundred
DIGEST = 32
CHUNK = 1 << 22


def identity(model: Any) -> str:
    """Name a model by what its keys and values depend on.

    Parameters
    ----------
    model : Model

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    found = new_sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    found.update(json.dumps([model.engine_config.kv_dtype, model.program.page_bytes]).encode())
    for operation in model.program.operations:
        found.update(operation["name"].encode())
        found.update(bytes([bool(operation.get("takes_floats"))]))
        scale = getattr(operation.get("weight"), "scale", None)
        for array in (operation.get("gain"), operation.get("key_gain"), scale):
            if array is not None:
                found.update(np.ascontiguousarray(array, np.float32).tobytes())
    digits: str = found.hexdigest()
    return digits


def write_state(path: str, model: Any, ids: npt.NDArray[np.int32], pages: Sequence[Any]) -> None:
    """Write the pages of a text; the file appears when it is whole.

    Parameters
    ----------
    path : str
    model : Model
    ids : ndarray of int32, shape (tokens,)
    pages : sequence of Block
        As many as the tokens need.

    Raises
    ------
    ModelLoadError
        If it cannot be written.
    """
    header = json.dumps({
        "version": VERSION, "model": identity(model), "tokens": len(ids), "page_tokens": PAGE_TOKENS,
        "page_bytes": model.program.page_bytes,
    }).encode()  # fmt: skip
    parts: list[Any] = [MAGIC, len(header).to_bytes(4, "little"), header, ids.astype("<i4").tobytes(), *pages]
    name = None
    try:
        with tempfile.NamedTemporaryFile(dir=os.path.dirname(path) or ".", delete=False) as file:
            name, digest = file.name, new_sha256()
            for part in parts:
                digest.update(part)
                file.write(part)
            file.write(digest.digest())
        os.replace(name, path)
    except BaseException as error:
        if name is not None:
            with contextlib.suppress(OSError):
                os.unlink(name)
        if isinstance(error, OSError):
            raise ModelLoadError.unwritable(path, error.strerror or str(error)) from error
        raise


def read_state(path: str, model: Any, new_pages: Any) -> npt.NDArray[np.int32]:
    """Read the pages of a text, of this very model.

    Parameters
    ----------
    path : str
    model : Model
    new_pages : callable
        Called as ``new_pages(tokens)`` once the file is known to have that many; gives the blocks to read into.

    Returns
    -------
    ndarray of int32, shape (tokens,)

    Raises
    ------
    ModelLoadError
        If the file cannot be read.
    FormatError
        If it is none, is damaged, or belongs to another model.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = new_sha256()

            def take(count: int) -> bytes:
                data = file.read(count)
                if len(data) != count:
                    raise FormatError.value(path, "its size", size, "larger, for what its header says")
                digest.update(data)
                return data

            start = take(12)
            length = int.from_bytes(start[8:], "little")
            if start[:8] != MAGIC or length > MOST_HEADER:
                raise FormatError.value(path, "the beginning", start[:8], f"{MAGIC!r}, of a file that save_state wrote")
            tokens = _checked(path, take(length), model, size - 12 - length - DIGEST)
            ids = np.frombuffer(take(4 * tokens), "<i4").astype(np.int32)
            if ids.min() < 0 or ids.max() >= model.program.vocab_size:
                raise FormatError.value(path, "a token", int(ids.max()), "of the model's vocabulary")
            for page in new_pages(tokens):
                target = np.frombuffer(page, np.uint8)
                for at in range(0, len(target), CHUNK):
                    some = target[at : at + CHUNK]
                    some[:] = np.frombuffer(take(len(some)), np.uint8)
            if file.read(DIGEST) != digest.digest():
                raise FormatError.value(path, "the checksum", "another", "that of the bytes before; it is damaged")
            return ids
    except OSError as error:
        raise ModelLoadError.unreadable(path, error.strerror or str(error)) from error


def _checked(path: str, header: bytes, model: Any, rest: int) -> int:
    """The number of tokens that a header tells of, if all fits together."""
    try:
        found = json.loads(header)
    except ValueError as error:
        raise FormatError.not_json(path, "the header", str(error)) from error
    expected = {"version": VERSION, "page_tokens": PAGE_TOKENS, "page_bytes": model.program.page_bytes,
                "model": identity(model)}  # fmt: skip
    for name, value in expected.items():
        if not isinstance(found, dict) or found.get(name) != value:
            got = found.get(name) if isinstance(found, dict) else found
            raise FormatError.value(path, name, got, f"{value!r}: the file belongs to another model, or version")
    tokens = found.get("tokens")
    if type(tokens) is not int or not 0 < tokens <= model.program.context:
        raise FormatError.value(path, "tokens", tokens, f"a whole number from 1 to {model.program.context}")
    needed = 4 * tokens + -(-tokens // PAGE_TOKENS) * model.program.page_bytes
    if rest != needed:
        raise FormatError.value(path, "the size behind its header", rest, f"{needed} bytes for {tokens} tokens")
    return tokens
