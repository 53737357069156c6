"""Texts as vectors: the residual stream after the last norm, pooled over a text's tokens, of length 1."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bitnet.errors import ConfigurationError, InferenceError
from bitnet.kv_cache import Sequence as CachedSequence

__all__ = ["POOLINGS", "Pool", "embedded"]

NEW_SEQUENCE: Any = CachedSequence  # which has no annotations so far
POOLINGS = ("last", "mean", "cls")
"""What a text's vector is: its last token's, the mean of all its tokens', or the first one's."""


class Pool:
    """Gathers the vectors of tokens as they come, and makes those of texts.

    Parameters
    ----------
    pooling : str
        One of `POOLINGS`.
    lengths : sequence of int
        Tokens of each text.
    width : int
        Of a vector.
    """

    def __init__(self, pooling: str, lengths: Sequence[int], width: int) -> None:
        if pooling not in POOLINGS:
            raise ConfigurationError.choice("pooling", pooling, POOLINGS)
        self._pooling, self._lengths = pooling, lengths
        self._sums = np.zeros((len(lengths), width), np.float64 if pooling == "mean" else np.float32)

    def add(self, number: int, at: int, vector: npt.NDArray[np.float32]) -> None:
        """Take the vector of a token.

        Parameters
        ----------
        number, at : int
            Which text, and which of its tokens.
        vector : ndarray of float32, shape (width,)
        """
        if self._pooling == "mean":
            self._sums[number] += vector
        elif at == (0 if self._pooling == "cls" else self._lengths[number] - 1):
            self._sums[number] = vector

    def result(self, normalize: bool) -> npt.NDArray[np.float32]:
        """Give the vectors of the texts.

        Parameters
        ----------
        normalize : bool
            Whether to divide each by its length.

        Returns
        -------
        ndarray of float32, shape (texts, width)
        """
        found = self._sums.astype(np.float64)
        if self._pooling == "mean":
            found /= np.asarray(self._lengths, np.float64)[:, None]
        if normalize:
            found /= np.maximum(np.sqrt((found * found).sum(1, keepdims=True)), 1e-12)
        return found.astype(np.float32)


def embedded(
    engine: Any,
    model: Any,
    texts: Any,
    pooling: str | None,
    normalize: bool,
    batch_size: int,
    progress: Callable[[int, int], object] | None,
    prompt: str = "",
) -> npt.NDArray[np.float32]:
    """Run texts and pool their vectors; parameters as of `InferenceEngine.embed`.

    Parameters
    ----------
    engine : InferenceEngine
    model : Model
    texts, pooling, normalize, batch_size, progress
        As of `InferenceEngine.embed`.
    prompt : str, optional
        Put in front of each text.

    Returns
    -------
    ndarray of float32, shape (texts, hidden_size)
    """
    given = None if isinstance(texts, str) else list(texts)
    if given is None or not all(isinstance(one, str | Sequence | np.ndarray) for one in given):
        raise ConfigurationError.value("embed", "texts", texts, "a list of texts, or of lists of tokens")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigurationError.value("embed", "batch_size", batch_size, "a whole number above 0")
    ids = [model.encode(prompt + text if isinstance(text, str) else text) for text in given]
    if not all(map(len, ids)):
        raise InferenceError.empty_prompt()
    rows, cancels = [np.zeros((0, model.config.hidden_size), np.float32)], engine._cancels
    for start in range(0, len(ids), batch_size):
        part = ids[start : start + batch_size]
        pool = Pool(pooling or model.pooling, [len(one) for one in part], model.config.hidden_size)
        with engine._run_of(model) as (execution, cache):
            sequences: list[Any] = [NEW_SEQUENCE(cache) for _ in part]
            try:
                engine._logits(execution, sequences, part, True, cancels, pool)
            finally:
                for sequence in sequences:
                    sequence.close()
        rows.append(pool.result(normalize))
        if progress is not None:
            progress(min(start + batch_size, len(ids)), len(ids))
    return np.concatenate(rows)
