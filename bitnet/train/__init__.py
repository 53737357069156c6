"""Quantisation-aware training of ternary models with PyTorch, which only this package imports (extra ``train``).

The map::

    TrainConfig     config.py       what a run is made of, from a TOML file or flags; needs no PyTorch
    Trainer         trainer.py      the loop: steps, evaluation, samples, checkpoints, log
                    data.py         tokenizer, documents, packed rows
                    optimizer.py    AdamW or Muon, and the schedules
                    losses.py       cross-entropy, and distillation from a teacher
    BitLinear       linear.py       the ternary layer, and `replace_linear` for any model
    BitNetForCausalLM   model.py    the family `bitnet`
                    lora.py         adapters on frozen ternary weights
    export_checkpoint   export.py   to the Hugging Face folder that the runtime reads
                    checkpoint.py   a run's files, read back
                    plot.py         the loss curve

``bitnet train`` and ``bitnet export`` are its commands.
"""

import importlib
from typing import Any

from bitnet.errors import DeviceError
from bitnet.train.config import TrainConfig

HOMES = {
    "BitLinear": "linear",
    "BitNetForCausalLM": "model",
    "Trainer": "trainer",
    "add_lora": "lora",
    "export_checkpoint": "export",
    "load_trained": "checkpoint",
    "merge_lora": "lora",
    "plot_losses": "plot",
    "replace_linear": "linear",
    "set_quantized": "linear",
}
"""The module of each name that needs PyTorch, which is imported when the name is used."""

__all__ = ["TrainConfig", *HOMES]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'bitnet.train' has no attribute '{name}'")
    try:
        importlib.import_module("torch")
    except ImportError as error:
        raise DeviceError.missing_extra("torch", "train") from error
    return getattr(importlib.import_module(f"bitnet.train.{HOMES[name]}"), name)
