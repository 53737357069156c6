"""What the operations of a program make: ranges, NaN, saturation; and where two models part."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bitnet import kv_cache
from bitnet._core.program import Execution
from bitnet._core.quant import quantize_activations
from bitnet.errors import ConfigurationError, InferenceError
from bitnet.model import Model

__all__ = ["Diagnosis", "Difference", "OperationValues", "diagnose"]

Floats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class OperationValues:
    """What an operation made, for all tokens of a run.

    Attributes
    ----------
    name, kind : str
    elements : int
    minimum, maximum, rms : float
        Of the finite ones.
    nan, inf : int
        How many are NaN, and how many infinite.
    zeros : float
        The share of exact zeros.
    saturation : float or None
        Of a linear operation, the share of its int8 inputs that are -127 or 127: each token has at least one, and many
        where a few outliers do not stand out. None where nothing is quantised.
    values : ndarray of float32, shape (tokens, width), or None
        The numbers themselves, where they were kept.
    """

    name: str
    kind: str
    elements: int
    minimum: float
    maximum: float
    rms: float
    nan: int
    inf: int
    zeros: float
    saturation: float | None
    values: Floats | None = None

    @property
    def is_finite(self) -> bool:
        return self.nan == self.inf == 0


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far two operations of one name are apart.

    Attributes
    ----------
    name, kind : str
    largest : float
        The largest absolute difference; NaN where just one of two numbers is NaN.
    index : tuple of int
        Where it is: token, and element.
    mine, other : float
        The two numbers there.
    relative : float
        The RMS of the differences over the RMS of the first.
    differing : int
        How many elements differ at all.
    """

    name: str
    kind: str
    largest: float
    index: tuple[int, ...]
    mine: float
    other: float
    relative: float
    differing: int


class Diagnosis:
    """What `diagnose` found: a list of `OperationValues`, in the order of the program.

    Attributes
    ----------
    operations : list of OperationValues
        Up to the first operation that made a number that is not finite, there it ends.
    first_bad : OperationValues or None
        That operation.
    tokens : int
    """

    def __init__(self, operations: list[OperationValues], tokens: int) -> None:
        self.operations, self.tokens = operations, tokens

    @property
    def first_bad(self) -> OperationValues | None:
        return next((one for one in self.operations if not one.is_finite), None)

    def differences(self, other: "Diagnosis") -> Iterator[Difference]:
        """Compare with another diagnosis of the same prompt, operation by operation; what is alike is left out.

        Parameters
        ----------
        other : Diagnosis
            Both made with ``keep=True``. Operations are matched by name; where a model lacks one it is left out.

        Yields
        ------
        Difference

        Raises
        ------
        ConfigurationError
            If values were not kept.
        """
        theirs = {one.name: one for one in other.operations}
        for one in self.operations:
            if one.name not in theirs:
                continue
            mine, their = one.values, theirs[one.name].values
            if mine is None or their is None:
                raise ConfigurationError.conflict("Diagnosis.differences", "the values were not kept; use keep=True")
            if mine.shape != their.shape:
                nan = float("nan")
                yield Difference(one.name, one.kind, nan, (), nan, nan, nan, max(mine.size, their.size))
            elif mine.tobytes() != their.tobytes():
                yield _difference(one, mine, their)

    def table(self) -> str:
        """Write it as a table.

        Returns
        -------
        str
        """
        cells = [["minimum", "maximum", "RMS", "zeros", "NaN", "inf", "saturation", "kind", "operation"]]
        cells += [
            [f"{one.minimum:.4g}", f"{one.maximum:.4g}", f"{one.rms:.4g}", f"{one.zeros:.1%}", str(one.nan),
             str(one.inf), "" if one.saturation is None else f"{one.saturation:.2%}", one.kind, one.name]
            for one in self.operations
        ]  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) if i > 6 else cell.rjust(width)
                      for i, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
            for line in cells
        )  # fmt: skip


def _difference(one: OperationValues, mine: Floats, their: Floats) -> Difference:
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(mine.astype(np.float64) - their)
    # The same infinity, or NaN in both, is no difference; NaN in one is the largest.
    apart[(mine == their) | (np.isnan(mine) & np.isnan(their))] = 0
    flat = int(np.argmax(np.where(np.isnan(apart), np.inf, apart)))
    index = tuple(int(i) for i in np.unravel_index(flat, apart.shape))
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        scale = float(np.sqrt(np.mean(np.square(mine, dtype=np.float64))))
        relative = float(np.sqrt(np.mean(np.square(apart)))) / scale if scale else float("inf")
    return Difference(one.name, one.kind, float(apart[index]), index, float(mine[index]), float(their[index]), relative,
                      int(np.count_nonzero(apart)))  # fmt: skip


def _described(name: str, kind: str, values: Floats, inputs: Floats | None, keep: bool) -> OperationValues:
    finite = values[np.isfinite(values)]
    nan = int(np.isnan(values).sum())
    saturation = None
    if inputs is not None and inputs.size and np.isfinite(inputs).all():
        saturation = float(np.mean(np.abs(quantize_activations(np.ascontiguousarray(inputs))[0]) == 127))
    return OperationValues(
        name, kind, values.size, float(finite.min(initial=0 if not finite.size else np.inf)),
        float(finite.max(initial=0 if not finite.size else -np.inf)),
        float(np.sqrt(np.mean(np.square(finite, dtype=np.float64)))) if finite.size else 0.0,
        nan, int(values.size - finite.size - nan), float(np.mean(values == 0)) if values.size else 0.0, saturation,
        values if keep else None,
    )  # fmt: skip


def diagnose(
    model: Model, prompt: str | Sequence[int], *, num_threads: int | None = None, keep: bool = False
) -> Diagnosis:
    """Run a prompt through a model, and look at what every operation makes.

    It ends at the first operation that makes a number that is not finite, and so names it. To find where two models, or
    two ways to run one, part: ``next(diagnose(a, ids, keep=True).differences(diagnose(b, ids, keep=True)), None)``.

    Parameters
    ----------
    model : Model
        Of `InferenceEngine.load_model`, or `LoadedModel.model`.
    prompt : str or sequence of int
    num_threads : int, optional
        What the model was loaded with, if not given.
    keep : bool, optional
        Whether to keep all numbers, for `Diagnosis.differences`: tokens times all widths times 4 bytes.

    Returns
    -------
    Diagnosis

    Raises
    ------
    InferenceError
        If the prompt is empty, or longer than the context.
    """
    model = getattr(model, "model", model)
    ids = model.encode(prompt)
    if not len(ids):
        raise InferenceError.empty_prompt()
    program = model.program
    if len(ids) > program.context:
        raise InferenceError.beyond_context(len(ids) - 1, program.context)
    make_cache: Any = kv_cache.KVCache
    make_sequence: Any = kv_cache.Sequence
    execution, sequence = Execution(program, len(ids)), make_sequence(make_cache(program.page_bytes))
    sequence.reserve(len(ids))
    found: list[OperationValues] = []

    def look(index: int, values: Floats, inputs: Floats | None) -> bool:
        is_linear = program.kinds[index] == "linear"
        name, kind = program.names[index], program.kinds[index]
        found.append(_described(name, kind, values, inputs if is_linear else None, keep))
        return not found[-1].is_finite

    execution.observer = look
    count = np.arange(len(ids), dtype=np.int32)
    threads: Any = num_threads or model.engine_config.num_threads
    execution.run(ids, count, np.zeros(len(ids), np.int32), [sequence.table], count[-1:], threads)
    return Diagnosis(found, len(ids))
