"""An answer as it comes."""

from collections import deque
from collections.abc import Iterator
from typing import Self

from bitnet.completion import Piece
from bitnet.errors import BitNetError, ErrorContext

__all__ = ["Stream"]


class Stream(Iterator[Piece]):
    """An answer as it comes: an iterator of `Piece`. A context manager, which closes it.

    Attributes
    ----------
    completion : Completion
        What has come so far; whole when the iterator has ended.
    """

    def __init__(self, scheduler, request, on_piece=None):
        self.completion = request.completion
        self._scheduler, self._request, self._on_piece = scheduler, request, on_piece
        self._inbox, self._pieces = request.inbox, request.inbox.pieces
        self._is_closed = self._is_told = False  # whether the error that ended it has been raised

    def __next__(self) -> Piece:
        pieces = self._pieces
        if not pieces:
            if not self._is_closed:
                self._scheduler.drive(self._inbox)
            if not pieces:
                self._end()
        piece = pieces.popleft()
        request = self._request
        request.read += 1
        if request.is_stalled:
            self._scheduler.changed()
        if self._on_piece is not None:
            self._call(piece)
        return piece  # type: ignore[no-any-return]

    def _call(self, piece):
        try:
            self._on_piece(piece)
        except BaseException:
            self.close()
            raise

    def _end(self):
        """Raise what ended it, once; then StopIteration."""
        error = self._request.error
        if error is None or self._is_told or self._is_closed:
            raise StopIteration
        self._is_told = True
        if isinstance(error, BitNetError):
            with ErrorContext.during("stream"):
                raise error
        raise error

    def close(self) -> None:
        """Stop here, and forget what has not been read. From any thread, as often as you like."""
        self.cancel()
        self._is_closed, self._pieces = True, deque()

    def cancel(self) -> None:
        """Stop generating, from any thread; what has come can still be read."""
        if not self._request.has_ended:
            self._scheduler.cancel([self._request])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Only flags: the garbage collector may come while this very thread is anywhere in the scheduler.
        request = getattr(self, "_request", None)
        if request is not None and not request.has_ended:
            request.is_cancelled = True
            self._scheduler.changed()
            self._scheduler.tidy()
