"""Logits to the next token, and where a text stops.

The order is that of Transformers: biases, penalties, n-grams, temperature, top-k, top-p, min-p, typical-p, then one
draw. A `Sampler` belongs to one request and has random numbers of its own, one for each token, so that a seed gives the
same tokens whatever else runs.
"""

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bitnet._core.drawing import Draws
from bitnet._core.sampling import History, keep_only
from bitnet.config import GenerationConfig
from bitnet.errors import ConfigurationError, InferenceError, ShapeError, TensorError

__all__ = ["Sampler", "StopStrings", "logprobs"]

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Ids32 = npt.NDArray[np.int32]

_FLOATS = np.finfo(np.float32)
LEAST = -_FLOATS.max  # of a token that may not come: infinity would not be told from a computation gone wrong


class Sampler:
    """Chooses the tokens of one request. Not to be shared between threads.

    Parameters
    ----------
    config : GenerationConfig
    vocab_size : int
        Number of logits.

    Attributes
    ----------
    config : GenerationConfig
    vocab_size : int
    seed : int
        Of the drawing: that of `config`, or the fresh one that was taken instead.
    leaders : int
        How many of the largest logits decide, with those that equal the last of them; 0 where all may.

    Notes
    -----
    With penalised logits l and m = max l, a token has the weight w = exp((l - m) / temperature), in float32 and by an
    exponential of our own (within 3e-7), and 0 where that is below exp(-87). Tokens that are as likely as the last one
    which top-k lets in are let in, too. Top-p keeps a token if those before it, in the order of (m - l) / temperature
    and with the lower id first where that is equal, have less than `top_p` of the sum; min-p keeps what has
    w >= `min_p`. Typical-p keeps the tokens of those whose -log p is closest to the entropy, in float32, until they
    have `typical_p` together. Sums are in double. An answer's log-probabilities are of the model's own logits, before
    anything of this.

    References
    ----------
    Transformers, src/transformers/generation/logits_process.py; top-p: Holtzman et al., arXiv:1904.09751, section 3.1;
    min-p: Nguyen et al., arXiv:2407.01082; typical-p: Meister et al., arXiv:2202.00666, section 3; repetition penalty:
    Keskar et al., arXiv:1909.05858, section 4.1.
    """

    def __init__(self, config: GenerationConfig, vocab_size: int) -> None:
        if not isinstance(config, GenerationConfig):
            raise ConfigurationError.value("Sampler", "config", config, "a GenerationConfig")
        if not isinstance(vocab_size, int | np.integer) or vocab_size < 1:
            raise ConfigurationError.value("Sampler", "vocab_size", vocab_size, "a whole number above 0")
        self.config = config
        self.vocab_size = int(vocab_size)
        self.seed = int.from_bytes(os.urandom(8)) if config.seed is None else config.seed
        self.logprob: float | None = None
        self.top_logprobs: list[tuple[int, float]] | None = None
        self._penalizes = (config.repetition_penalty, config.frequency_penalty, config.presence_penalty) != (1, 0, 0)
        self._adjusts = self._penalizes or bool(config.logit_bias) or config.no_repeat_ngram_size > 0
        self.is_greedy = not (config.do_sample or self._adjusts or config.logprobs is not None)
        looks_at_all = self._adjusts or config.logprobs is not None
        self.leaders = 0 if looks_at_all else (config.top_k or 0) if config.do_sample else 1
        self._history: History | None = None
        self._known = 0  # tokens of the history
        self._best = self._drawn = -1  # of `prepare`: the likeliest token, and the number of the draw
        self._uniform, self._drawn_at = 0.0, -1  # the last random number, and at how many ids it was drawn
        self._raw: Floats | None = None  # the logits before all changes, where their logarithms are wanted

    @functools.cached_property
    def _bias(self) -> tuple[Ids32, Floats]:
        pairs: Any = self.config.logit_bias
        return self._ids([id for id, _ in pairs]), np.array([number for _, number in pairs], np.float32)

    @functools.cached_property
    def _random(self) -> "np.random.Generator":
        # Made when something is drawn: the import of numpy.random is part of the time to a first token.
        return np.random.Generator(np.random.PCG64(self.seed))

    def pick(self, logits: Floats, history: Sequence[int] | npt.NDArray[Any] = (), *,
             forbidden: Iterable[int] = (), prompt_tokens: int = 0) -> int:  # fmt: skip
        """Choose the next token.

        Parameters
        ----------
        logits : ndarray of float32, shape (vocab_size,)
            Finite; not changed.
        history : sequence of int
            The ids so far, prompt and answer, for penalties and repetitions; else not looked at.
        forbidden : iterable of int
            Ids that may not be chosen, as those that end the text before `min_new_tokens`.
        prompt_tokens : int, optional
            How many of `history` are the prompt's, which frequency and presence do not count.

        Returns
        -------
        int

        Raises
        ------
        TensorError, ShapeError
            If `logits` has another dtype or shape.
        InferenceError
            If a logit is not finite, or an id is not in the vocabulary.
        ConfigurationError
            If all tokens are forbidden.
        """
        _check(logits, (self.vocab_size,))
        scores, seen = logits.copy(), self._ids(history) if len(history) else np.empty(0, np.int32)
        self._history = None
        self._adjust(scores, seen, prompt_tokens, list(forbidden))
        if not scores.max() > LEAST:
            raise ConfigurationError.conflict("Sampler.pick", f"forbidden has all {self.vocab_size} tokens")
        return self._draw(scores) if self.config.do_sample else int(scores.argmax())  # the first of equals

    def prepare(
        self, batch: Any, output: int, draws: Draws, ids: Ids32, prompt_tokens: int, forbidden: Sequence[int] = (),
        processor: Callable[[Ids32, Floats], Any] | None = None, allowed: Ids32 | None = None,
    ) -> None:  # fmt: skip
        """Make the choice of the next token of one text, but for a draw, which is left to be made with others.

        Parameters
        ----------
        batch : Batch
            That was run; the logits may be overwritten.
        output : int
            Of which of its outputs.
        draws : Draws
            Where a draw is added.
        ids : ndarray of int32
            The ids so far; those of the call before, and at most some more.
        prompt_tokens : int
            How many of them are the prompt's.
        forbidden : sequence of int
            As of `pick`.
        processor : callable, optional
            Called with the ids and the logits, which it changes, or returns others.
        allowed : ndarray of int32, optional
            A bit for each token that may be chosen, the lowest first.
        """
        self._best, self._drawn = int(batch.best(output)), -1
        if self._best < 0:
            return
        config, scores = self.config, batch.row(output)
        self._raw = scores.copy() if config.logprobs is not None else None
        if self._adjusts or forbidden:
            self._adjust(scores, ids, prompt_tokens, forbidden)
        if processor is not None:
            found = processor(ids.copy(), scores)
            if found is not None:
                scores[:] = found
            np.maximum(scores, LEAST, out=scores)
        if allowed is not None:
            keep_only(scores, allowed)
        if self._adjusts or forbidden or processor is not None or allowed is not None:
            self._best = int(batch.best(output))
        if self._best >= 0 and scores[self._best] <= LEAST:
            raise ConfigurationError.conflict("GenerationConfig", f"all {self.vocab_size} tokens are forbidden")
        if config.do_sample and self._best >= 0:
            if len(ids) != self._drawn_at:  # else it was interrupted, and is done again: with the same number
                self._uniform, self._drawn_at = self._random.random(), len(ids)
            self._drawn = self._add_to(draws, scores, self._uniform)

    def chosen(self, draws: Draws) -> int:
        """Say which token was chosen.

        Parameters
        ----------
        draws : Draws
            Those of `prepare`, made.

        Returns
        -------
        int
            Or -1 where a logit is not finite.
        """
        token = self._best if self._drawn < 0 else draws.token(self._drawn)
        if self._raw is not None and token >= 0:
            self.logprob, self.top_logprobs = _most_likely(self._raw, token, self.config.logprobs or 0)
        return token

    def _adjust(self, scores: Floats, ids: Ids32, prompt_tokens: int, forbidden: Sequence[int]) -> None:
        """Change the logits of single tokens in place: biases, penalties, repetitions, what may not come."""
        config = self.config
        if config.logit_bias:
            biased, numbers = self._bias
            with np.errstate(over="ignore"):
                scores[biased] = np.clip(scores[biased] + numbers, LEAST, -LEAST)
        if self._penalizes:
            if self._history is None:
                self._history, self._known = History(self.vocab_size), 0
            known, count = self._known, len(ids)
            if known < prompt_tokens:
                self._history.add(ids[known:prompt_tokens], False)
            self._history.add(ids[max(known, min(prompt_tokens, count)) :], True)
            self._known = count
            self._history.penalize(scores, float(_float32(config.repetition_penalty)), config.frequency_penalty,
                                   config.presence_penalty)  # fmt: skip
        size = config.no_repeat_ngram_size
        if size and len(ids) >= size:
            same = np.ones(len(ids) - size + 1, np.bool_)
            for back in range(1, size):  # the tokens before the one that is to come
                same &= ids[size - 1 - back : len(ids) - back] == ids[len(ids) - back]
            scores[ids[size - 1 :][same]] = LEAST
        if len(forbidden):
            scores[self._ids(forbidden)] = LEAST

    def _add_to(self, draws: Draws, scores: Floats, uniform: float) -> int:
        config = self.config
        return draws.add(
            scores, uniform, float(_float32(config.temperature)), config.top_k or 0, config.top_p,
            config.min_p or 0.0, config.typical_p,
        )  # fmt: skip

    def skip(self, count: int) -> None:
        """Leave out the random numbers of tokens that are there already.

        Parameters
        ----------
        count : int
        """
        if self.config.do_sample:
            self._random.bit_generator.advance(count)  # type: ignore[attr-defined]

    def new_draws(self) -> Draws:
        """Give room for draws that are not made with those of others."""
        return Draws(self.vocab_size)

    def _draw(self, scores: Floats) -> int:
        draws = self.new_draws()
        self._add_to(draws, scores, self._random.random())
        draws.make(1)
        return draws.token(0)

    def _ids(self, ids: Sequence[int] | npt.NDArray[Any]) -> Ids32:
        found = np.asarray(ids, np.int64)
        if found.min() < 0 or found.max() >= self.vocab_size:
            at = int(np.argmax((found < 0) | (found >= self.vocab_size)))
            raise InferenceError.token(int(found[at]), at, self.vocab_size)
        return found.astype(np.int32)


def logprobs(logits: Floats) -> Floats:
    """Give the logarithm of each token's probability, without temperature or penalties.

    Parameters
    ----------
    logits : ndarray of float32, shape (..., vocab)
        Finite.

    Returns
    -------
    ndarray of float32, shape (..., vocab)

    Raises
    ------
    TensorError, ShapeError, InferenceError
        If `logits` has another dtype, no axis or nothing on the last one, or numbers that are not finite.

    Notes
    -----
    l - m - log(sum exp(l - m)) with m = max l; the sum in double.
    """
    _check(logits, None)
    with np.errstate(over="ignore"):  # from the smallest number to the largest: no probability, so -inf
        shifted = logits - logits.max(axis=-1, keepdims=True)
    total = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
    found: Floats = (shifted - np.log(total)).astype(np.float32)
    return found


class StopStrings:
    """Keeps stop strings out of a text that comes in pieces. For one text; not to be shared between threads.

    The text ends where the first stop string is complete, wherever the pieces are cut; where two are complete at once,
    the longer one is taken out.

    Parameters
    ----------
    strings : iterable of str
        None of them empty.

    Attributes
    ----------
    matched : str or None
        The stop string that was found.

    Examples
    --------
    >>> stop = StopStrings(["User:"])
    >>> [stop.put(piece) for piece in ("Yes. U", "se it. U", "ser:")]
    [('Yes. ', False), ('Use it. ', False), ('', True)]
    """

    def __init__(self, strings: Iterable[str]) -> None:
        self._strings = tuple(strings)
        if isinstance(strings, str) or not all(isinstance(one, str) and one for one in self._strings):
            raise ConfigurationError.value("StopStrings", "strings", strings, "a list of strings, none of them empty")
        self._longest = max(map(len, self._strings), default=0)
        self._held = ""
        self.matched: str | None = None

    def put(self, text: str) -> tuple[str, bool]:
        """Take the next piece.

        Parameters
        ----------
        text : str

        Returns
        -------
        text : str
            What is certainly no part of a stop string; it may be empty.
        stopped : bool
            Whether one was found. Then what follows is dropped.
        """
        if self.matched is not None:
            return "", True
        text = self._held + text
        found = [(at + len(one), at, one) for one in self._strings if (at := text.find(one)) >= 0]
        if found:
            _, at, self.matched = min(found)
            self._held = ""
            return text[:at], True
        begun = 0
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if any(one.startswith(text[-length:]) for one in self._strings):
                begun = length
                break
        self._held = text[len(text) - begun :]
        return text[: len(text) - begun], False

    def flush(self) -> str:
        """End the text.

        Returns
        -------
        str
            What was kept back, which began like a stop string.
        """
        text, self._held = self._held, ""
        return text


def _float32(positive: float) -> np.float32:
    """The nearest float32 that is neither 0 nor infinite."""
    return np.float32(min(max(positive, float(_FLOATS.tiny)), float(_FLOATS.max)))


def _check(logits: Any, shape: tuple[int, ...] | None) -> None:
    if not isinstance(logits, np.ndarray):
        raise TensorError.not_an_array("logits", logits)
    if logits.dtype != np.float32:
        raise TensorError.dtype("logits", "float32", logits.dtype)
    if shape is not None and logits.shape != shape:
        raise ShapeError.mismatch("logits", shape, logits.shape)
    if not logits.ndim or not logits.shape[-1]:
        raise ShapeError.dimensions("logits", "(..., vocab)", logits.shape)
    finite = np.isfinite(logits)
    if not finite.all():
        where = np.argwhere(~finite)
        first = tuple(int(one) for one in where[0])
        raise InferenceError.logits(len(where), logits.size, float(logits[first]), first)


def _most_likely(logits: Floats, token: int, count: int) -> tuple[float, list[tuple[int, float]]]:
    """The logarithm of a token's probability, and those of the most likely ones, the likeliest first."""
    numbers = logits.astype(np.float64)
    numbers -= numbers.max()
    numbers -= np.log(np.exp(numbers).sum())
    count = min(count, len(numbers))
    top = np.argpartition(-numbers, count - 1)[:count] if count else np.empty(0, np.int64)
    top = top[np.lexsort((top, -numbers[top]))]
    return float(numbers[token]), [(int(id), float(numbers[id])) for id in top]
