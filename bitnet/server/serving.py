"""Runs the server: signals, draining, the deadline."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

import bitnet
from bitnet.server.app import create_app, service_of
from bitnet.server.config import ServerConfig

__all__ = ["serve"]

GRACE_S = 5.0  # after the deadline, for errors to be sent


def serve(
    config: ServerConfig | None = None, *, path: str | None = None, engine: bitnet.InferenceEngine | None = None,
    model: bitnet.Model | None = None, started: Callable[[str], object] | None = None,
) -> None:  # fmt: skip
    """Serve a model until a signal comes: SIGINT or SIGTERM.

    Then requests in progress have ``config.shutdown_s`` to end, new ones are refused. A second signal ends at once.

    Parameters
    ----------
    config : ServerConfig, optional
    path, engine, model
        As of `create_app`.
    started : callable, optional
        Called with the server's address when it listens.
    """
    config = config or ServerConfig()
    app = create_app(config, path=path, engine=engine, model=model)
    listening = _listening(config)
    host = f"[{config.host}]" if ":" in config.host else config.host
    address = f"http://{host}:{listening.getsockname()[1]}"
    settings = uvicorn.Config(
        app, log_level="warning", access_log=False, ws="none", server_header=False, proxy_headers=False,
        timeout_graceful_shutdown=int(config.shutdown_s + GRACE_S) + 1, lifespan="on",
    )  # fmt: skip
    server = Server(settings)
    server.told = lambda: started and started(address)
    server.run(sockets=[listening])


def _listening(config: ServerConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listening = socket.socket(family)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((config.host, config.port))
    except OSError:
        listening.close()
        raise
    return listening


class Server(uvicorn.Server):
    """Uvicorn's server, which tells the service that it is to end."""

    told: Any = staticmethod(lambda: None)

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.told()

    async def shutdown(self, sockets: Any = None) -> None:
        stopping = asyncio.create_task(service_of(self.config.app).stop())
        try:
            await super().shutdown(sockets)
        finally:
            stopping.cancel()
