"""The routes, and what stands before them: names, origins and keys."""

import contextlib
import hmac
import importlib.resources
import logging
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

import bitnet
from bitnet.errors import BitNetError
from bitnet.server import chat, completions, schema, texts
from bitnet.server.config import ServerConfig
from bitnet.server.metrics import MetricsMiddleware, metrics
from bitnet.server.problems import Problem, problem_of
from bitnet.server.service import Service

__all__ = ["create_app"]

log = logging.getLogger(__name__)

OPEN = ("/", "/health/live", "/health/ready", "/openapi.json")  # without a key
LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")


def create_app(
    config: ServerConfig | None = None, *, path: str | None = None, engine: bitnet.InferenceEngine | None = None,
    model: bitnet.Model | None = None,
) -> Starlette:  # fmt: skip
    """Make the server as an application for any ASGI server.

    Parameters
    ----------
    config : ServerConfig, optional
        Of which the address counts for nothing here.
    path : str, optional
        The checkpoint; by default the model that comes with the package. It is loaded when the application starts, in a
        thread: until then requests are answered 503.
    engine : InferenceEngine, optional
        It is closed with the application.
    model : Model, optional
        Instead of `path`.

    Returns
    -------
    Starlette
        ``app.state.service`` is what the endpoints share.
    """
    config = config or ServerConfig()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.service.start()
        try:
            yield
        finally:
            app.state.service.close()

    routes = [
        Route("/v1/chat/completions", chat.chat_completions, methods=["POST"]),
        Route("/v1/completions", completions.text_completions, methods=["POST"]),
        Route("/v1/embeddings", texts.embeddings, methods=["POST"]),
        Route("/tokenize", texts.tokenize, methods=["POST"]),
        Route("/detokenize", texts.detokenize, methods=["POST"]),
        Route("/v1/models", texts.models), Route("/v1/models/{model:path}", texts.model),
        Route("/health/live", texts.live), Route("/health/ready", texts.ready),
        Route("/metrics", metrics), Route("/openapi.json", openapi), Route("/", page),
    ]  # fmt: skip
    hosts = config.strings("hosts")
    if hosts or config.host in LOOPBACK:
        hosts = (*LOOPBACK, *hosts)
    service = Service(config, engine or bitnet.InferenceEngine(), model, path)
    paths = [route.path for route in routes]
    middleware = [Middleware(MetricsMiddleware, metrics=service.metrics, paths=paths),
                  Middleware(Guard, hosts=hosts, keys=config.strings("api_keys"))]  # fmt: skip
    if config.cors_origins:
        middleware.insert(0, Middleware(CORSMiddleware, allow_origins=config.strings("cors_origins"),
                                        allow_methods=["GET", "POST"], allow_headers=["*"]))  # fmt: skip
    app = Starlette(
        routes=routes, middleware=middleware, lifespan=lifespan,
        exception_handlers={
            HTTPException: told_by_starlette, Problem: told, BitNetError: told, MemoryError: told, Exception: told,
        },
    )  # fmt: skip
    app.state.service = service
    return app


async def openapi(request: Request) -> Response:
    """The OpenAPI document."""
    return JSONResponse(schema.document(bitnet.__version__))


async def page(request: Request) -> Response:
    """The page at ``/``."""
    content = importlib.resources.files("bitnet.server").joinpath("page.html").read_bytes()
    policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"
    return Response(content, media_type="text/html", headers={
        "Content-Security-Policy": f"{policy}; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
    })  # fmt: skip


async def told(request: Request, error: Exception) -> Response:
    """Tell of an error as OpenAI does."""
    problem = problem_of(error)
    if problem.status == 500:
        log.error("an error that nobody expected, of %s", request.scope["path"], exc_info=error)
    return problem.response()


async def told_by_starlette(request: Request, error: Exception) -> Response:
    """Tell of a path or a method that there is not."""
    assert isinstance(error, HTTPException)
    messages = {404: f"there is nothing at {request.scope['path'][:200]!r}",
                405: f"{request.method} is not for this path"}  # fmt: skip
    message = messages.get(error.status_code, error.detail)
    return Problem(error.status_code, message, headers=dict(error.headers or {})).response()


class Guard:
    """Refuses requests that do not name this server, or have no key.

    Parameters
    ----------
    app : ASGI application
    hosts : tuple of str
        Names of this server; empty for any.
    keys : tuple of str
        Empty where none is asked for.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...], keys: tuple[str, ...]) -> None:
        self._app, self._hosts = app, frozenset(hosts)
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            problem = self._problem(scope)
            if problem is not None:
                await problem.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _problem(self, scope: Scope) -> Problem | None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if self._hosts:
            host = headers.get(b"host", b"").decode("latin-1")
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if name.lower() not in self._hosts:
                return Problem(403, f"this server is not called '{host[:100]}'", code="unknown_host")
        if self._keys and scope["path"] not in OPEN and scope["method"] != "OPTIONS":
            given = headers.get(b"authorization", b"")
            key = given[7:] if given[:7].lower() == b"bearer " else b""
            # All are compared, each in a time that does not tell how much of it is right.
            if not sum(hmac.compare_digest(key, one) for one in self._keys):
                return Problem(401, "a valid key is needed: Authorization: Bearer KEY", code="invalid_api_key",
                               headers={"WWW-Authenticate": "Bearer"})  # fmt: skip
        return None


def service_of(app: Any) -> Service:
    """Give what the endpoints of an application share."""
    service: Service = app.state.service
    return service
