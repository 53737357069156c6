"""An answer as it comes."""

import contextlib
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Self

import numpy as np

from bitnet.completion import Piece
from bitnet.config import GenerationConfig
from bitnet.errors import BitNetError, ConfigurationError, ErrorContext

__all__ = ["Stream", "for_streamer"]


class Stream(Iterator[Piece], AsyncIterator[Piece]):
    """An answer as it comes: an iterator of `Piece`, also an asynchronous one. A context manager, which closes it.

    ``for piece in stream`` computes in this thread what nobody else does. ``async for piece in stream`` leaves that to
    a thread, and the event loop goes on meanwhile; a task that is cancelled there ends the answer.

    Attributes
    ----------
    completion : Completion
        What has come so far; whole when the iterator has ended.
    """

    def __init__(self, scheduler, request, on_piece=None, rewound=None):
        self.completion = request.completion
        self._scheduler, self._request, self._on_piece, self._rewound = scheduler, request, on_piece, rewound
        self._inbox, self._pieces = request.inbox, request.inbox.pieces
        self._is_closed = self._is_told = False  # whether the error that ended it has been raised

    def __next__(self) -> Piece:
        if not self._pieces:
            if not self._is_closed:
                self._scheduler.drive(self._inbox)
            if not self._pieces:
                self._tell()
                raise StopIteration
        return self._next()  # type: ignore[no-any-return]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Piece:
        if not self._pieces:
            if not self._is_closed:
                await self._something()
            if not self._pieces:
                self._tell()
                raise StopAsyncIteration
        return self._next()  # type: ignore[no-any-return]

    async def _something(self):
        waiter = _Waiter()
        try:
            # What is woken for may be gone, as after a close.
            while not self._inbox.has_news() and self._scheduler.call(self._inbox, waiter):
                await waiter.future
                waiter = _Waiter()
        except BaseException:
            self._scheduler.call_off(waiter)
            self.close()
            raise
        finally:
            self._inbox.waiter = None

    def _next(self):
        piece, request = self._pieces.popleft(), self._request
        request.read += 1
        if request.is_stalled:
            self._scheduler.changed()
        if self._on_piece is not None:
            try:
                self._on_piece(piece)
            except BaseException:
                self.close()
                raise
        return piece

    def _tell(self):
        """Raise what ended it, once."""
        error = self._request.error
        if error is None or self._is_told or self._is_closed:
            return
        self._is_told = True
        if isinstance(error, BitNetError):
            with ErrorContext.during("stream"):
                raise error
        raise error

    def close(self) -> None:
        """Stop here, and forget what has not been read. From any thread, as often as you like."""
        self.cancel()
        self._is_closed, self._pieces = True, deque()

    async def aclose(self) -> None:
        """Stop here, as `close` does, which does not wait either."""
        self.close()

    def cancel(self) -> None:
        """Stop generating, from any thread; what has come can still be read."""
        if not self._request.has_ended:
            self._scheduler.cancel([self._request])

    def rewind(self, tokens: int, config: GenerationConfig | None = None) -> "Stream":
        """Take the answer back to its first tokens, and go on from there in another stream. This one is closed.

        What was computed for the tokens that stay is there still, where the engine has `prefix_cache`.

        Parameters
        ----------
        tokens : int
            How many of ``completion.tokens`` stay; what follows does not count, whether it was read or not.
        config : GenerationConfig, optional
            For what comes now, as another seed or a bias against the token that is taken back. By default the same:
            then what comes is what was taken back, unless tokens are drawn without a seed.

        Returns
        -------
        Stream
            Of the pieces after those tokens; its ``completion`` has all.

        Raises
        ------
        ConfigurationError
            If there are fewer tokens, or there may not be more.
        InferenceError
            If the engine is closed; a `QueueFullError` if too many requests wait.
        """
        config = config or self._request.config
        most = min(len(self.completion.tokens), config.max_new_tokens - 1)
        if isinstance(tokens, bool) or not isinstance(tokens, int) or not 0 <= tokens <= most:
            raise ConfigurationError.value("Stream.rewind", "tokens", tokens, f"a whole number from 0 to {most}: that "
                                           "many have come, and leave room for one more")  # fmt: skip
        return self._rewound(self, self._request, tokens, config, self._on_piece)  # type: ignore[no-any-return]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Only flags: the garbage collector may come while this very thread is anywhere in the scheduler.
        request = getattr(self, "_request", None)
        if request is not None and not request.has_ended:
            request.is_cancelled = True
            self._scheduler.changed()
            self._scheduler.tidy()


class _Waiter:
    """What wakes a task of asyncio, from any thread."""

    def __init__(self):
        import asyncio  # whoever comes here has it; for others it is part of the time to a first token

        self._loop = asyncio.get_running_loop()
        self.future = self._loop.create_future()

    def release(self):
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self):
        if not self.future.done():
            self.future.set_result(None)


def for_streamer(streamer, ids):
    """Make a callback of a streamer of Transformers: something with ``put(ids)`` and ``end()``.

    Parameters
    ----------
    streamer : object
    ids : ndarray of int32
        The prompt, which it is given first.

    Returns
    -------
    callable
        To be called with each `Piece`.
    """
    streamer.put(ids[None])

    def on_piece(piece):
        if piece.token is not None:
            streamer.put(np.array([piece.token]))

    return on_piece
