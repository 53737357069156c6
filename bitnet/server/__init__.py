"""An HTTP server that clients of OpenAI's interface talk to (extra ``server``: Starlette and Uvicorn).

The map::

    ServerConfig    config.py       name, address, limits, keys; needs no Starlette
    serve           serving.py      runs it: signals, draining, the deadline
    create_app      app.py          the routes, and what stands before them: keys, hosts, origins
                    chat.py  completions.py  texts.py     the endpoints
                    parameters.py   a request's JSON as a `GenerationConfig`
                    grammars.py     and as what the answer has to be
                    requests.py     bodies: of bounded size, and held to their schemas
                    generating.py   beginning, waiting, sending, counting: what both that generate share
                    answers.py      generations, from the threads that wait for them to the loop that sends
                    events.py       server-sent events
                    service.py      the engine, the model, and how many requests there are
                    metrics.py      what Prometheus reads
                    schema.py       JSON schemas of the requests, and the OpenAPI document made of them
                    problems.py     errors as OpenAI writes them
                    page.html       the page at ``/``

``bitnet serve`` is its command.
"""

import importlib
from typing import Any

from bitnet.errors import DeviceError
from bitnet.server.config import ServerConfig

HOMES = {"create_app": "app", "serve": "serving"}
"""The module of each name that needs the extra, which is imported when the name is used."""

LIBRARIES = ("starlette", "uvicorn", "jsonschema", "prometheus_client")

__all__ = ["ServerConfig", *HOMES]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'bitnet.server' has no attribute '{name}'")
    for library in LIBRARIES:
        try:
            importlib.import_module(library)
        except ImportError as error:
            raise DeviceError.missing_extra(library, "server") from error
    return getattr(importlib.import_module(f"bitnet.server.{HOMES[name]}"), name)
