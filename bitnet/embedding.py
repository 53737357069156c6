"""Texts as vectors: the residual stream after the last norm, pooled over a text's tokens, of length 1."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bitnet.errors import ConfigurationError, InferenceError
from bitnet.request import Request

__all__ = ["POOLINGS", "Pool", "embedded"]

POOLINGS = ("last", "mean", "cls")
"""What a text's vector is: its last token's, the mean of all its tokens', or the first one's."""


class Pool:
    """Gathers the vectors of a text's tokens as they come, and makes its own.

    Parameters
    ----------
    pooling : str
        One of `POOLINGS`.
    length : int
        Tokens of the text.
    width : int
        Of a vector.
    """

    def __init__(self, pooling: str, length: int, width: int) -> None:
        if pooling not in POOLINGS:
            raise ConfigurationError.choice("pooling", pooling, POOLINGS)
        self._pooling, self._length = pooling, length
        self._sum: npt.NDArray[Any] = np.zeros(width, np.float64 if pooling == "mean" else np.float32)

    def add(self, at: int, vector: npt.NDArray[np.float32]) -> None:
        """Take the vector of a token.

        Parameters
        ----------
        at : int
            Which of the tokens; they come in order.
        vector : ndarray of float32, shape (width,)
        """
        if self._pooling == "mean":
            self._sum += vector
        elif at == (0 if self._pooling == "cls" else self._length - 1):
            self._sum[:] = vector

    def result(self, normalize: bool) -> npt.NDArray[np.float32]:
        """Give the vector of the text.

        Parameters
        ----------
        normalize : bool
            Whether to divide it by its length.

        Returns
        -------
        ndarray of float32, shape (width,)
        """
        found = self._sum.astype(np.float64)
        if self._pooling == "mean":
            found /= self._length
        if normalize:
            found /= max(float(np.sqrt((found * found).sum())), 1e-12)
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
    if not ids:
        return np.zeros((0, model.config.hidden_size), np.float32)
    for one in ids:
        if len(one) > model.program.context:
            raise InferenceError.beyond_context(len(one) - 1, model.program.context)
    width, way = model.config.hidden_size, pooling or model.pooling
    makers = [lambda inbox, one=one: Embedding(one, inbox, way, width) for one in ids]

    def told(ended: list[Embedding]) -> None:
        if progress is not None:
            progress(len(ended), len(ids))

    found = engine._read_texts(model, makers, batch_size, told)
    return np.stack([one.pool.result(normalize) for one in found])


class Embedding(Request):
    """A text whose vector is wanted.

    Parameters
    ----------
    ids : ndarray of int32, shape (tokens,)
    inbox : Inbox
    pooling : str
    width : int
        Of a vector.

    Attributes
    ----------
    pool : Pool
    """

    shares = False  # what was computed before has no vectors of tokens
    sees = True

    def __init__(self, ids: npt.NDArray[np.int32], inbox: Any, pooling: str, width: int) -> None:
        super().__init__(ids, len(ids), inbox)
        self.logits_from = len(ids)
        self._made_of = pooling, len(ids), width
        self.pool = Pool(*self._made_of)

    def see(self, vectors: npt.NDArray[np.float32], at: int) -> None:
        """Take the vectors of the next tokens.

        Parameters
        ----------
        vectors : ndarray of float32, shape (tokens, width)
        at : int
            Which token is the first of these.
        """
        for place, vector in enumerate(vectors, at):
            self.pool.add(place, vector)
        if at + len(vectors) == self.count:
            self.end(None)

    def paused(self) -> None:
        self.pool = Pool(*self._made_of)

    def end(self, reason: Any, error: BaseException | None = None) -> None:
        self.error, self.has_ended = error, True
