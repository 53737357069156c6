"""What comes out of a generation: a piece of it, and the whole."""

from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Completion", "Piece"]


class Piece(NamedTuple):
    """What a stream gives: some text, and the token it came with.

    Attributes
    ----------
    text : str
        Empty while a character or a possible stop string is incomplete, or where there is no tokenizer.
    token : int or None
        None for text that was held back until the end.
    logprob : float or None
        The logarithm of the token's probability, where `GenerationConfig.logprobs` asks for it.
    top_logprobs : list of (int, float) or None
        The most likely tokens there, and theirs.
    number : int
        Of which completion of a list it is.
    """

    text: str
    token: int | None
    logprob: float | None = None
    top_logprobs: list[tuple[int, float]] | None = None
    number: int = 0


@dataclass
class Completion:
    """An answer.

    Attributes
    ----------
    text : str
    tokens : list of int
        The answer's tokens, without the one that ended it.
    prompt_tokens : int
    cached_tokens : int
        Of the prompt, how many did not have to be computed.
    finish_reason : {"length", "eos", "stop", "cancelled", "timeout", "error"} or None
        None until it ends; "cancelled" where a cancel or the caller ended it early.
    error : Exception or None
        What ended it, where that was an error.
    seed : int or None
        Of the drawing: that of the configuration, or the fresh one that was taken instead.
    logprobs : list of float or None
        Of each token, the logarithm of its probability, where `GenerationConfig.logprobs` asks for it.
    top_logprobs : list of list of (int, float) or None
        For each token, the most likely ones there, and theirs.
    first_token_s, prompt_s, generate_s : float
        Seconds until the first token, waiting included; for the prompt; and for all tokens after the first.
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    finish_reason: str | None = None
    error: Exception | None = None
    seed: int | None = None
    logprobs: list[float] | None = None
    top_logprobs: list[list[tuple[int, float]]] | None = None
    first_token_s: float = 0.0
    prompt_s: float = 0.0
    generate_s: float = 0.0
