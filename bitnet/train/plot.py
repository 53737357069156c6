"""The loss curve of a run, from its log."""

import json
import os

from bitnet.errors import DeviceError, TrainingError

__all__ = ["plot_losses", "read_log"]


def read_log(path):
    """Read the lines of a run's ``log.jsonl``.

    Parameters
    ----------
    path : str

    Returns
    -------
    list of dict
        Of a run that was stopped and went on from a checkpoint, each step once: the later one.
    """
    try:
        with open(path, encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
    except (OSError, ValueError) as error:
        raise TrainingError.unreadable(os.fspath(path), getattr(error, "strerror", None) or error) from error
    kept = []
    for line in lines:
        if line["event"] == "start":
            kept = [one for one in kept if one["step"] <= line["step"]]
        kept.append(line)
    return kept


def plot_losses(run, file):
    """Draw the training and the validation loss of a run.

    Parameters
    ----------
    run : str
        Its folder.
    file : str
        To be written; its ending says the format, as ``.svg`` or ``.png``.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise DeviceError.missing_extra("matplotlib", "train") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = read_log(os.path.join(run, "log.jsonl"))
    steps = [line for line in lines if line["event"] == "step"]
    held = [line for line in lines if line["event"] == "evaluate"]
    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    axes.plot([one["tokens"] / 1e6 for one in steps], [one["loss"] for one in steps], lw=0.6, label="training")
    axes.plot([one["tokens"] / 1e6 for one in held], [one["loss"] for one in held], "o-", ms=3, label="validation")
    losses = sorted(one["loss"] for one in steps)
    axes.set(xlabel="tokens, millions", ylabel="loss, nats a token",
             ylim=(None, losses[int(0.97 * len(losses))]) if losses else None)  # fmt: skip
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=90)
    pyplot.close(figure)
