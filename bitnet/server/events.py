"""Server-sent events: an answer as it comes."""

import json
from collections.abc import AsyncGenerator
from typing import Any

from starlette.types import Receive, Scope, Send

from bitnet.server.problems import problem_of

__all__ = ["DONE", "EventStream", "event"]

DONE = b"data: [DONE]\n\n"
HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"),
           (b"x-accel-buffering", b"no")]  # fmt: skip


def event(content: Any) -> bytes:
    """Write an event.

    Parameters
    ----------
    content : object
        What JSON can hold.

    Returns
    -------
    bytes
    """
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class EventStream:
    """An answer of HTTP whose body is made while it is sent; an error in it becomes its last event.

    Parameters
    ----------
    chunks : async generator of bytes
        One or more events each.
    """

    def __init__(self, chunks: AsyncGenerator[bytes, None]) -> None:
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        try:
            async for chunk in self._chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except Exception as error:
            await send({"type": "http.response.body", "body": event(problem_of(error).body()), "more_body": True})
        finally:
            await self._chunks.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
