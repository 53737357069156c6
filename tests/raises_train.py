"""Rows of test_raises.py for what `bitnet.train` says without PyTorch."""

import sys
import tempfile
from pathlib import Path

import pytest

from bitnet import train
from bitnet.train import TrainConfig


def without_torch():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        _ = train.Trainer


def toml(text):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.toml"
        file.write_text(text, encoding="utf-8")
        try:
            TrainConfig.from_toml(file)
        except Exception as error:
            error.args = (str(error).replace(folder, "..."),)
            raise


ROWS = [
    ("train/__init__.py", "AttributeError", lambda: train.nothing, "module 'bitnet.train' has no attribute 'nothing'"),
    ("train/__init__.py", "DeviceError.missing_extra", without_torch,
     "'torch' is not installed; run: pip install 'bitnet-runtime[train]'"),
    ("train/config.py", "self._refused", lambda: TrainConfig(tokenizer=3),
     "TrainConfig.tokenizer is 3; it must be a path, or None"),
    ("train/config.py", "self._refused", lambda: TrainConfig(output=""), "TrainConfig.output is ''; it must be a path"),
    ("train/config.py", "self._refused", lambda: TrainConfig(betas=0.9),
     "TrainConfig.betas is (0.9,); it must be two numbers from 0 to below 1"),
    ("train/config.py", "self._conflict", lambda: TrainConfig(mixed_share=0.5),
     "TrainConfig: mixed_share needs mixed_data"),
    ("train/config.py", "self._conflict", lambda: TrainConfig(lora_rank=4),
     "TrainConfig: lora_rank needs start_from: adapters are trained on weights that are there"),
    ("train/config.py", "TrainingError.unreadable", lambda: TrainConfig.from_toml("nothing.toml"),
     "cannot read 'nothing.toml': No such file or directory"),
    ("train/config.py", "TrainingError.unreadable", lambda: toml("steps = "),
     "cannot read '.../run.toml': it is no TOML: Invalid value (at end of document)"),
]  # fmt: skip
