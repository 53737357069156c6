"""Perplexity and comparison, against the definitions written out; and their commands."""

import json

import numpy as np
import pytest
from checkpoints import DATA
from cli_checkpoints import with_tokenizer

import bitnet
from bitnet import ConfigurationError, EngineConfig, InferenceError
from bitnet.cli import main

FLOAT32 = EngineConfig(kv_dtype="float32", head_dtype="float32", num_threads=1)
IDS = np.random.default_rng(4).integers(0, 512, 90)


@pytest.fixture(scope="module")
def two():
    with bitnet.InferenceEngine(FLOAT32) as engine:
        yield engine, *(engine.load_model(DATA / name) for name in ("bitnet-packed-auto", "llama-packed-bitlinear"))


def log_softmax(logits):
    logits = logits.astype(np.float64)
    logits = logits - logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def losses(engine, model, context, stride):
    """The loss of each token but the first, by the definition."""
    found = np.full(len(IDS), np.nan)
    for start in range(0, len(IDS), stride):
        window = IDS[start : start + context]
        if len(window) < 2:
            break
        likelihoods = log_softmax(engine.infer(model, window))
        for at in range(1, len(window)):
            if np.isnan(found[start + at]):
                found[start + at] = -likelihoods[at - 1, window[at]]
        if start + context >= len(IDS):
            break
    return found[1:]


@pytest.mark.parametrize(("context", "stride"), [(128, 64), (64, 32), (20, 7), (16, 15), (2, 1), (128, 127)])
def test_perplexity_is_that_of_the_definition(two, context, stride):
    engine, model, _ = two
    seen = []
    how = {"context": context, "stride": stride, "progress": lambda *done: seen.append(done)}
    found = bitnet.perplexity(engine, model, IDS, **how)
    expected = losses(engine, model, context, stride)
    assert not np.isnan(expected).any()
    assert found["tokens"] == 89
    assert abs(found["nll"] - expected.mean()) < 1e-9
    assert found["perplexity"] == pytest.approx(np.exp(found["nll"]))
    assert (found["context"], found["stride"]) == (context, stride)
    assert seen[-1] == (89, 89)


def test_defaults_are_said(two):
    engine, model, _ = two
    found = bitnet.perplexity(engine, model, IDS)
    assert (found["context"], found["stride"]) == (128, 64)


def test_a_model_is_no_distance_from_itself(two):
    engine, model, _ = two
    found = bitnet.compare(engine, model, model, IDS)
    assert (found["kl_mean"], found["kl_max"], found["top1_agreement"], found["max_logit_difference"]) == (0, 0, 1, 0)
    assert found["first_difference"] is None
    assert found["nll"][0] == found["nll"][1] == pytest.approx(bitnet.perplexity(engine, model, IDS)["nll"])


def test_the_distance_of_two_models_is_that_of_the_definition(two):
    engine, one, other = two
    found = bitnet.compare(engine, one, other, IDS, context=128)
    a, b = engine.infer(one, IDS)[:-1], engine.infer(other, IDS)[:-1]
    p, q = log_softmax(a), log_softmax(b)
    divergence = (np.exp(p) * (p - q)).sum(1)
    assert found["kl_mean"] == pytest.approx(divergence.mean(), rel=1e-9)
    assert found["kl_max"] == pytest.approx(divergence.max(), rel=1e-9)
    same = a.argmax(1) == b.argmax(1)
    assert found["top1_agreement"] == same.mean()
    first = int(np.argmin(same))
    assert found["first_difference"] == {"position": first, "tokens": [int(a[first].argmax()), int(b[first].argmax())]}
    assert found["max_logit_difference"] == np.abs(a - b).max()


@pytest.mark.parametrize(
    ("ids", "how", "error", "sentence"),
    [([1], {}, InferenceError, "the text has 1 tokens; at least two are needed, one to predict the other"),
     (IDS, {"context": 1}, ConfigurationError, "perplexity.context is 1; it must be a whole number from 2 to 128"),
     (IDS, {"context": 500}, ConfigurationError, "perplexity.context is 500; it must be a whole number from 2 to 128"),
     (IDS, {"context": 8, "stride": 9}, ConfigurationError, "perplexity.stride is 9; it must be a whole")],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(two, ids, how, error, sentence):
    with pytest.raises(error, match=sentence):
        bitnet.perplexity(two[0], two[1], ids, **how)


def test_vocabularies_have_to_be_one(two, tmp_path):
    import gguf_files

    metadata, tensors = gguf_files.tiny("llama")
    with pytest.warns(UserWarning, match="do not tell in which layout"):
        small = two[0].load_model(gguf_files.write_gguf(tmp_path / "a.gguf", metadata, tensors))
    with pytest.raises(InferenceError, match="the vocabularies have 512 and 96 tokens; only models of one vocabulary"):
        bitnet.compare(two[0], two[1], small, IDS)


def test_the_commands_print_what_they_measure(tmp_path, capsys):
    folder, file = with_tokenizer(tmp_path / "model"), tmp_path / "text.txt"
    file.write_text("hello there hello there " * 3)
    assert main(["perplexity", folder, str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["perplexity", folder, str(file), "--context", str(found["context"])]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"perplexity {found['perplexity']:.4f} ({found['nll']:.5f} nats a token) over")
    assert said.endswith(f"context {found['context']}, stride {found['stride']}\n")
    assert main(["compare", folder, folder, str(file)]) == 0
    assert "same most likely token  100.0000%" in capsys.readouterr().out
    assert main(["compare", folder, folder, str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kl_max"] == 0
    assert main(["perplexity", folder, str(tmp_path / "none")]) == 1
    assert "cannot read" in capsys.readouterr().err
