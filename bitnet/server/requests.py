"""Bodies of requests: JSON, of bounded size, that has arrived in time."""

import asyncio
import json
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from bitnet.server.problems import refuse
from bitnet.server.schema import check

__all__ = ["body_of"]

ARRIVAL_S = 30.0  # in which a body has to be there


async def body_of(request: Request) -> dict[str, Any]:
    """Read a request's body, and hold it to the schema of its path.

    Parameters
    ----------
    request : Request

    Returns
    -------
    dict
        Without nulls.

    Raises
    ------
    Problem
    """
    limit = request.app.state.service.config.max_body_bytes
    # A page of another site may send forms and plain text without being asked whether it may; JSON it may not.
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        refuse(415, f"the body is '{kind[:100]}'; it must be application/json", code="unsupported_media_type")
    try:
        async with asyncio.timeout(ARRIVAL_S):
            content = await _read(request, limit)
    except TimeoutError:
        refuse(408, f"the body has not arrived in {ARRIVAL_S:g} seconds", code="timeout")
    except ClientDisconnect:
        refuse(400, "the client has gone", code="disconnected")
    try:
        body = json.loads(content, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        refuse(400, f"the body is no JSON: {str(error)[:200]}", code="invalid_json")
    return check(request.scope["path"], body)


async def _read(request: Request, limit: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            refuse(413, f"the body has more than {limit} bytes", code="body_too_large", Connection="close")
        parts.append(part)
    return b"".join(parts)


def _no_constant(name: str) -> NoReturn:
    refuse(400, f"the body has {name}, which JSON has not", code="invalid_json")
