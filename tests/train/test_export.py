"""Parity: the function that was trained is the function that the runtime computes."""

import json
import math
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the extra 'train' is not installed", exc_type=ImportError)

import numpy as np
import torch

import bitnet
from bitnet.train import Trainer, export_checkpoint, load_trained, merge_lora
from bitnet.train.export import pack_rows
from bitnet.train.plot import read_log

EXACT = {"head_dtype": "float32", "kv_dtype": "float32", "num_threads": 1}


@pytest.fixture(scope="session")
def exported(trained, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("exported") / "model")
    export_checkpoint(trained, folder, dtype="float32")
    return folder


@pytest.fixture(scope="session")
def documents(texts):
    """The validation text, in token ids."""
    return Path(texts[1]).read_text(encoding="utf-8").split("<|endoftext|>\n")


def logits_of(model, ids):
    with torch.no_grad():
        return model.eval()(torch.tensor([ids]))[0].numpy()


def compare(model, runtime, documents):
    """The largest difference of logits in each document, the share of the same best token, and both losses."""
    differences, same, losses = [], [], []
    for text in documents:
        ids = [int(one) for one in runtime.model.encode(text)] + [0]
        mine, theirs = logits_of(model, ids[:-1]), runtime.infer(ids[:-1])
        differences.append(np.abs(mine - theirs).max())
        same.append(mine.argmax(-1) == theirs.argmax(-1))
        losses.append([-_log_softmax(one)[np.arange(len(ids) - 1), ids[1:]].sum() for one in (mine, theirs)])
    mine, theirs = np.sum(losses, 0) / sum(map(len, same))
    return np.array(differences), np.concatenate(same).mean(), mine, theirs


def _log_softmax(x):
    x = x.astype(np.float64)
    return x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))


def test_the_runtime_computes_what_was_trained(trained, exported, documents):
    with bitnet.load(exported, **EXACT) as runtime:
        differences, same, mine, theirs = compare(load_trained(trained).model(), runtime, documents)
    # An activation near a rounding tie may be rounded either way, and changes all that follows in its document
    # (about one in 10^5); documents without one agree.
    assert np.mean(differences < 1e-3) > 0.8
    assert same >= 0.99
    assert theirs == pytest.approx(mine, abs=1e-3)
    assert mine < 1.5


def test_the_embedding_in_bfloat16_and_the_default_engine_cost_little(trained, documents, tmp_path):
    export_checkpoint(trained, tmp_path / "model")
    with bitnet.load(tmp_path / "model", num_threads=1) as runtime:
        _, same, mine, theirs = compare(load_trained(trained).model(), runtime, documents)
    assert same >= 0.97
    assert theirs == pytest.approx(mine, abs=0.01)


def test_generation_is_the_same(trained, exported):
    model = load_trained(trained).model()
    with bitnet.load(exported, **EXACT) as runtime:
        done = runtime.generate("Cleo had a", max_new_tokens=12)
        ids = [int(one) for one in runtime.model.encode("Cleo had a")]
    for token in done.tokens:
        assert int(logits_of(model, ids)[-1].argmax()) == token
        ids.append(token)


def test_norms_in_front_of_layers_are_exported(config, tmp_path):
    trainer = Trainer(config(input_norm=True, steps=3))
    trainer.train()
    folder = str(tmp_path / "model")
    export_checkpoint(trainer.config.output, folder, dtype="float32")
    model = load_trained(trainer.config.output).model()
    with bitnet.load(folder, **EXACT) as runtime:
        ids = [0, *range(40, 60)]
        assert np.mean(np.abs(logits_of(model, ids) - runtime.infer(ids)).max(-1) < 1e-3) > 0.5


def test_codes_are_packed_by_quarters():
    codes = torch.tensor([[-1, 0], [0, 1], [1, -1], [1, 0]])
    assert pack_rows(codes).tolist() == [[0 | 1 << 2 | 2 << 4 | 2 << 6, 1 | 2 << 2 | 0 << 4 | 1 << 6]]


def test_what_is_written(exported):
    report = bitnet.inspect_checkpoint(exported)
    assert report["loads"]
    assert report["unused"] == []
    assert report["tokenizer"]
    with open(f"{exported}/config.json", encoding="utf-8") as file:
        config = json.load(file)
    assert config["quantization_config"]["linear_class"] == "autobitlinear"
    assert config["eos_token_id"] == 0
    assert config["max_position_embeddings"] == 64


def test_a_packed_model_can_be_trained_on(exported, trained, config):
    trainer = Trainer(config(start_from=exported, steps=1))
    held = read_log(f"{trained}/log.jsonl")
    wanted = [line["loss"] for line in held if line["event"] == "evaluate"][-1]
    assert trainer.validation_loss()[0] == pytest.approx(wanted, abs=1e-3)


def test_adapters_are_merged(config, trained, texts, tmp_path):
    trainer = Trainer(config(start_from=trained, lora_rank=2, data=texts[1], steps=4))
    trainer.train()
    folder = str(tmp_path / "model")
    export_checkpoint(trainer.config.output, folder, dtype="float32", merge_lora=True)
    merged = load_trained(trainer.config.output).model()
    assert len(merge_lora(merged)) == 14
    with bitnet.load(folder, **EXACT) as runtime:
        ids = [0, 41, 42, 43]
        assert np.abs(logits_of(merged, ids) - runtime.infer(ids)).max() < 0.1




def test_the_uniform_guess_is_where_training_begins(config):
    trainer = Trainer(config())
    nats, bits = trainer.validation_loss()
    assert nats == pytest.approx(math.log(trainer.config.vocab_size), abs=0.2)
    assert bits > 1
