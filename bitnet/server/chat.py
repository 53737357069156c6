"""``/v1/chat/completions``."""

import json
import secrets
from typing import Any

from starlette.requests import Request

import bitnet
from bitnet.chat import parse_tool_calls, tool_format
from bitnet.server.answers import News
from bitnet.server.generating import REASONS, Writer, answer, repeated
from bitnet.server.parameters import checked_choices, limited, settings
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
    config = settings(body, model, model.config.max_position_embeddings)
    template = service.config.chat_template or ("plain" if model.chat_template is None else None)
    tools = body.get("tools") if body.get("tool_choice") != "none" else None
    messages = [_without_nulls(message) for message in body["messages"]]

    def make(_: Any, its: bitnet.GenerationConfig, **options: Any) -> bitnet.Stream:
        prompt = model.encode(model.chat_prompt(messages, tools=tools, template=template))
        return service.engine.stream(model, limited(service, prompt), its, **options)

    form = tool_format(template or model.chat_template) if tools else None
    calls = repeated(service, body, config, make, [None])
    return await answer(request, service, body, calls, ChatWriter(service.name, form), body.get("n", 1))


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
    """

    def __init__(self, model: str, form: str | None) -> None:
        super().__init__("chatcmpl", ("chat.completion", "chat.completion.chunk"), model)
        self._form = form
        self._held: dict[int, Held] = {}

    def first(self, count: int) -> bytes:
        self._held = {number: Held(self._form) for number in range(count)}
        return b"".join(self._delta(number, {"role": "assistant", "content": ""}) for number in range(count))

    def piece(self, news: News) -> bytes:
        assert news.piece is not None
        text = news.piece.text if self._form is None else self._held[news.number].put(news.piece.text)
        return self._delta(news.number, {"content": text}) if text else b""

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
        return {"index": number, "message": message, "logprobs": None, "finish_reason": _reason(done, calls)}

    def _calls(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        content, calls = parse_tool_calls(text, self._form)
        return content, [
            {"id": f"call_{secrets.token_hex(12)}", "type": "function",
             "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}}
            for call in calls
        ]  # fmt: skip

    def _delta(self, number: int, delta: dict[str, Any], reason: str | None = None) -> bytes:
        return self.chunk({"index": number, "delta": delta, "logprobs": None, "finish_reason": reason})


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
