"""How well models predict a text: perplexity, and how far two of them are apart.

Probabilities are those of the whole vocabulary, in float64 from the float32 logits.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from bitnet.errors import ConfigurationError, InferenceError
from bitnet.scoring import CHUNK, Run, log_softmax, score_pairs

__all__ = ["compare", "perplexity"]

CONTEXT = 1024  # tokens of a window by default
WINDOWS = 2  # that are read together

Progress = Callable[[int, int], object]


def perplexity(
    engine: Any, model: Any, text: Any, *, context: int | None = None, stride: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure how well a model predicts a text.

    A window of `context` tokens moves over the text by `stride` tokens; of each window only tokens that no window
    before has counted are counted. So every token but the first is counted once, with ``context - stride`` tokens
    before it at least, or all there are.

    Parameters
    ----------
    engine : InferenceEngine
    model : Model
    text : str or sequence of int
    context : int, optional
        By default 1024, or the model's if that is less.
    stride : int, optional
        By default half of `context`.
    progress : callable, optional
        Called as ``progress(done, total)``, in tokens.

    Returns
    -------
    dict
        ``perplexity``, ``nll`` (mean negative log-likelihood, in nats a token), ``tokens`` (those counted), ``context``
        and ``stride``.

    Raises
    ------
    ConfigurationError
        If `context` or `stride` cannot be used.
    InferenceError
        If the text has less than two tokens.
    """
    ids, context, stride = _checked(model, text, context, stride)
    pairs, counted, count = [], 0, len(ids) - 1
    for start in range(0, count, stride):
        if counted < count:
            end = min(start + context - 1, count)
            pairs.append((ids[start : counted + 1], ids[counted + 1 : end + 1]))
            counted = end

    def told(done: int, total: int) -> None:
        if progress is not None:
            progress(count * done // total, count)

    # Few windows together: each takes memory for a whole context.
    nll = -sum(one.total for one in score_pairs(engine, model, pairs, WINDOWS, told)) / count
    return {"perplexity": math.exp(min(nll, 700.0)), "nll": nll, "tokens": count, "context": context, "stride": stride}


def compare(
    engine: Any, first: Any, second: Any, text: Any, *, context: int | None = None, stride: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure how far the predictions of two models of one vocabulary are apart on a text.

    Parameters
    ----------
    engine : InferenceEngine
    first, second : Model
    text : str or sequence of int
        Encoded by `first`.
    context, stride, progress
        As of `perplexity`.

    Returns
    -------
    dict
        ``kl_mean`` and ``kl_max`` (the divergence of `second` from `first`, in nats), ``top1_agreement`` (share of
        positions with the same most likely token), ``first_difference`` (the first position at which it differs, and
        the two tokens, or None), ``max_logit_difference``, ``nll`` (of both), ``tokens``, ``context`` and ``stride``.

    Raises
    ------
    InferenceError
        If the vocabularies have different sizes.
    """
    sizes = [model.config.vocab_size for model in (first, second)]
    if sizes[0] != sizes[1]:
        raise InferenceError.vocabularies(*sizes)
    ids, context, stride = _checked(first, text, context, stride, second)
    divergences, same, largest = [], 0, 0.0
    likelihood, difference = np.zeros(2), None
    for at, (one, other) in _windows(engine, [first, second], ids, context, stride, progress):
        p, q = log_softmax(one), log_softmax(other)
        divergences.append((np.exp(p) * (p - q)).sum(1))
        tops = p.argmax(1), q.argmax(1)
        same += int((tops[0] == tops[1]).sum())
        apart = np.flatnonzero(tops[0] != tops[1])
        if difference is None and len(apart):
            i = apart[0]
            difference = {"position": int(at[i]), "tokens": [int(tops[0][i]), int(tops[1][i])]}
        largest = max(largest, float(np.abs(one - other).max()))
        rows = np.arange(len(at))
        likelihood -= [p[rows, ids[at + 1]].sum(), q[rows, ids[at + 1]].sum()]
    every = np.concatenate(divergences)
    return {
        "kl_mean": float(np.maximum(every, 0).mean()), "kl_max": float(max(every.max(), 0.0)),
        "top1_agreement": same / len(every), "first_difference": difference, "max_logit_difference": largest,
        "nll": [float(one) for one in likelihood / len(every)], "tokens": len(every), "context": context,
        "stride": stride,
    }  # fmt: skip


def _checked(
    model: Any, text: Any, context: int | None, stride: int | None, other: Any = None
) -> tuple[npt.NDArray[np.int32], int, int]:
    most = min([one.program.context for one in (model, other) if one is not None])
    if context is None:
        context = min(CONTEXT, most)
    if stride is None:
        stride = max(context // 2, 1) if isinstance(context, int) else 1
    # Below `context`, or the first token of each window would be predicted by nobody.
    for name, got, known in (("context", context, range(2, most + 1)), ("stride", stride, range(1, context))):
        if not isinstance(got, int) or got not in known:
            raise ConfigurationError.value("perplexity", name, got, f"a whole number from {known[0]} to {known[-1]}")
    ids = model.encode(text)
    if len(ids) < 2:
        raise InferenceError.too_short(len(ids))
    return ids, context, stride


def _windows(
    engine: Any, models: list[Any], ids: npt.NDArray[np.int32], context: int, stride: int, progress: Progress | None
) -> Iterator[tuple[npt.NDArray[np.int64], list[npt.NDArray[np.float32]]]]:
    """The logits of each model at positions that are counted, some positions at once."""
    counted, last = 0, len(ids) - 1  # the last token predicts nothing that is known
    start = 0
    while counted < last:
        end = min(start + context - 1, last)
        runs = [Run(engine, model) for model in models]
        try:
            for begin in range(start, end, CHUNK):
                stop = min(begin + CHUNK, end)
                logits = [run.step({0: ids[begin:stop]})[0] for run in runs]
                new = max(counted - begin, 0)
                if new < stop - begin:
                    yield np.arange(begin + new, stop), [rows[new:] for rows in logits]
                    counted = stop
                    if progress is not None:
                        progress(counted, last)
        finally:
            for run in runs:
                run.close()
        start += stride
