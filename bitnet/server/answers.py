"""Generations in progress, and what comes of them.

Each is a task that reads the engine's stream; the engine's own thread makes the tokens. What has come since the last
time goes to the client together, so many streams cost the loop few turns.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

from starlette.requests import Request

import bitnet

__all__ = ["Answers", "News", "cancelling_when_gone"]

Call = Callable[[], bitnet.Stream]


class News(NamedTuple):
    """What came of one generation.

    Attributes
    ----------
    number : int
        Which one.
    piece : Piece or None
        None where it has ended.
    completion : Completion or None
        Where it has ended as it should.
    error : BaseException or None
        Else what it ended with.
    """

    number: int
    piece: bitnet.Piece | None = None
    completion: bitnet.Completion | None = None
    error: BaseException | None = None


class Answers:
    """Generations of one request, which begin at once.

    Parameters
    ----------
    calls : list of callable
        Each makes a `bitnet.Stream`, in a thread: tokens of a prompt, and tables of a grammar, take time.
    threads : Executor
    """

    def __init__(self, calls: Sequence[Call], threads: Executor) -> None:
        self._is_news, self._items = asyncio.Event(), deque[News]()
        self._is_cancelled = False
        self._streams: list[bitnet.Stream | None] = [None] * len(calls)
        self._tasks = [asyncio.create_task(self._read(*one, threads)) for one in enumerate(calls)]

    def cancel(self) -> None:
        """End them all; what has not been read is forgotten."""
        self._is_cancelled = True
        for stream in self._streams:
            if stream is not None:
                stream.close()
        self._is_news.set()

    async def batches(self) -> AsyncGenerator[list[News], None]:
        """Wait for what comes, until all have ended or `cancel` is called.

        Yields
        ------
        list of News
            All that there is by now; at least one.
        """
        left = len(self._streams)
        while left and not self._is_cancelled:
            await self._is_news.wait()
            self._is_news.clear()
            batch = list(self._items)
            self._items.clear()
            left -= sum(one.piece is None for one in batch)
            if batch and not self._is_cancelled:
                yield batch

    async def _read(self, number: int, call: Call, threads: Executor) -> None:
        try:
            stream = await asyncio.get_running_loop().run_in_executor(threads, call)
            self._streams[number] = stream
            if self._is_cancelled:  # meanwhile, when there was nothing to close
                stream.close()
            async for piece in stream:
                self._put(News(number, piece))
            self._put(News(number, completion=stream.completion))
        except BaseException as error:
            self._put(News(number, error=error))

    def _put(self, news: News) -> None:
        self._items.append(news)
        self._is_news.set()


@contextlib.contextmanager
def cancelling_when_gone(request: Request, cancel: Callable[[], object]) -> Iterator[None]:
    """End what is being done when the client goes, or the ``with`` ends.

    Parameters
    ----------
    request : Request
        Whose body has been read.
    cancel : callable
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        cancel()

    watch = asyncio.create_task(gone())
    try:
        yield
    finally:
        watch.cancel()
        cancel()


def checked(batch: list[News]) -> list[News]:
    """Raise the first error of a batch.

    Parameters
    ----------
    batch : list of News

    Returns
    -------
    list of News
    """
    for news in batch:
        if news.error is not None:
            raise news.error
    return batch


async def completions(answers: Answers, count: int, seen: Callable[[News], Any] = lambda _: None) -> list[Any]:
    """Wait until all generations have ended.

    Parameters
    ----------
    answers : Answers
    count : int
        How many.
    seen : callable, optional
        Called with all that comes.

    Returns
    -------
    list of Completion
        Shorter where it was cancelled.
    """
    found: dict[int, bitnet.Completion] = {}
    async for batch in answers.batches():
        for news in checked(batch):
            seen(news)
            if news.completion is not None:
                found[news.number] = news.completion
    return [found[number] for number in range(count)] if len(found) == count else []
