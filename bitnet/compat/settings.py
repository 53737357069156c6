"""What `Llama` takes from llama-cpp-python, and how its parts are made of the engine's."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bitnet.chat import parse_tool_calls
from bitnet.compat.responses import REASONS, tool_calls_of
from bitnet.errors import ConfigurationError

__all__ = ["HOW", "KV_TYPES", "POOLINGS", "RANDOM_SEED", "WHAT", "LogitsProcessorList", "StoppingCriteriaList",
           "chat_choice", "check_unavailable", "finished", "processing", "until_stopped"]  # fmt: skip

Ids = npt.NDArray[np.int32]
Logits = npt.NDArray[np.float32]
Answers = dict[str, Any]

RANDOM_SEED = 0xFFFFFFFF  # llama.cpp's way to say "any"
KV_TYPES = {None: "float16", 0: "float32", 1: "float16", 8: "int8"}  # by the numbers of ggml's types
# Settings of llama-cpp-python by the values that change nothing. Those of the first kind only say how its own kernels
# and buffers work, and are taken as they come; another value of the second kind would mean another result.
HOW = frozenset((
    "n_gpu_layers", "split_mode", "main_gpu", "tensor_split", "use_mmap", "use_mlock", "n_batch", "n_ubatch",
    "n_threads_batch", "offload_kqv", "flash_attn", "op_offload", "swa_full", "no_perf", "numa", "logits_all",
    "verbose", "last_n_tokens_size",
))  # fmt: skip
WHAT: Mapping[str, tuple[Any, ...]] = {
    "kv_overrides": (None,), "rope_scaling_type": (-1, None), "attention_type": (-1, None), "rope_freq_base": (0.0,),
    "rope_freq_scale": (0.0,), "yarn_ext_factor": (-1.0,), "yarn_attn_factor": (1.0,), "yarn_beta_fast": (32.0,),
    "yarn_beta_slow": (1.0,), "yarn_orig_ctx": (0,), "lora_base": (None,), "lora_scale": (1.0,), "lora_path": (None,),
    "chat_handler": (None,), "draft_model": (None,), "tokenizer": (None,), "spm_infill": (False,),
}  # fmt: skip
POOLINGS = {-1: None, 1: "mean", 2: "cls", 3: "last"}


class LogitsProcessorList(list[Callable[[Ids, Logits], Logits]]):
    """Functions that change logits, one after the other."""

    def __call__(self, input_ids: Ids, scores: Logits) -> Logits:
        for processor in self:
            scores = processor(input_ids, scores)
        return scores


class StoppingCriteriaList(list[Callable[[Ids, Logits], bool]]):
    """Functions of which any may end a text."""

    def __call__(self, input_ids: Ids, logits: Logits) -> bool:
        return any(criterion(input_ids, logits) for criterion in self)


class _StopHere(Exception):
    """Raised where a stopping criterion holds; it ends that request alone."""


def check_unavailable(**given: tuple[Any, Any]) -> None:
    """Refuse what is not there.

    Parameters
    ----------
    **given
        By name: what was given, and what it must be.
    """
    for name, (value, needed) in given.items():
        if value != needed:
            raise ConfigurationError.value("Llama", name, value, f"{needed!r}; nothing else is there")


def processing(processor: Any, criteria: Any) -> Callable[[Ids, Logits], Logits]:
    """Make one function of those that change logits and those that end a text.

    Parameters
    ----------
    processor, criteria : callable or None
        Of the tokens so far and the logits.

    Returns
    -------
    callable
        As of `InferenceEngine.stream`.
    """

    def process(ids: Ids, logits: Logits) -> Logits:
        if criteria is not None and criteria(ids, logits):
            raise _StopHere
        return logits if processor is None else processor(ids, logits)

    return process


def until_stopped(pieces: Any) -> Iterator[Any]:
    """Give what comes, until it ends or a criterion ends it.

    Parameters
    ----------
    pieces : Stream

    Yields
    ------
    Piece
    """
    try:
        yield from pieces
    except _StopHere:
        pieces.completion.finish_reason = "stop"
    finally:
        pieces.close()


def finished(pieces: Any) -> Any:
    """Wait for the whole.

    Parameters
    ----------
    pieces : Stream

    Returns
    -------
    Completion
    """
    for _ in until_stopped(pieces):
        pass
    return pieces.completion


def chat_choice(done: Any, form: str | None) -> Answers:
    """Write an answer as a message, with the tool calls in it.

    Parameters
    ----------
    done : Completion
    form : str or None
        As of `bitnet.chat.tool_format`.

    Returns
    -------
    dict
    """
    content, calls = parse_tool_calls(done.text, form)
    message: Answers = {"role": "assistant", "content": content}
    if calls:
        message |= {"content": content or None, "tool_calls": tool_calls_of(calls)}
    return {"message": message, "logprobs": None,
            "finish_reason": "tool_calls" if calls else REASONS.get(done.finish_reason)}  # fmt: skip
