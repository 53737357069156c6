"""The model that comes with the package: it is there, it is the default, and it is good."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bitnet
from bitnet.assets import BUNDLED
from bitnet.cli import main
from bitnet.train import TrainConfig

# A text of our own, in the words the model knows.
STORY = (
    "Once upon a time, there was a little cat named Mia. Mia liked to play in the garden. One day, she saw a big bird "
    "in the tree. \"Hello, bird,\" said Mia. \"Do you want to play with me?\" The bird was happy and said yes. They "
    "played all day and became good friends."
)


@pytest.fixture(scope="module")
def model():
    with bitnet.load(num_threads=1) as loaded:
        yield loaded


def nats_a_token(model, text):
    ids = [int(one) for one in model.model.encode(text)]
    logits = model.infer(ids[:-1]).astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    chosen = logits[np.arange(len(ids) - 1), ids[1:]] - np.log(np.exp(logits).sum(-1))
    return -chosen.mean(), -chosen.sum() / math.log(2) / len(text)


def test_its_size_and_its_files():
    report = bitnet.inspect_checkpoint()
    assert report["loads"]
    assert report["path"] == BUNDLED
    assert report["unused"] == []
    assert 5e6 < report["totals"]["parameters"] < 12e6
    assert 2e6 < os.path.getsize(Path(BUNDLED, "model.safetensors")) < 8e6
    assert report["config"]["max_position_embeddings"] >= 512
    card = Path(BUNDLED, "README.md").read_text(encoding="utf-8")
    for words in ("TinyStories", "CDLA-Sharing-1.0", "validation", "bits", "overlap", "seed", "loss.svg"):
        assert words in card, words


def test_its_recipe_is_one():
    recipe, config = TrainConfig.from_toml(Path(BUNDLED, "recipe.toml")), bitnet.inspect_checkpoint()["config"]
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        assert getattr(recipe, name) == config[name]
    assert recipe.context == config["max_position_embeddings"]


def test_it_knows_its_language(model):
    nats, bits = nats_a_token(model, STORY)
    assert bits < 1.0
    words = STORY.split()
    np.random.default_rng(0).shuffle(words)
    assert nats_a_token(model, " ".join(words))[0] > nats + 1


def test_it_goes_on_with_the_name_it_was_given(model):
    # Names that its training text does not have.
    girls, boys = ("Nadia", "Beatrix", "Orla", "Tamsin"), ("Rolf", "Gustav", "Duncan", "Kelvin")
    openings = {
        **{name: f"Once upon a time, there was a little girl named {name}." for name in girls},
        **{name: f"One day, a boy named {name} went to the park." for name in boys},
        **{name: f"Once there was a small mouse named {name} who lived in a forest." for name in ("Loxy", "Wizzle")},
    }
    kept = [name for name, opening in openings.items() if name in model.generate(opening, max_new_tokens=100).text]
    assert len(kept) >= 9, kept


def test_greedy_text_is_always_the_same(model):
    done = model.generate("Once upon a time", max_new_tokens=40)
    assert done.text.startswith(", there was a")
    with bitnet.load(num_threads=2, packing="t5") as other:
        assert other.generate("Once upon a time", max_new_tokens=40).tokens == done.tokens


def test_sampled_text_depends_on_the_seed(model):
    texts = [model.generate("One day", max_new_tokens=30, do_sample=True, temperature=0.8, seed=seed).text
             for seed in (1, 1, 2)]  # fmt: skip
    assert texts[0] == texts[1] != texts[2]


def test_sequences_together_are_sequences_alone(model):
    prompts = ["Tom and Sue", "The dog was", "One day, a bird"]
    alone = [model.infer(one, last_only=True) for one in prompts]
    together = model.engine.infer_batch(model.model, prompts, last_only=True)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_story_comes_to_an_end(model):
    ends = [model.generate("Once upon a time", max_new_tokens=450, do_sample=True, temperature=0.7, seed=seed)
            .finish_reason for seed in range(4)]  # fmt: skip
    assert "eos" in ends


def test_it_is_the_default_of_the_commands(capsys):
    assert main(["generate", "Once upon a time", "--max-new-tokens", "5", "--quiet"]) == 0
    assert capsys.readouterr().out.startswith(", there was a")
    assert main(["inspect", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == BUNDLED
    assert main(["bench", "-p", "8", "-n", "4", "-r", "1", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "bundled"


def test_a_prompt_is_never_taken_for_a_folder(capsys, tmp_path, monkeypatch):
    (tmp_path / "story").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "story", "--max-new-tokens", "3", "--quiet"]) == 0
    assert main(["generate", "-m", "story", "Once", "--quiet"]) == 1
    assert "'story' is no checkpoint" in capsys.readouterr().err


def test_one_token_needs_little_of_python():
    # Libraries that are slow to import and not needed for a text.
    code = (
        "import sys; from bitnet.cli import main; main(['generate', 'Once', '--max-new-tokens', '1', '--quiet']); "
        "sys.exit(' '.join(m for m in ('rich', 'jinja2', 'torch', 'asyncio', 'numpy.ma') if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
