"""``/v1/completions``."""

from typing import Any

from starlette.requests import Request

import bitnet
from bitnet.server.answers import News
from bitnet.server.generating import REASONS, Writer, answer, repeated
from bitnet.server.parameters import checked_choices, limited, prompt_list, settings
from bitnet.server.requests import body_of
from bitnet.server.service import Service

__all__ = ["text_completions"]

MOST = 16
"""Tokens of an answer by default, as OpenAI has it."""


async def text_completions(request: Request) -> Any:
    """Go on from texts."""
    service: Service = request.app.state.service
    body = await body_of(request)
    model = service.named(body.get("model"))
    prompts = prompt_list(body["prompt"])
    checked_choices(service, len(prompts) * body.get("n", 1))
    config = settings(body, model, MOST)

    def make(prompt: Any, its: bitnet.GenerationConfig, **options: Any) -> bitnet.Stream:
        return service.engine.stream(model, limited(service, model.encode(prompt)), its, **options)

    calls = repeated(service, body, config, make, prompts)
    return await answer(request, service, body, calls, TextWriter(service.name), body.get("n", 1))


class TextWriter(Writer):
    """Texts that go on from prompts."""

    def __init__(self, model: str) -> None:
        super().__init__("cmpl", ("text_completion", "text_completion"), model)

    def piece(self, news: News) -> bytes:
        assert news.piece is not None
        return self._part(news.number, news.piece.text) if news.piece.text else b""

    def end(self, number: int, done: bitnet.Completion) -> bytes:
        return self._part(number, "", REASONS.get(str(done.finish_reason), done.finish_reason))

    def choice(self, number: int, done: bitnet.Completion) -> dict[str, Any]:
        reason = REASONS.get(str(done.finish_reason), done.finish_reason)
        return {"index": number, "text": done.text, "logprobs": None, "finish_reason": reason}

    def _part(self, number: int, text: str, reason: str | None = None) -> bytes:
        return self.chunk({"index": number, "text": text, "logprobs": None, "finish_reason": reason})
