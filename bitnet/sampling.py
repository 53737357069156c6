"""Logits to the next token, and where a text stops.

The order is that of Transformers: repetition penalty, temperature, top-k, top-p, min-p, then one draw. A `Sampler`
belongs to one request and has random numbers of its own, one for each token, so that a seed gives the same tokens
whatever else runs.
"""

import functools
import secrets
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bitnet.config import GenerationConfig
from bitnet.errors import ConfigurationError, InferenceError, ShapeError, TensorError

__all__ = ["Sampler", "StopStrings", "logprobs"]

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

# Elements in a block of `_at_least_kth` and of `_draw`: near the square root of a vocabulary of 128 256 the two steps,
# over the blocks and over what is left, cost least. Maxima take smaller blocks, so that there are more than top_k.
MAX_BLOCK, SUM_BLOCK = 64, 256
_FLOATS = np.finfo(np.float32)
RANGES, DEEPEST = 1024, 64.0  # of `_nucleus`; exp(-64) of each token of the largest vocabulary is below 2**-53


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

    Notes
    -----
    With penalised logits l and m = max l, a token has the weight w = exp((l - m) / temperature), in float32. Tokens
    that are as likely as the last one which top-k lets in are let in, too. Top-p keeps a token if those before it, in
    the order of (m - l) / temperature and with the lower id first where that is equal, have less than `top_p` of the
    sum; min-p keeps what has w >= `min_p`. Sums are in double.

    References
    ----------
    Transformers, src/transformers/generation/logits_process.py; top-p: Holtzman et al., arXiv:1904.09751, section 3.1;
    min-p: Nguyen et al., arXiv:2407.01082; repetition penalty: Keskar et al., arXiv:1909.05858, section 4.1.
    """

    def __init__(self, config: GenerationConfig, vocab_size: int) -> None:
        if not isinstance(config, GenerationConfig):
            raise ConfigurationError.value("Sampler", "config", config, "a GenerationConfig")
        if not isinstance(vocab_size, int | np.integer) or vocab_size < 1:
            raise ConfigurationError.value("Sampler", "vocab_size", vocab_size, "a whole number above 0")
        self.config = config
        self.vocab_size = int(vocab_size)
        self.seed = secrets.randbits(64) if config.seed is None else config.seed

    @functools.cached_property
    def _random(self) -> "np.random.Generator":
        # Made when something is drawn: the import of numpy.random is part of the time to a first token.
        return np.random.Generator(np.random.PCG64(self.seed))

    def pick(self, logits: Floats, history: Sequence[int] | npt.NDArray[Any] = (), *,
             forbidden: Iterable[int] = ()) -> int:  # fmt: skip
        """Choose the next token.

        Parameters
        ----------
        logits : ndarray of float32, shape (vocab_size,)
            Finite; not changed.
        history : sequence of int
            The ids so far, prompt and answer, for the repetition penalty; else not looked at.
        forbidden : iterable of int
            Ids that may not be chosen, as those that end the text before `min_new_tokens`.

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
        config, scores = self.config, logits
        if config.repetition_penalty != 1.0 and len(history):
            seen, scores = self._ids(history), logits.copy()
            found = logits[seen]
            penalty = _float32(config.repetition_penalty)
            with np.errstate(over="ignore"):  # an extreme penalty; infinities become the largest numbers
                scores[seen] = np.nan_to_num(np.where(found < 0, found * penalty, found / penalty))
        if banned := list(forbidden):
            ids, scores = self._ids(banned), scores.copy() if scores is logits else scores
            scores[ids] = -np.inf
            if not np.isfinite(scores.max()):
                raise ConfigurationError.conflict("Sampler.pick", f"forbidden has all {self.vocab_size} tokens")
        return self._sample(scores) if config.do_sample else int(scores.argmax())  # the first of equals

    def choose(
        self, batch: Any, output: int, ids: npt.NDArray[np.int32], count: int, forbidden: Iterable[int] = (),
        processor: Any = None,
    ) -> int:  # fmt: skip
        """Choose the next token by logits that may be overwritten.

        Parameters
        ----------
        batch : Batch
            That was run.
        output : int
            Of which of its outputs.
        ids : ndarray of int32
            The ids so far, and more.
        count : int
            How many they are.
        forbidden : iterable of int
            As of `pick`.
        processor : callable, optional
            Called with the ids and the logits, which it changes, or returns others.

        Returns
        -------
        int
        """
        logits = batch.logits[output]
        if processor is not None:
            found = processor(ids[:count].copy(), logits)
            logits = logits if found is None else np.ascontiguousarray(found, np.float32)
        return self.pick(logits, ids[:count], forbidden=forbidden)

    def _sample(self, scores: Floats) -> int:
        config, largest, ids = self.config, scores.max(), None
        kept: Ids
        if config.top_k is not None and config.top_k < self.vocab_size:
            ids = _at_least_kth(scores, config.top_k)
            scores = scores[ids]
        with np.errstate(over="ignore", under="ignore"):  # far below the largest: an infinite depth, a weight of 0
            depths = (largest - scores) / _float32(config.temperature)
            weights = np.exp(-depths)
        if config.top_p < 1.0:
            kept = _nucleus(depths, weights, config.top_p)
            ids, weights = kept if ids is None else ids[kept], weights[kept]
        if config.min_p is not None:
            kept = np.flatnonzero(weights >= np.float32(config.min_p))
            ids, weights = kept if ids is None else ids[kept], weights[kept]
        drawn = _draw(weights, self._random.random())
        return drawn if ids is None else int(ids[drawn])

    def _ids(self, ids: Sequence[int] | npt.NDArray[Any]) -> Ids:
        found = np.asarray(ids, np.int64)
        if found.min() < 0 or found.max() >= self.vocab_size:
            at = int(np.argmax((found < 0) | (found >= self.vocab_size)))
            raise InferenceError.token(int(found[at]), at, self.vocab_size)
        return found


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


def _at_least_kth(scores: Floats, k: int) -> Ids:
    """The indices, ascending, of what is at least the k-th largest score: k of them, or more where scores are equal."""
    # k blocks have a maximum of at least the k-th largest maximum, so k scores are at least that, and the k-th largest
    # score is. A comparison with it leaves little to choose from.
    maxima = np.maximum.reduceat(scores, np.arange(0, len(scores), MAX_BLOCK))
    ids = np.flatnonzero(scores >= _kth(maxima, k)) if k <= len(maxima) else np.arange(len(scores))
    found: Ids = ids[scores[ids] >= _kth(scores[ids], k)]
    return found


def _kth(scores: Floats, k: int) -> np.float32:
    """The k-th largest."""
    at = len(scores) - k
    kth: np.float32 = np.partition(scores, at)[at]
    return kth


def _nucleus(depths: Floats, weights: Floats, top_p: float) -> Ids:
    """The indices, ascending, of what top-p keeps; `depths` are the negative logarithms of the weights."""
    # Instead of a sort: how much weight lies in each of many ranges of depth, and a sort of the one range in which the
    # sum comes to its mark. What lies deeper than DEEPEST has no part in a sum in double, and shares the last range.
    mass = top_p * weights.sum(dtype=np.float64)
    span = min(float(depths.max()), DEEPEST)
    ranges = (np.minimum(depths, span) * np.float32((RANGES - 1) / max(span, 1e-6))).astype(np.intp)
    sums = np.cumsum(np.bincount(ranges, weights))
    last = min(int(np.searchsorted(sums, mass)), len(sums) - 1)
    within = np.flatnonzero(ranges == last)
    within = within[np.argsort(depths[within], kind="stable")]
    before = np.cumsum(weights[within], dtype=np.float64)[:-1] + (sums[last - 1] if last else 0.0)
    is_kept = ranges < last
    is_kept[within[: 1 + np.searchsorted(before, mass)]] = True
    return np.flatnonzero(is_kept)


def _draw(weights: Floats, uniform: float) -> int:
    """The index at which the sum of weights first exceeds `uniform` of the whole; block by block, then within one."""
    blocks = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), SUM_BLOCK), dtype=np.float64))
    target = uniform * blocks[-1]
    block = _first_above(blocks, target)
    start = block * SUM_BLOCK
    within = np.cumsum(weights[start : start + SUM_BLOCK], dtype=np.float64)
    return start + _first_above(within, target - (blocks[block - 1] if block else 0.0))


def _first_above(sums: npt.NDArray[np.float64], target: float) -> int:
    # Rounding can bring the target up to the last sum: then it is the last that has a weight.
    return int(min(np.searchsorted(sums, target, "right"), np.searchsorted(sums, sums[-1], "left")))
