"""How likely a model finds texts, token by token: `InferenceEngine.score`; and what other measurements share with it.

Probabilities are those of the whole vocabulary, in float64 from the float32 logits.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitnet.errors import ConfigurationError, InferenceError
from bitnet.kv_cache import Sequence as CachedSequence
from bitnet.request import Request

__all__ = ["CHUNK", "Run", "Score", "log_softmax", "score_pairs", "scored"]

NEW_SEQUENCE: Any = CachedSequence  # which has no annotations so far
CHUNK = 128  # tokens whose logits are in memory together

Ids = npt.NDArray[np.int32]
Top = list[tuple[int, float]]


@dataclass(frozen=True, eq=False)
class Score:
    """How likely a model finds a text.

    Attributes
    ----------
    tokens : ndarray of int32, shape (tokens,)
        Those that were predicted: all of the text after a context, and all but the first without one.
    logprobs : ndarray of float64, shape (tokens,)
        The logarithm of the probability of each, after all that is before it; in nats.
    greedy : ndarray of bool, shape (tokens,)
        Whether it is the most likely one.
    top_logprobs : list of list of (int, float), or None
        The most likely tokens in the place of each, and theirs, where they are asked for.
    """

    tokens: Ids
    logprobs: npt.NDArray[np.float64]
    greedy: npt.NDArray[np.bool_]
    top_logprobs: list[Top] | None = None

    @property
    def total(self) -> float:
        """The log-likelihood of the text, in nats."""
        return float(self.logprobs.sum())

    @property
    def is_greedy(self) -> bool:
        """Whether taking the most likely token each time gives the text."""
        return bool(self.greedy.all())


Chosen = tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], list[Top]]


class Run:
    """Sequences of one model, as their tokens come. A context manager, which gives their pages back.

    Parameters
    ----------
    engine : InferenceEngine
    model : Model
    count : int, optional
        Of the sequences.
    """

    def __init__(self, engine: Any, model: Any, count: int = 1) -> None:
        self._engine, self._model, self._cancels = engine, model, engine._cancels
        self._count, self._sequences = count, list[Any]()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def step(self, parts: dict[int, Ids], last_only: bool = False) -> dict[int, npt.NDArray[np.float32]]:
        """Run the next tokens of some of the sequences together.

        Parameters
        ----------
        parts : dict
            The number of a sequence, and its next tokens, at least one.
        last_only : bool, optional
            Whether only the logits after the last token of each are wanted.

        Returns
        -------
        dict
            The number of a sequence, and its logits: of shape (tokens, vocab_size), or (vocab_size,) of the last.
        """
        with self._engine._run_of(self._model) as (execution, cache):
            self._sequences = self._sequences or [NEW_SEQUENCE(cache) for _ in range(self._count)]
            sequences = [self._sequences[number] for number in parts]
            found = self._engine._logits(execution, sequences, list(parts.values()), last_only, self._cancels)
        return dict(zip(parts, found, strict=True))

    def rewind(self, number: int, length: int) -> None:
        """Forget all but the first tokens of a sequence.

        Parameters
        ----------
        number, length : int
        """
        self._sequences[number].rewind(length)

    def close(self) -> None:
        for sequence in self._sequences:
            sequence.close()


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Make log-probabilities of logits.

    Parameters
    ----------
    logits : ndarray of float32, shape (tokens, vocab_size)

    Returns
    -------
    ndarray of float64, shape (tokens, vocab_size)
    """
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    found: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return found


def scored(
    engine: Any, model: Any, texts: Any, contexts: Any, batch_size: int,
    progress: Callable[[int, int], object] | None, top: int | None = None,
) -> list[Score]:  # fmt: skip
    """Score texts; parameters as of `InferenceEngine.score`.

    Parameters
    ----------
    engine : InferenceEngine
    model : Model
    texts, contexts, batch_size, progress, top
        As of `InferenceEngine.score`.

    Returns
    -------
    list of Score
    """
    if isinstance(texts, str):
        raise ConfigurationError.value("score", "texts", texts, "a list of texts")
    given = list(texts)
    before = [None] * len(given) if contexts is None else list(contexts)
    if len(before) != len(given) or isinstance(contexts, str):
        raise ConfigurationError.value("score", "contexts", contexts, f"a list of {len(given)}, one for each text")
    pairs = [_pair(model, *one) for one in zip(before, given, strict=True)]
    return score_pairs(engine, model, pairs, batch_size, progress, top)


def _pair(model: Any, context: Any, text: Any) -> tuple[Ids, Ids]:
    """A context that has a token at least, and what is to be predicted after it."""
    if context is None or len(context) == 0:
        ids = model.encode(text)
        if len(ids) < 2:
            raise InferenceError.too_short(len(ids))
        return ids[:1], ids[1:]
    if isinstance(context, str) and isinstance(text, str):
        # Together, because a token may reach over the seam; then it counts to the text.
        before, ids = model.encode(context), model.encode(context + text)
        same = int((before[: len(ids)] == ids[: len(before)]).cumprod().sum())
        return ids[: max(same, 1)], ids[max(same, 1) :]
    return model.encode(context), model.encode(text)


def score_pairs(
    engine: Any, model: Any, pairs: Iterable[tuple[Ids, Ids]], batch_size: int = 32,
    progress: Callable[[int, int], object] | None = None, top: int | None = None,
) -> list[Score]:  # fmt: skip
    """Score tokens after others.

    A context that several pairs have is run once for them.

    Parameters
    ----------
    engine : InferenceEngine
    model : Model
    pairs : list of (ndarray of int32, ndarray of int32)
        A context of at least one token, and the tokens to predict.
    batch_size : int, optional
        Contexts that are run together.
    progress : callable, optional
        Called as ``progress(done, total)``, in pairs.
    top : int, optional
        How many most likely tokens to name in the place of each.

    Returns
    -------
    list of Score
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigurationError.value("score", "batch_size", batch_size, "a whole number above 0")
    todo, limit = list(pairs), model.program.context
    groups: dict[bytes, list[int]] = {}
    for number, (context, ids) in enumerate(todo):
        if (needed := len(context) + max(len(ids) - 1, 0)) > limit:
            raise InferenceError.beyond_context(needed - 1, limit)
        groups.setdefault(context.tobytes(), []).append(number)
    # Long ones first: what does not fit into memory shows at once.
    order = sorted(groups.values(), key=lambda group: -len(todo[group[0]][0]))
    head = model.program.names[-1]

    def maker(group: list[int]) -> Callable[[Any], Scoring]:
        return lambda inbox: Scoring(todo[group[0]][0], [todo[number][1] for number in group], inbox, head, top)


    def told(ended: list[Scoring]) -> None:
        if progress is not None:
            progress(sum(len(one.scores) for one in ended), len(todo))

    found = engine._read_texts(model, [maker(group) for group in order], batch_size, told)
    of = {number: score for group, one in zip(order, found, strict=True)
          for number, score in zip(group, one.scores, strict=True)}  # fmt: skip
    return [of[number] for number in range(len(todo))]


class Scoring(Request):
    """Texts after a context, which is read once: one after the other takes the place behind it.

    Parameters
    ----------
    context : ndarray of int32
        At least one token.
    texts : list of ndarray of int32
    inbox : Inbox
    head : str
        The name of the head, for errors.
    top : int or None
        How many most likely tokens to name.

    Attributes
    ----------
    scores : list of Score
        Of the texts so far, in their order.
    """

    is_scored = True

    def __init__(self, context: Ids, texts: list[Ids], inbox: Any, head: str, top: int | None) -> None:
        longest = max(max(map(len, texts)) - 1, 0)
        super().__init__(np.concatenate([context, np.empty(longest, np.int32)]), len(context), inbox)
        self._begins, self._texts, self._head, self._top = len(context), texts, head, top
        self._first: npt.NDArray[np.float32] | None = None  # the logits after the context, which all texts have
        self._rows: list[Chosen] = []
        self.scores: list[Score] = []
        self.logits_from = self._begins - 1
        self._put_in()

    def _put_in(self) -> None:
        """Let the next text come behind the context; its last token predicts nothing."""
        ids = self._texts[len(self.scores)][:-1]
        self.count = self._begins + len(ids)
        self.ids[self._begins : self.count] = ids

    def take(self, batch: Any, first: int, count: int, draws: Any) -> None:
        """Look at the next logits of a batch."""
        if min(map(batch.best, range(first, first + count))) < 0:
            raise InferenceError.not_finite(self._head)
        logits, text = batch.logits[first : first + count], self._texts[len(self.scores)]
        if self._first is None:
            self._first = logits[:1].copy()
            self.logits_from = self._begins
            self._look(self._first, text)
            logits = logits[1:]
        self._look(logits, text)
        while sum(len(one[0]) for one in self._rows) == len(text):
            self._finish(text)
            if len(self.scores) == len(self._texts):
                self.end(None)
                return
            self.sequence.rewind(self._begins)
            self._put_in()
            text = self._texts[len(self.scores)]
            self._look(self._first, text)

    def _look(self, logits: npt.NDArray[np.float32], text: Ids) -> None:
        done = sum(len(one[0]) for one in self._rows)
        ids = text[done : done + len(logits)]
        if len(ids):
            self._rows.append(_chosen(logits[: len(ids)], ids, self._top))

    def _finish(self, text: Ids) -> None:
        rows = self._rows or [(np.empty(0), np.empty(0, np.bool_), [])]
        logprobs, greedy, tops = zip(*rows, strict=True)
        self.scores.append(Score(text, np.concatenate(logprobs), np.concatenate(greedy),
                                 None if self._top is None else [one for part in tops for one in part]))  # fmt: skip
        self._rows = []

    def paused(self) -> None:
        self._rows = []
        if self._first is not None:
            self._look(self._first, self._texts[len(self.scores)])

    def end(self, reason: Any, error: BaseException | None = None) -> None:
        self.error, self.has_ended = error, True


def _chosen(logits: npt.NDArray[np.float32], ids: Ids, top: int | None) -> Chosen:
    """The log-probability of a token in each row, whether it is the first of the most likely, and some of these."""
    rows, likelihoods = np.arange(len(ids)), log_softmax(logits)
    tops = []
    for row in likelihoods[: len(ids)] if top else ():
        best = np.argpartition(-row, min(top or 0, len(row) - 1))[:top]
        best = best[np.lexsort((best, -row[best]))]  # of equal ones the first
        tops.append([(int(token), float(row[token])) for token in best])
    return likelihoods[rows, ids], logits[: len(ids)].argmax(1) == ids, tops or [[] for _ in rows]
