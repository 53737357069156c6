"""Vectors of texts, their tokens, and what models there are."""

import base64
import threading
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from bitnet.server.answers import cancelling_when_gone
from bitnet.server.parameters import limited, prompt_list
from bitnet.server.problems import refuse
from bitnet.server.requests import body_of
from bitnet.server.service import Service

__all__ = ["detokenize", "embeddings", "live", "model", "models", "ready", "tokenize"]

BATCH = 8
"""Texts that are embedded together, between two looks at the clock."""


async def embeddings(request: Request) -> Response:
    """Make vectors of texts."""
    service: Service = request.app.state.service
    body = await body_of(request)
    model = service.named(body.get("model"))
    texts = prompt_list(body["input"])
    width = model.config.hidden_size
    if body.get("dimensions", width) != width:
        refuse(400, f"the vectors of this model have {width} dimensions", "dimensions", "invalid_value")

    is_over, end = threading.Event(), time.monotonic() + service.config.timeout_s

    def go_on(done: int, total: int) -> None:
        if is_over.is_set() or time.monotonic() > end:
            refuse(503, f"{done} of {total} texts are done, and the time is over; ask for fewer", code="timeout")

    def make() -> tuple[Any, int]:
        ids = [limited(service, model.encode(text)) for text in texts]
        return service.engine.embed(model, ids, batch_size=BATCH, progress=go_on), sum(map(len, ids))

    with service.request(), cancelling_when_gone(request, is_over.set):
        vectors, tokens = await service.call(make)
    as_base64 = body.get("encoding_format") == "base64"
    found = [base64.b64encode(one.astype("<f4").tobytes()).decode() if as_base64 else one.tolist() for one in vectors]
    return JSONResponse({
        "object": "list", "model": service.name,
        "data": [{"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(found)],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    })  # fmt: skip


async def tokenize(request: Request) -> Response:
    """Make tokens of a text."""
    service: Service = request.app.state.service
    body = await body_of(request)
    model = service.named(body.get("model"))
    tokenizer = _tokenizer(model)
    ids = await service.call(tokenizer.encode, body["prompt"], body.get("add_special_tokens", True))
    return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": model.config.max_position_embeddings})


async def detokenize(request: Request) -> Response:
    """Make a text of tokens."""
    service: Service = request.app.state.service
    body = await body_of(request)
    model = service.named(body.get("model"))
    tokenizer, size = _tokenizer(model), model.config.vocab_size
    if any(token >= size for token in body["tokens"]):
        refuse(400, f"a token is not in the vocabulary of {size}", "tokens", "invalid_value")
    return JSONResponse({"prompt": await service.call(tokenizer.decode, body["tokens"])})


def _tokenizer(model: Any) -> Any:
    if model.tokenizer is None:
        refuse(400, "the model has no tokenizer", code="no_tokenizer")
    return model.tokenizer


async def models(request: Request) -> Response:
    """List the models."""
    return JSONResponse({"object": "list", "data": [_described(request.app.state.service)]})


async def model(request: Request) -> Response:
    """Describe a model."""
    service: Service = request.app.state.service
    service.named(request.path_params["model"])
    return JSONResponse(_described(service))


def _described(service: Service) -> dict[str, Any]:
    context = service.model.config.max_position_embeddings
    return {"id": service.name, "object": "model", "created": service.created, "owned_by": "bitnet",
            "max_model_len": context}  # fmt: skip


async def live(request: Request) -> Response:
    """Whether the process lives: it has answered."""
    return JSONResponse({"status": "live"})


async def ready(request: Request) -> Response:
    """Whether requests are taken."""
    service: Service = request.app.state.service
    status = 200 if service.state == "ready" else 503
    return JSONResponse({"status": service.state}, status)
