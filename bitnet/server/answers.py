"""Generations in progress: from the threads that wait for their tokens to the event loop that sends them.

An engine's stream is read by a thread. Threads put what comes into one queue, and wake the loop only if it is not awake
already: many streams cost it few turns.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
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
        Each makes a `bitnet.Stream`, in a thread.
    threads : Executor
    """

    def __init__(self, calls: Sequence[Call], threads: Executor) -> None:
        self._loop, self._is_news = asyncio.get_running_loop(), asyncio.Event()
        self._items: deque[News] = deque()
        self._is_woken = self._is_cancelled = False
        self._streams: list[bitnet.Stream | None] = [None] * len(calls)
        for number, call in enumerate(calls):
            threads.submit(self._read, number, call)

    def cancel(self) -> None:
        """End them all; what has not been read is forgotten."""
        self._is_cancelled = True
        for stream in self._streams:
            if stream is not None:
                stream.close()
        self._is_news.set()

    async def batches(self) -> AsyncIterator[list[News]]:
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
            self._is_woken = False  # before looking: whoever comes after that wakes again
            batch = []
            while self._items:
                batch.append(self._items.popleft())
            left -= sum(one.piece is None for one in batch)
            if batch and not self._is_cancelled:
                yield batch

    def _read(self, number: int, call: Call) -> None:
        try:
            if self._is_cancelled:
                return
            stream = call()
            self._streams[number] = stream
            if self._is_cancelled:  # meanwhile, when there was nothing to close
                stream.close()
            for piece in stream:
                self._put(News(number, piece))
            self._put(News(number, completion=stream.completion))
        except BaseException as error:
            self._put(News(number, error=error))

    def _put(self, news: News) -> None:
        self._items.append(news)
        if not self._is_woken:
            self._is_woken = True
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._is_news.set)


@contextlib.contextmanager
def cancelling_when_gone(request: Request, answers: Answers) -> Iterator[None]:
    """End generations when the client goes, or the ``with`` ends.

    Parameters
    ----------
    request : Request
        Whose body has been read.
    answers : Answers
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        answers.cancel()

    watch = asyncio.create_task(gone())
    try:
        yield
    finally:
        watch.cancel()
        answers.cancel()


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
