"""Tiny runs, on text made here. Each module of this folder is skipped where PyTorch is missing."""

import pytest

from bitnet.train import TrainConfig

NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eve", "Finn")
THINGS = ("ball", "kite", "boat", "drum", "lamp", "book")


def story(i):
    """One of 216 stories."""
    name, other, thing = NAMES[i % 6], NAMES[i // 6 % 6], THINGS[i // 36 % 6]
    return f"{name} had a red {thing}. {other} wanted the {thing} too. So they shared the {thing}, and were glad.\n"


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """A text to train on, and one to measure on."""
    folder = tmp_path_factory.mktemp("texts")
    train, held = folder / "train.txt", folder / "held.txt"
    train.write_text("<|endoftext|>\n".join(story(i) for i in range(216) if i % 9), encoding="utf-8")
    held.write_text("<|endoftext|>\n".join(story(i) for i in range(216) if not i % 9), encoding="utf-8")
    return str(train), str(held)


@pytest.fixture
def config(texts, tmp_path):
    """Make the configuration of a tiny run; settings may be others."""

    def make(**settings):
        sizes = {
            "data": texts[0], "validation": texts[1], "output": str(tmp_path / "run"), "vocab_size": 300,
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "context": 64, "rows": 4, "steps": 6, "warmup": 2, "dtype": "float32",
            "threads": 1, "evaluate_every": 3, "checkpoint_every": 3, "prompts": (),
        }  # fmt: skip
        return TrainConfig(**{**sizes, **settings})

    return make


@pytest.fixture(scope="session")
def trained(texts, tmp_path_factory):
    """The folder of a run that has learnt the stories."""
    from bitnet.train import Trainer

    output = tmp_path_factory.mktemp("trained") / "run"
    trainer = Trainer(TrainConfig(
        data=texts[0], validation=texts[1], output=str(output), vocab_size=320, hidden_size=64, intermediate_size=128,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, context=64, rows=4, steps=120, warmup=10,
        learning_rate=4e-3, dtype="float32", threads=1, evaluate_every=60, checkpoint_every=60,
        prompts=("Ann had a",),
    ))  # fmt: skip
    trainer.train()
    return str(output)
