"""Float checkpoints to ternary after training, with a report of what that costs.

A model that was not trained for ternary weights loses much of its quality by this; the report says how much of each
weight, and of the inputs of layers on a text that it is calibrated with. `perplexity` of the source, loaded with
``weights="float"``, and of the result says it of the whole.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bitnet._core import quant
from bitnet.calibration import activation_statistics
from bitnet.config import EngineConfig, QuantizationConfig
from bitnet.conversion import FORMATS, write
from bitnet.errors import ConfigurationError, ModelLoadError
from bitnet.formats import open_checkpoint
from bitnet.formats.writing import Codes, Item, new_checkpoint
from bitnet.hub import local_path
from bitnet.model import load_model
from bitnet.quant import checked_config, dequantize

__all__ = ["plot_report", "quantize_checkpoint"]


def quantize_checkpoint(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    config: QuantizationConfig | None = None,
    *,
    to: str = "bitnet",
    force: bool = False,
    calibration: str | Sequence[int] | None = None,
    num_threads: int | None = None,
    progress: Callable[[int, int, str], object] | None = None,
) -> list[dict[str, Any]]:
    """Quantise the projections of a float checkpoint to ternary, and write it.

    Parameters
    ----------
    source : str
        A checkpoint whose projections are floats.
    target : str
        What is to be written: it appears when it is whole.
    config : QuantizationConfig, optional
        Whether a weight, each row, or each group of columns has a scale; by default the weight.
    to : {"bitnet", "hugging_face", "gguf"}
        As of `convert`; the last two hold one scale a weight.
    force : bool, optional
        Whether `target` may be replaced.
    calibration : str or sequence of int, optional
        A text on which the inputs of the layers are measured, in the float model: all of it is loaded for that.
    num_threads : int, optional
        For the calibration; by default what this process may use.
    progress : callable, optional
        Called as ``progress(done_bytes, total_bytes, name)``.

    Returns
    -------
    list of dict
        For each weight, the worst first: ``name``, ``shape``, ``scales`` (how many), ``mse``, ``sqnr_db`` (signal to
        quantisation noise, in decibels; None without noise), ``cosine`` and ``zeros`` (a share); with `calibration`
        also ``activations``, of what the layer is given, as of `activation_statistics`.

    Raises
    ------
    ModelLoadError
        If there is nothing to quantise, or the format cannot hold the result.

    Notes
    -----
    Codes and scales are those of `quantize_weights`: absmean.
    """
    if to not in FORMATS:
        raise ConfigurationError.choice("to", to, FORMATS)
    config = checked_config(config, "quantize_checkpoint")
    report: dict[str, dict[str, Any]] = {}

    def change(items: list[Item]) -> list[Item]:
        changed = [_quantised(item, config, report) for item in items]
        if all(item.kind == "floats" for item in changed):
            raise ModelLoadError.nothing_to_quantize(os.fspath(source))
        return changed

    path = local_path(source)
    with open_checkpoint(path) as checkpoint, new_checkpoint(os.fspath(target), force) as scratch:
        write(checkpoint, scratch, to, EngineConfig(), progress=progress, change=change)
        if calibration is not None:  # before the target appears: it may fail
            of_inputs = _statistics(path, calibration, num_threads, progress)
            for name in report.keys() & of_inputs:
                report[name]["activations"] = of_inputs[name]
    return sorted(report.values(), key=lambda row: (row["cosine"], row["name"]))


def _statistics(
    path: str, text: str | Sequence[int], num_threads: int | None, progress: Callable[[int, int, str], object] | None
) -> dict[str, dict[str, float | None]]:
    model = load_model(path, EngineConfig(weights="float", num_threads=num_threads), progress)

    def count(done: int, total: int) -> None:
        if progress is not None:
            progress(done, total, f"{done:,} of {total:,} tokens")

    return activation_statistics(model, text, progress=count)


def _quantised(item: Item, config: QuantizationConfig, report: dict[str, dict[str, Any]]) -> Item:
    """A projection of floats as a ternary weight that notes what it costs; anything else as it is."""
    if item.kind != "floats" or len(item.shape) != 2 or not item.name.endswith("_proj.weight"):
        return item
    layer = item.name.removesuffix(".weight")

    def read() -> Codes:
        w = np.ascontiguousarray(_float32(item.read(), item.dtype))
        s = quant.reciprocal_scales(w, config.per_channel, config.group_size)
        found = Codes(
            quant.ternarize(w, s, config.group_size), np.asarray(quant.scales_of(s), np.float32), config.group_size
        )
        if layer not in report:
            report[layer] = {"name": layer, "shape": list(item.shape), **_errors(w, found)}
        return found

    return dataclasses.replace(item, name=layer, kind="ternary", read=read)


def _errors(w: Any, found: Codes) -> dict[str, Any]:
    got = dequantize(found.codes, found.scale, group_size=found.group_size)
    signal, noise, product, norm = 0.0, 0.0, 0.0, 0.0
    for start in range(0, len(w), 1024):  # in float64, some rows at once
        a, b = (one[start : start + 1024].astype(np.float64) for one in (w, got))
        signal += float((a * a).sum())
        noise += float(((a - b) ** 2).sum())
        product += float((a * b).sum())
        norm += float((b * b).sum())
    return {
        "scales": int(found.scale.size),
        "mse": noise / w.size,
        "sqnr_db": float(10 * np.log10(signal / noise)) if noise and signal else None,
        "cosine": product / (signal * norm) ** 0.5 if signal and norm else 0.0,
        "zeros": float((found.codes == 0).mean()),
    }


def _float32(array: Any, dtype: str) -> Any:
    if dtype == "BF16":
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array.astype(np.float32)


def plot_report(report: list[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draw the error of each weight, and that of each layer's inputs where the report has it.

    Parameters
    ----------
    report : list of dict
        Of `quantize_checkpoint`.
    path : str
        The picture: .png, .svg or .pdf.

    Raises
    ------
    ConfigurationError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigurationError.missing_library("matplotlib", "plot", "a plot was asked for") from error
    pictures: list[tuple[str, list[dict[str, Any]]]] = [("Weights rounded to ternary: higher is closer", report)]
    inputs = [{"name": row["name"], **row["activations"]} for row in report if "activations" in row]
    if inputs:
        pictures.append(("Inputs rounded to 8 bits: higher is closer", inputs))
    figure = Figure(figsize=(9, 5 * len(pictures)), layout="constrained")
    for axes, (title, rows) in zip(figure.subplots(len(pictures), squeeze=False)[:, 0], pictures, strict=True):
        _draw(axes, title, [row for row in rows if row["sqnr_db"] is not None])
    figure.savefig(os.fspath(path))


def _draw(axes: Any, title: str, rows: list[dict[str, Any]]) -> None:
    """The signal to noise of each kind of layer over the depth of the model."""
    for kind in sorted({row["name"].rpartition(".")[2] for row in rows}):
        points = sorted((next((int(part) for part in row["name"].split(".") if part.isdigit()), 0), row["sqnr_db"])
                        for row in rows if row["name"].endswith(kind))  # fmt: skip
        axes.plot(*zip(*points, strict=True), marker="o", label=kind)
    axes.set_xlabel("layer")
    axes.set_ylabel("signal to quantisation noise (dB)")
    axes.set_title(title)
    if rows:
        axes.legend()
    axes.grid(True, alpha=0.3)
