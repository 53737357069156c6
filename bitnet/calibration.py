"""What the linear layers of a model are given on a text: how large it is, and what rounding it to 8 bits costs."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bitnet import kv_cache
from bitnet._core.program import Execution
from bitnet._core.quant import quantize_activations
from bitnet.errors import InferenceError
from bitnet.model import Model

__all__ = ["activation_statistics"]

CONTEXT = 512  # tokens that are run together

Floats = npt.NDArray[np.float32]


def activation_statistics(
    model: Model, text: str | Sequence[int], *, num_threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, dict[str, float | None]]:  # fmt: skip
    """Run a text through a model, and measure the inputs of its linear layers.

    Parameters
    ----------
    model : Model
        Of `InferenceEngine.load_model`, or `LoadedModel.model`; with ``weights="float"`` that of a float checkpoint.
    text : str or sequence of int
        It is run in pieces of 512 tokens, or of the model's context if that is less, each for itself.
    num_threads : int, optional
        What the model was loaded with, if not given.
    progress : callable, optional
        Called as ``progress(done, total)``, in tokens.

    Returns
    -------
    dict
        For each linear layer's name, or the names joined by "+" of those that share an input: ``absmax`` (the largest
        absolute value), ``rms``, ``crest`` (the mean over tokens of the largest absolute value over the token's RMS),
        ``sqnr_db`` (signal over the noise of rounding each token to int8 by its largest value, in decibels; None
        without noise) and ``sqnr_db_min`` (that of the worst token).

    Raises
    ------
    InferenceError
        If the text has no tokens, or a number is not finite.
    """
    model = getattr(model, "model", model)
    ids = model.encode(text)
    if not len(ids):
        raise InferenceError.empty_prompt()
    program = model.program
    context = min(CONTEXT, program.context)
    make_cache: Any = kv_cache.KVCache
    make_sequence: Any = kv_cache.Sequence
    execution, cache = Execution(program, min(context, len(ids))), make_cache(program.page_bytes)
    threads: Any = num_threads or model.engine_config.num_threads
    sums: dict[str, _Sums] = {}

    def look(index: int, values: Floats, inputs: Floats | None) -> bool:
        if program.kinds[index] in ("linear", "dense") and inputs is not None:
            sums.setdefault(program.names[index], _Sums()).add(inputs)
        return False

    execution.observer = look
    for start in range(0, len(ids), context):
        part = ids[start : start + context]
        sequence = make_sequence(cache)
        sequence.reserve(len(part))
        positions = np.arange(len(part), dtype=np.int32)
        execution.run(part, positions, np.zeros(len(part), np.int32), [sequence.table], positions[-1:], threads)
        sequence.close()
        if progress is not None:
            progress(start + len(part), len(ids))
    return {name: one.statistics() for name, one in sums.items()}


class _Sums:
    """Over the inputs of a layer, in float64."""

    def __init__(self) -> None:
        self.tokens = self.numbers = 0
        self.absmax = self.signal = self.noise = self.crests = 0.0
        self.worst = np.inf  # ratio of signal to noise of a token

    def add(self, inputs: Floats) -> None:
        codes, scales = quantize_activations(np.ascontiguousarray(inputs))
        exact = inputs.astype(np.float64)
        signals = (exact * exact).sum(1)
        noises = ((exact - codes * scales[:, None].astype(np.float64)) ** 2).sum(1)
        largest = np.abs(exact).max(1)
        rms = np.sqrt(signals / exact.shape[1])
        self.tokens, self.numbers = self.tokens + len(exact), self.numbers + exact.size
        self.absmax = max(self.absmax, float(largest.max()))
        self.signal, self.noise = self.signal + float(signals.sum()), self.noise + float(noises.sum())
        self.crests += float((largest[rms > 0] / rms[rms > 0]).sum())
        noisy = (noises > 0) & (signals > 0)
        self.worst = min(self.worst, float((signals[noisy] / noises[noisy]).min(initial=np.inf)))

    def statistics(self) -> dict[str, float | None]:
        return {
            "absmax": self.absmax, "rms": float(np.sqrt(self.signal / self.numbers)),
            "crest": self.crests / self.tokens,
            "sqnr_db": float(10 * np.log10(self.signal / self.noise)) if self.noise and self.signal else None,
            "sqnr_db_min": float(10 * np.log10(self.worst)) if np.isfinite(self.worst) else None,
        }  # fmt: skip
