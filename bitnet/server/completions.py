"""``/v1/completions``."""

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

import bitnet
from bitnet.compat.responses import completion_logprobs
from bitnet.server.answers import News
from bitnet.server.generating import REASONS, Writer, answer, repeated
from bitnet.server.parameters import checked_choices, limited, prompt_list, settings
from bitnet.server.problems import refuse
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
    prompts, choices = prompt_list(body["prompt"]), body.get("n", 1)
    checked_choices(service, len(prompts) * choices)
    logprobs, echo = body.get("logprobs"), body.get("echo", False)
    if body.get("max_tokens") == 0 and (not echo or body.get("stream")):
        refuse(400, "max_tokens is 0, so there is nothing to answer but an echo, which is not streamed", "max_tokens",
               "invalid_value")  # fmt: skip
    echoes: list[Echo] = []
    if echo:
        with service.request():
            echoes = await service.call(lambda: [Echo(service, model, prompt, logprobs) for prompt in prompts])
    writer = TextWriter(service.name, choices, echoes, service.text_of if logprobs is not None else None)
    if body.get("max_tokens") == 0:
        return writer.echoed()
    config = settings(body, model, MOST, logprobs)

    def make(prompt: Any, its: bitnet.GenerationConfig, **options: Any) -> bitnet.Stream:
        return service.engine.stream(model, limited(service, model.encode(prompt)), its, **options)

    return await answer(request, service, body, repeated(service, body, config, make, prompts), writer, choices)


class Echo:
    """A prompt, to be part of an answer.

    Parameters
    ----------
    service : Service
    model : Model
    prompt : str or list of int
    logprobs : int or None
        How many most likely tokens to name in the place of each; None for no probabilities.

    Attributes
    ----------
    text : str
    tokens : list of int
    logprobs : list of (float or None)
        Nothing precedes the first.
    tops : list of (list or None)
    """

    def __init__(self, service: Service, model: bitnet.Model, prompt: Any, logprobs: int | None) -> None:
        ids = limited(service, model.encode(prompt))
        self.tokens = ids.tolist()
        self.text = prompt if isinstance(prompt, str) else ""
        if not isinstance(prompt, str) and model.tokenizer is not None:
            self.text = model.tokenizer.decode(self.tokens)
        self.logprobs: list[float | None] = [None] * min(len(ids), 1)
        self.tops: list[Any] = [None] * min(len(ids), 1)
        if logprobs is not None and len(ids) > 1:
            (score,) = service.engine.score(model, [ids], top_logprobs=logprobs)
            self.logprobs += score.logprobs.tolist()
            self.tops += score.top_logprobs or []


class TextWriter(Writer):
    """Texts that go on from prompts.

    Parameters
    ----------
    model : str
    choices : int
        Answers to each prompt.
    echoes : list of Echo
        What answers begin with; empty for nothing.
    text_of : callable or None
        A token's bytes, where log-probabilities are wanted.
    """

    def __init__(self, model: str, choices: int, echoes: list[Echo], text_of: Callable[[int], bytes] | None) -> None:
        super().__init__("cmpl", ("text_completion", "text_completion"), model)
        self._choices, self._echoes, self._text_of = choices, echoes, text_of
        self._lengths: dict[int, int] = {}  # characters of each answer so far

    def first(self, count: int) -> bytes:
        parts = []
        for number in range(count) if self._echoes else ():
            echo = self._echo(number)
            self._lengths[number] = len(echo.text)
            parts.append(self._part(number, echo.text, logprobs=self._probabilities(echo, [], [], [])))
        return b"".join(parts)

    def piece(self, news: News) -> bytes:
        piece, number = news.piece, news.number
        assert piece is not None
        start = self._lengths.get(number, 0)
        self._lengths[number] = start + len(piece.text)
        if self._text_of is None or piece.token is None:
            return self._part(number, piece.text) if piece.text else b""
        logprobs = completion_logprobs([piece.token], [piece.logprob], [piece.top_logprobs], self._text_of, start)
        return self._part(number, piece.text, logprobs=logprobs)

    def end(self, number: int, done: bitnet.Completion) -> bytes:
        return self._part(number, "", REASONS.get(str(done.finish_reason), done.finish_reason))

    def choice(self, number: int, done: bitnet.Completion) -> dict[str, Any]:
        reason = REASONS.get(str(done.finish_reason), done.finish_reason)
        echo = self._echo(number)
        logprobs = self._probabilities(echo, done.tokens, done.logprobs or [], done.top_logprobs or [])
        text = done.text if echo is None else echo.text + done.text
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def echoed(self) -> JSONResponse:
        """Prompts, and nothing after them."""
        found = [
            {"index": number, "text": self._echo(number).text, "finish_reason": "length",
             "logprobs": self._probabilities(self._echo(number), [], [], [])}
            for number in range(len(self._echoes) * self._choices)
        ]  # fmt: skip
        tokens = sum(len(echo.tokens) for echo in self._echoes)
        counted = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
        return JSONResponse({**self.head, "object": self.whole, "choices": found, "usage": counted})

    def _echo(self, number: int) -> Any:
        return self._echoes[number // self._choices] if self._echoes else None

    def _probabilities(self, echo: Echo | None, tokens: list[int], logprobs: list[Any], tops: list[Any]) -> Any:
        if self._text_of is None:
            return None
        if echo is not None:
            tokens, logprobs = [*echo.tokens, *tokens], [*echo.logprobs, *logprobs]
            tops = [*echo.tops, *tops]
        return completion_logprobs(tokens, logprobs, tops, self._text_of, 0)

    def _part(self, number: int, text: str, reason: str | None = None, logprobs: Any = None) -> bytes:
        return self.chunk({"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason})
