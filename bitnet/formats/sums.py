"""Checksums of whole files, in the form that ``sha256sum -c`` reads: written with a checkpoint, and compared."""

import os
import re
from collections.abc import Iterable
from typing import Any

from bitnet.formats.base import need, read_bytes

__all__ = ["BESIDE", "CHECKSUMS", "compare_sums", "new_sha256", "sha256", "write_checksums"]

CHECKSUMS = "SHA256SUMS"
"""Of the files of a folder, in the folder."""

BESIDE = ".sha256"
"""The end of the name of a file's own, beside it."""

LIMIT = 1_000_000  # bytes of a list
READ_BYTES = 1 << 20


def new_sha256(data: bytes = b"") -> Any:
    """Begin a checksum, as `hashlib.sha256`."""
    import hashlib  # which brings OpenSSL, 3.5 MB, to who may never ask for a checksum

    return hashlib.sha256(data)


def sha256(path: str) -> str:
    """Compute the checksum of a file, as hexadecimal digits."""
    found = new_sha256()
    with open(path, "rb") as file:
        while part := file.read(READ_BYTES):
            found.update(part)
    digits: str = found.hexdigest()
    return digits


def write_checksums(folder: str) -> None:
    """Write ``SHA256SUMS`` of the files of a folder.

    Parameters
    ----------
    folder : str
    """
    names = sorted(name for name in os.listdir(folder) if name != CHECKSUMS)
    with open(os.path.join(folder, CHECKSUMS), "w", encoding="utf-8") as file:
        file.writelines(f"{sha256(os.path.join(folder, name))}  {name}\n" for name in names)


def compare_sums(path: str, files: Iterable[str]) -> dict[str, bool]:
    """Compare files with the checksums that are stored with them.

    Parameters
    ----------
    path : str
        A checkpoint.
    files : iterable of str
        Its files of tensors: each may have a checksum of its own beside it.

    Returns
    -------
    dict
        For each file that has one, whether it agrees; what cannot be read does not. Empty where none are stored.

    Raises
    ------
    FormatError
        If a list of checksums is none.
    """
    lists = [os.path.join(path, CHECKSUMS), *(file + BESIDE for file in files)]
    found = {}
    for list_of in filter(os.path.isfile, lists):
        for line in read_bytes(list_of, LIMIT).decode("utf-8", errors="replace").splitlines():
            digest, name = line[:64], line[66:]
            is_one = re.fullmatch(r"[0-9a-f]{64} [ *][^/\0]+", line) is not None and name not in (".", "..")
            need(is_one, list_of, "a line", line, "64 hexadecimal digits, two spaces and the name of a file beside it")
            file = os.path.join(os.path.dirname(list_of), name)
            found[file] = _agrees(file, digest)
    return found


def _agrees(file: str, digest: str) -> bool:
    try:
        return sha256(file) == digest
    except OSError:
        return False
