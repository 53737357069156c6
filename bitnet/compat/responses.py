"""The dictionaries that OpenAI's API and llama-cpp-python answer with."""

import itertools
import json
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Answer", "chat_logprobs", "completion_logprobs", "tool_calls_of", "usage_of"]

REASONS = {"eos": "stop", "stop": "stop", "length": "length"}


class Answer:
    """What all dictionaries of one answer have in common.

    Parameters
    ----------
    kind : str
        "text_completion" or "chat.completion".
    model : str
        The name it is told under.
    """

    def __init__(self, kind: str, model: str) -> None:
        prefix = "cmpl" if kind == "text_completion" else "chatcmpl"
        self._head = {"id": f"{prefix}-{uuid.uuid4()}", "created": int(time.time()), "model": model}
        self._kind = kind

    def whole(self, choice: dict[str, Any], usage: dict[str, int]) -> dict[str, Any]:
        """The answer in one.

        Parameters
        ----------
        choice, usage : dict

        Returns
        -------
        dict
        """
        return {**self._head, "object": self._kind, "choices": [{"index": 0, **choice}], "usage": usage}

    def chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        """A part of the answer.

        Parameters
        ----------
        choice : dict

        Returns
        -------
        dict
        """
        kind = self._kind if self._kind == "text_completion" else f"{self._kind}.chunk"
        one = {"index": 0, "logprobs": None, "finish_reason": None, **choice}
        return {**self._head, "object": kind, "choices": [one]}


def usage_of(prompt: int, completion: int) -> dict[str, int]:
    """Count tokens as OpenAI does.

    Parameters
    ----------
    prompt, completion : int

    Returns
    -------
    dict
    """
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def completion_logprobs(
    tokens: Sequence[int], logprobs: Sequence[float | None], tops: Sequence[Any], text_of: Callable[[int], bytes],
    start: int,
) -> dict[str, Any]:  # fmt: skip
    """Write log-probabilities as of a text completion.

    Parameters
    ----------
    tokens, logprobs, tops : sequence
        Each token, its log-probability, and the most likely ones there with theirs; None where nothing precedes.
    text_of : callable
        A token's bytes.
    start : int
        Where the text of the tokens begins, in characters.

    Returns
    -------
    dict
    """
    texts = [text_of(token).decode("utf-8", errors="ignore") for token in tokens]
    offsets = list(itertools.accumulate(map(len, texts), initial=start))[: len(texts)]
    written = [None if top is None else {text_of(token).decode("utf-8", errors="ignore"): logprob
                                         for token, logprob in top} for top in tops]  # fmt: skip
    return {"tokens": texts, "text_offset": offsets, "token_logprobs": list(logprobs), "top_logprobs": written}


def chat_logprobs(
    tokens: Sequence[int], logprobs: Sequence[float], tops: Sequence[Any], text_of: Callable[[int], bytes]
) -> dict[str, Any]:
    """Write log-probabilities as of a chat completion.

    Parameters
    ----------
    tokens, logprobs, tops, text_of
        As of `completion_logprobs`.

    Returns
    -------
    dict
    """

    def one(token: int, logprob: float) -> dict[str, Any]:
        data = text_of(token)
        return {"token": data.decode("utf-8", errors="ignore"), "bytes": list(data), "logprob": logprob}

    return {"refusal": None, "content": [
        {**one(token, logprob), "top_logprobs": [one(*other) for other in top or ()]}
        for token, logprob, top in zip(tokens, logprobs, tops, strict=True)
    ]}  # fmt: skip


def tool_calls_of(calls: Sequence[Any]) -> list[dict[str, Any]]:
    """Write tool calls as of a chat completion.

    Parameters
    ----------
    calls : list of ToolCall

    Returns
    -------
    list of dict
    """
    return [
        {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function",
         "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}}
        for call in calls
    ]  # fmt: skip
