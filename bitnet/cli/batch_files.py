"""The files of ``bitnet batch``: prompts, a journal of what is done, and the answers.

Each answer goes into the journal, ``OUTPUT.partial``, when it is there, as one line in one write. A process that is
killed leaves at most half a line at its end, which the next one cuts off, and goes on with what the journal lacks. When
it has all, the output is written beside it in the order of the input, takes its name, and the journal goes.
"""

import contextlib
import csv
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Self

from bitnet.errors import ConfigurationError, ModelLoadError

__all__ = ["ANSWER", "Journal", "Prompt", "digest", "kind_of", "read_prompts", "write_output"]

ANSWER = ("completion", "finish_reason", "prompt_tokens", "completion_tokens", "error")
"""What the output has beside all that the input has; of equal names these stay."""

CSV_FIELD = 1 << 24  # characters of a field at most
SYNC = 64  # answers between two calls that put the journal on the disk


@dataclass
class Prompt:
    """A line of the input.

    Attributes
    ----------
    line : int
        Of text and JSON its line, from 1; of CSV its row, without the header.
    row : dict
        All that it says.
    error : str or None
        Why it cannot be used.
    """

    line: int
    row: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def kind_of(path: str, known: tuple[str, ...]) -> str:
    """Tell a file's kind by its name.

    Parameters
    ----------
    path : str
    known : tuple of str
        The endings that will do.

    Returns
    -------
    str
    """
    ending = os.path.splitext(path)[1].lower().removeprefix(".")
    if ending not in known:
        raise ConfigurationError.value("batch", "the name of a file", path, f"one that ends in .{', .'.join(known)}")
    return ending


def read_prompts(path: str) -> Iterator[Prompt]:
    """Read the input; lines without anything are left out.

    Parameters
    ----------
    path : str
        ``.txt``: a prompt a line. ``.jsonl``: an object a line, with ``prompt`` (a text or token ids) or ``messages``.
        ``.csv``: a table with a column ``prompt``.

    Yields
    ------
    Prompt
    """
    kind = kind_of(path, ("txt", "jsonl", "csv"))
    try:
        if kind == "csv":
            yield from _csv_rows(path)
            return
        with open(path, "rb") as file:
            for line, data in enumerate(file, 1):
                if data.strip():
                    yield _of_line(line, data, kind)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ModelLoadError.unreadable(path, getattr(error, "strerror", None) or str(error)) from error


def _of_line(line: int, data: bytes, kind: str) -> Prompt:
    try:
        text = data.decode("utf-8-sig" if line == 1 else "utf-8").removesuffix("\n").removesuffix("\r")
        row = {"prompt": text} if kind == "txt" else json.loads(text)
    except (ValueError, RecursionError) as error:
        return Prompt(line, error=f"the line is not {'JSON' if kind == 'jsonl' else 'UTF-8'}: {error}")
    if not isinstance(row, dict) or ("prompt" in row) == ("messages" in row):
        return Prompt(line, row if isinstance(row, dict) else {},
                      "the line must be an object with either 'prompt' or 'messages'")  # fmt: skip
    return Prompt(line, row)


def _csv_rows(path: str) -> Iterator[Prompt]:
    csv.field_size_limit(CSV_FIELD)
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, restkey="", restval=None)
        if "prompt" not in (rows.fieldnames or ()):
            raise ConfigurationError.value("batch", "columns", rows.fieldnames, "some of which one is 'prompt'")
        for line, row in enumerate(rows, 1):
            is_whole = "" not in row and None not in row.values()
            yield Prompt(line, dict(row), None if is_whole else "the row has more or fewer fields than the header")


class Journal:
    """What is done so far, on the disk. A context manager.

    Parameters
    ----------
    output : str
    job : dict
        What the answers depend on; a journal of another job is refused.

    Attributes
    ----------
    done : dict of int to int
        The lines that have an answer, and where it begins.
    """

    def __init__(self, output: str, job: dict[str, Any]) -> None:
        self.path, self.done = f"{output}.partial", dict[int, int]()
        self._job, self._unsynced = job, 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        try:
            # Not buffered: a write is there, whatever becomes of this process.
            self._file = open(self.path, "r+b" if os.path.exists(self.path) else "x+b", buffering=0)
        except OSError as error:
            raise ModelLoadError.unwritable(self.path, error.strerror or str(error)) from error
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._sync()
        self._opened.close()

    @property
    def _opened(self) -> BinaryIO:
        assert self._file is not None
        return self._file

    def _lock(self) -> None:
        import fcntl

        try:
            fcntl.flock(self._opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ModelLoadError.unwritable(self.path, "another process is at work on it") from error

    def _read(self) -> None:
        file, end = self._opened, 0
        with open(self.path, "rb") as reader:
            header = reader.readline()
            if header.endswith(b"\n"):
                if _object(header) != self._job:
                    raise ConfigurationError.conflict("batch", f"'{self.path}' is of another input, model or settings; "
                                                      "give --overwrite to begin anew")  # fmt: skip
                end = len(header)
                for data in reader:
                    record = _object(data)
                    if not data.endswith(b"\n") or not isinstance(record.get("line"), int):
                        break  # half a line, of a process that was killed; or of a disk that lost power
                    self.done[record["line"]] = end
                    end += len(data)
        file.truncate(end)
        file.seek(end)
        if not end:
            self._write(self._job)
            self._sync()

    def _write(self, record: dict[str, Any]) -> int:
        start, data = self._opened.tell(), json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        try:
            while data:
                data = data[self._opened.write(data) or 0 :]
        except OSError as error:
            raise ModelLoadError.unwritable(self.path, error.strerror or str(error)) from error
        return start

    def _sync(self) -> None:
        os.fsync(self._opened)
        self._unsynced = 0

    def add(self, line: int, answer: dict[str, Any]) -> None:
        """Keep an answer.

        Parameters
        ----------
        line : int
        answer : dict
            Of the names in `ANSWER`.
        """
        self.done[line] = self._write({"line": line, **answer})
        self._unsynced += 1
        if self._unsynced >= SYNC:
            self._sync()

    def answers(self, lines: Iterator[int]) -> Iterator[dict[str, Any]]:
        """Read answers back.

        Parameters
        ----------
        lines : iterator of int

        Yields
        ------
        dict
        """
        with open(self.path, "rb") as reader:
            for line in lines:
                reader.seek(self.done[line])
                yield _object(reader.readline())

    def remove(self) -> None:
        """Delete the file."""
        os.unlink(self.path)


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def digest(path: str) -> str:
    """Make a checksum of a file.

    Parameters
    ----------
    path : str

    Returns
    -------
    str
        SHA-256, in hexadecimal digits.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelLoadError.unreadable(path, error.strerror or str(error)) from error


def write_output(path: str, source: str, journal: Journal) -> None:
    """Write all answers in the order of the input, at once or not at all.

    Parameters
    ----------
    path : str
        ``.jsonl`` or ``.csv``.
    source : str
        The input.
    journal : Journal
        With an answer to each line.
    """
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w", encoding="utf-8", errors="replace", newline="") as file:
            rows = _joined(source, journal)
            if kind_of(path, ("jsonl", "csv")) == "jsonl":
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            else:
                _write_csv(file, source, rows)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ModelLoadError.unwritable(path, error.strerror or str(error)) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _joined(source: str, journal: Journal) -> Iterator[dict[str, Any]]:
    answers = journal.answers(prompt.line for prompt in read_prompts(source))
    for prompt, answer in zip(read_prompts(source), answers, strict=True):
        row = {name: value for name, value in prompt.row.items() if name not in ("", *ANSWER)}
        yield {"line": prompt.line, **row, **{name: answer[name] for name in ANSWER}}


def _write_csv(file: Any, source: str, rows: Iterator[dict[str, Any]]) -> None:
    own = dict.fromkeys(name for prompt in read_prompts(source) for name in prompt.row if name not in ("", *ANSWER))
    writer = csv.DictWriter(file, ["line", *(name for name in own if name != "line"), *ANSWER])
    writer.writeheader()
    for row in rows:
        writer.writerow({name: json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
                         for name, value in row.items()})  # fmt: skip
