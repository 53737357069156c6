"""What both endpoints that generate share: beginning, waiting, sending, counting."""

import abc
import functools
import json
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

import bitnet
from bitnet.server.answers import Answers, News, cancelling_when_gone, checked, completions
from bitnet.server.events import DONE, EventStream, event
from bitnet.server.service import Service

__all__ = ["REASONS", "Writer", "answer", "usage"]

REASONS = {"eos": "stop", "stop": "stop", "length": "length"}
"""Why an answer ended, in OpenAI's words; another reason, as "timeout", has none there and stays."""


def usage(done: Sequence[bitnet.Completion], choices: int) -> dict[str, Any]:
    """Count the tokens of a request; those of a prompt once, however many answers it has.

    Parameters
    ----------
    done : list of Completion
    choices : int
        To each prompt.

    Returns
    -------
    dict
    """
    prompt = sum(one.prompt_tokens for one in done[::choices])
    made = sum(len(one.tokens) for one in done)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made,
            "prompt_tokens_details": {"cached_tokens": sum(one.cached_tokens for one in done[::choices])}}  # fmt: skip


class Writer(abc.ABC):
    """Writes what comes of a request's generations as an endpoint has it.

    Parameters
    ----------
    kind : str
        What its ids begin with.
    objects : tuple of str
        What a whole answer, and an event, call themselves.
    model : str
    """

    def __init__(self, kind: str, objects: tuple[str, str], model: str) -> None:
        self.head = {"id": f"{kind}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self.whole, self.part = objects
        self._start = event({**self.head, "object": self.part}).removesuffix(b"}\n\n") + b',"choices":['

    def first(self, count: int) -> bytes:
        """Events before all others."""
        return b""  # some have none

    @abc.abstractmethod
    def piece(self, news: News) -> bytes:
        """Events of a piece."""

    @abc.abstractmethod
    def end(self, number: int, done: bitnet.Completion) -> bytes:
        """Events of an answer's end."""

    @abc.abstractmethod
    def choice(self, number: int, done: bitnet.Completion) -> dict[str, Any]:
        """An answer as a whole."""

    def chunk(self, choice: dict[str, Any]) -> bytes:
        """An event with one choice."""
        return self._start + json.dumps(choice, ensure_ascii=False, separators=(",", ":")).encode() + b"]}\n\n"

    def counts(self, counted: dict[str, Any]) -> bytes:
        """The event that counts the tokens."""
        return event({**self.head, "object": self.part, "choices": [], "usage": counted})


async def answer(
    request: Request, service: Service, body: dict[str, Any], calls: Sequence[Callable[[], bitnet.Stream]],
    writer: Writer, choices: int,
) -> Any:  # fmt: skip
    """Generate, and answer a request with what comes.

    Parameters
    ----------
    request : Request
        Whose body has been read.
    service : Service
    body : dict
        Whether to stream.
    calls : list of callable
        Each makes a `bitnet.Stream`.
    writer : Writer
    choices : int
        Answers to each prompt.

    Returns
    -------
    ASGI application
    """
    if not body.get("stream"):
        with service.request():
            answers = Answers(calls, service.threads)
            with cancelling_when_gone(request, answers.cancel):
                done = await completions(answers, len(calls), service.metrics.watcher())
        found = [writer.choice(number, one) for number, one in enumerate(done)]
        return JSONResponse({**writer.head, "object": writer.whole, "choices": found, "usage": usage(done, choices)})
    chunks = _events(request, service, body, calls, writer, choices)
    first = await anext(chunks)  # an error before it has a status of its own

    async def all_chunks() -> AsyncGenerator[bytes, None]:
        try:
            yield first
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()

    return EventStream(all_chunks())


async def _events(
    request: Request, service: Service, body: dict[str, Any], calls: Sequence[Callable[[], bitnet.Stream]],
    writer: Writer, choices: int,
) -> AsyncGenerator[bytes, None]:  # fmt: skip
    done: dict[int, bitnet.Completion] = {}
    begun, seen = False, service.metrics.watcher()
    with service.request():
        answers = Answers(calls, service.threads)
        with cancelling_when_gone(request, answers.cancel):
            async for batch in answers.batches():
                parts = [] if begun else [writer.first(len(calls))]
                begun = True
                for news in checked(batch):
                    seen(news)
                    if news.piece is not None:
                        parts.append(writer.piece(news))
                    elif news.completion is not None:
                        done[news.number] = news.completion
                        parts.append(writer.end(news.number, news.completion))
                if chunk := b"".join(parts):
                    yield chunk
    if len(done) == len(calls):
        if (body.get("stream_options") or {}).get("include_usage"):
            yield writer.counts(usage([done[number] for number in range(len(calls))], choices))
        yield DONE


def repeated(
    service: Service, body: dict[str, Any], config: bitnet.GenerationConfig, make: Callable[..., bitnet.Stream],
    prompts: Sequence[Any],
) -> Sequence[Callable[[], bitnet.Stream]]:  # fmt: skip
    """Make the calls for `n` answers to each prompt; each further one draws with the seed after.

    Parameters
    ----------
    service : Service
    body : dict
    config : GenerationConfig
    make : callable
        ``make(prompt, config, priority=, timeout=)`` gives a stream.
    prompts : list

    Returns
    -------
    list of callable
    """
    options = {"priority": body.get("priority", 0), "timeout": service.config.timeout_s}
    calls = []
    for prompt in prompts:
        for number in range(body.get("n", 1)):
            its = config if config.seed is None or not number else config.replace(seed=config.seed + number)
            calls.append(functools.partial(make, prompt, its, **options))
    return calls
