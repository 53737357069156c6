"""Float checkpoints to ternary after training, with a report of what that costs.

A model that was not trained for ternary weights loses much of its quality by this; the report says how much of each
weight, and `bitnet perplexity` how much on a text.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from bitnet._core import quant
from bitnet.config import EngineConfig, QuantizationConfig
from bitnet.conversion import FORMATS, write
from bitnet.errors import ConfigurationError, ModelLoadError
from bitnet.formats import open_checkpoint
from bitnet.formats.writing import Codes, Item, new_path
from bitnet.hub import local_path
from bitnet.quant import checked_config, dequantize

__all__ = ["plot_report", "quantize_checkpoint"]


def quantize_checkpoint(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    config: QuantizationConfig | None = None,
    *,
    to: str = "bitnet",
    force: bool = False,
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
    progress : callable, optional
        Called as ``progress(done_bytes, total_bytes, name)``.

    Returns
    -------
    list of dict
        For each weight, the worst first: ``name``, ``shape``, ``scales`` (how many), ``mse``, ``sqnr_db`` (signal to
        quantisation noise, in decibels; None without noise), ``cosine`` and ``zeros`` (a share).

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

    with open_checkpoint(local_path(source)) as checkpoint, new_path(os.fspath(target), force) as scratch:
        write(checkpoint, scratch, to, EngineConfig(), progress=progress, change=change)
    return sorted(report.values(), key=lambda row: (row["cosine"], row["name"]))


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
    """Draw the error of each weight.

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
    kinds = sorted({row["name"].rpartition(".")[2] for row in report})
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for kind in kinds:
        rows = [row for row in report if row["name"].endswith(kind) and row["sqnr_db"] is not None]
        rows.sort(key=lambda row: [int(part) for part in row["name"].split(".") if part.isdigit()])
        layers = [next((int(part) for part in row["name"].split(".") if part.isdigit()), 0) for row in rows]
        axes.plot(layers, [row["sqnr_db"] for row in rows], marker="o", label=kind)
    axes.set_xlabel("layer")
    axes.set_ylabel("signal to quantisation noise (dB)")
    axes.set_title("Weights rounded to ternary: higher is closer")
    axes.legend()
    axes.grid(True, alpha=0.3)
    figure.savefig(os.fspath(path))
