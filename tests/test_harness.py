"""The adapter for lm-evaluation-harness, as far as it needs no harness; ``peers/test_lm_eval.py`` runs the rest."""

import types

import pytest
from cli_checkpoints import with_tokenizer

import bitnet
from bitnet.harness import Requests

pytest.importorskip("tqdm")


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A model as the harness has it, and what was put into its cache."""
    folder = with_tokenizer(tmp_path_factory.mktemp("harness") / "model")
    one, kept = Requests(folder, batch_size="auto", num_threads=1), []
    one.cache_hook = types.SimpleNamespace(add_partial=lambda *given: kept.append(given))
    return one, kept


def test_likelihoods(asked):
    model, kept = asked
    requests = [(("a", "b"), [3, 4], [5, 6]), (None, [3, 4], [7]), (("c", "d"), [9], [10])]
    found = model._loglikelihood_tokens(requests, disable_tqdm=True)
    with bitnet.load(model.model.path, num_threads=1) as loaded:
        scores = loaded.score([[5, 6], [7], [10]], [[3, 4], [3, 4], [9]])
    assert found == [(score.total, score.is_greedy) for score in scores]
    assert kept == [("loglikelihood", ("a", "b"), found[0]), ("loglikelihood", ("c", "d"), found[2])]


def test_texts_to_tokens_and_back(asked):
    model, _ = asked
    assert model.tok_encode("w3 w4") == [3, 4]
    assert model.tok_encode("w3", add_special_tokens=False) == [3]
    assert model.batch_size == 32
    assert model.max_length == 128
    assert model.get_model_info()["model_type"] == "bitnet"
    assert "/" not in model.tokenizer_name


def test_conversations_may_end_in_an_answer_that_goes_on(asked):
    model, _ = asked
    talk = [{"role": "user", "content": "w3"}, {"role": "assistant", "content": "w4 "}]
    assert model.apply_chat_template(talk[:1]) == "user: w3 "
    assert model.apply_chat_template(talk, add_generation_prompt=False) == "user: w3 assistant: w4"
    assert model.chat_template(True) == model.model.chat_template
    assert model.chat_template(False) is None
