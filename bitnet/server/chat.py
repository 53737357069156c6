"""``/v1/chat/completions``."""

from collections.abc import Callable
from typing import Any

from starlette.requests import Request

import bitnet
from bitnet.chat import parse_tool_calls, tool_format
from bitnet.compat.responses import chat_logprobs, tool_calls_of
from bitnet.server.answers import News
from bitnet.server.generating import REASONS, Writer, answer, repeated
from bitnet.server.grammars import of_format, of_tools
from bitnet.server.parameters import checked_choices, limited, settings
from bitnet.server.problems import refuse
from bitnet.server.requests import body_of
from bitnet.server.service import Service

__all__ = ["chat_completions"]

BEGINS = {"hermes": ("<tool_call>",), "llama3": ("{", "<|python_tag|>")}
"""What tool calls begin with; those of "llama3" at the beginning of the answer only."""


async def chat_completions(request: Request) -> Any:
    """Answer the last message of a conversation."""
    service: Service = request.app.state.service
    body = await body_of(request)
    model = service.named(body.get("model"))
    checked_choices(service, body.get("n", 1))
    if "top_logprobs" in body and not body.get("logprobs"):
        refuse(400, "top_logprobs needs logprobs to be true", "top_logprobs", "invalid_value")
    logprobs = body.get("top_logprobs", 0) if body.get("logprobs") else None
    config = settings(body, model, model.config.max_position_embeddings, logprobs)
    template = service.config.chat_template or ("plain" if model.chat_template is None else None)
    choice = body.get("tool_choice", "auto")
    tools = body.get("tools") if choice != "none" else None
    must_call = isinstance(choice, dict) or choice == "required"
    if must_call and not tools:
        refuse(400, "there are no tools to choose from", "tool_choice", "invalid_value")
    # A model that knows no tools can be made to call them all the same.
    form = (tool_format(template or model.chat_template) or ("llama3" if must_call else None)) if tools else None
    messages = [_without_nulls(message) for message in body["messages"]]
    named = choice["function"]["name"] if isinstance(choice, dict) else None

    def grammar() -> bitnet.Grammar | None:
        return of_tools(tools or [], named, str(form)) if must_call else of_format(body.get("response_format"))

    its_grammar = await service.call(grammar)

    def make(_: Any, its: bitnet.GenerationConfig, **options: Any) -> bitnet.Stream:
        prompt = model.encode(model.chat_prompt(messages, tools=tools, template=template))
        return service.engine.stream(model, limited(service, prompt), its, grammar=its_grammar, **options)

    calls = repeated(service, body, config, make, [None])
    text_of = service.text_of if logprobs is not None else None
    writer = ChatWriter(service.name, form, text_of)
    return await answer(request, service, body, calls, writer, body.get("n", 1))


def _reason(done: bitnet.Completion, calls: list[dict[str, Any]]) -> str | None:
    return "tool_calls" if calls else REASONS.get(str(done.finish_reason), done.finish_reason)


def _without_nulls(message: dict[str, Any]) -> dict[str, Any]:
    found = {name: value for name, value in message.items() if value is not None}
    return found if found.get("content") is not None or found.get("tool_calls") else {**found, "content": ""}


class ChatWriter(Writer):
    """Answers of an assistant.

    Parameters
    ----------
    model : str
    form : str or None
        In which the model writes tool calls, as of `tool_format`.
    text_of : callable or None
        A token's bytes, where log-probabilities are wanted.
    """

    def __init__(self, model: str, form: str | None, text_of: Callable[[int], bytes] | None = None) -> None:
        super().__init__("chatcmpl", ("chat.completion", "chat.completion.chunk"), model)
        self._form, self._text_of = form, text_of
        self._held: dict[int, Held] = {}

    def first(self, count: int) -> bytes:
        self._held = {number: Held(self._form) for number in range(count)}
        return b"".join(self._delta(number, {"role": "assistant", "content": ""}) for number in range(count))

    def piece(self, news: News) -> bytes:
        assert news.piece is not None
        piece = news.piece
        text = piece.text if self._form is None else self._held[news.number].put(piece.text)
        if self._text_of is None or piece.token is None:
            return self._delta(news.number, {"content": text}) if text else b""
        # A token without text has a probability, too.
        logprobs = chat_logprobs([piece.token], [piece.logprob or 0.0], [piece.top_logprobs], self._text_of)
        return self._delta(news.number, {"content": text}, logprobs=logprobs)

    def end(self, number: int, done: bitnet.Completion) -> bytes:
        content, calls = self._calls(done.text)
        rest = content[len(self._held[number].sent) :] if self._form is not None else ""
        found = self._delta(number, {"content": rest}) if rest else b""
        for index, call in enumerate(calls):
            found += self._delta(number, {"tool_calls": [{"index": index, **call}]})
        return found + self._delta(number, {}, _reason(done, calls))

    def choice(self, number: int, done: bitnet.Completion) -> dict[str, Any]:
        content, calls = self._calls(done.text)
        message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
        if calls:
            message["tool_calls"] = calls
        logprobs = None
        if self._text_of is not None:
            logprobs = chat_logprobs(done.tokens, done.logprobs or [], done.top_logprobs or [], self._text_of)
        return {"index": number, "message": message, "logprobs": logprobs, "finish_reason": _reason(done, calls)}

    def _calls(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        content, calls = parse_tool_calls(text, self._form)
        return content, tool_calls_of(calls)

    def _delta(self, number: int, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None) -> bytes:
        return self.chunk({"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": reason})


class Held:
    """An answer that is sent as far as it cannot be a tool call.

    Parameters
    ----------
    form : str or None
    """

    def __init__(self, form: str | None) -> None:
        self.sent, self._form, self._text = "", form, ""

    def put(self, text: str) -> str:
        """Take some text.

        Parameters
        ----------
        text : str

        Returns
        -------
        str
            What can be sent.
        """
        self._text += text
        begins = BEGINS.get(str(self._form), ())
        if self._form == "llama3":
            rest = self._text.lstrip()
            held = not rest or any(rest.startswith(one) or one.startswith(rest) for one in begins)
            end = 0 if held else len(self._text)
        else:
            found = self._text.find(begins[0])
            end = found if found >= 0 else len(self._text) - _begun(self._text, begins[0])
            end = len(self._text[:end].rstrip())  # the space before a call is not sent, as the whole answer has none
        if end <= len(self.sent):
            return ""
        new, self.sent = self._text[len(self.sent) : end], self._text[:end]
        return new


def _begun(text: str, word: str) -> int:
    """How many characters at the end of a text may be the beginning of a word."""
    return next((count for count in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:count])), 0)
