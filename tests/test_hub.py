"""Ids of the Hub: from its cache, without a network; and what is said if there is nothing."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from checkpoints import DATA
from hub_server import COMMITS, serving

import bitnet
from bitnet import ConfigurationError, ModelLoadError, hub

pytest.importorskip("huggingface_hub")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the Hub's library with one model in it, as that library lays it out."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    root = tmp_path / "models--somebody--a-model"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    shutil.copytree(DATA / "llama-packed-bitlinear", root / "snapshots" / COMMIT)
    return tmp_path


def test_an_id_is_found_in_the_cache(cache):
    folder = hub.fetch("somebody/a-model", cache_dir=cache, offline=True)
    assert folder == str(cache / "models--somebody--a-model" / "snapshots" / COMMIT)
    assert hub.fetch("somebody/a-model", cache_dir=cache, offline=True, revision=COMMIT) == folder
    with bitnet.load(folder) as one, bitnet.load(DATA / "llama-packed-bitlinear") as other:
        assert (one.infer([1, 2]) == other.infer([1, 2])).all()
        assert np.isfinite(one.infer([1, 2])).all()


def test_what_is_not_there_is_said_with_where_it_was_looked_for(cache):
    with pytest.raises(ModelLoadError) as caught:
        hub.fetch("somebody/another", cache_dir=cache, offline=True)
    assert str(caught.value) == (
        f"there is no file or folder 'somebody/another', and the Hub gives none "
        f"(https://huggingface.co/somebody/another; cache {cache}): it is not in the cache, and the Hub is not reached"
    )


def test_paths_are_not_taken_for_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.makedirs("a/b")
    for path in ("a/b", "none", "a/b/c", "models/a.gguf", "/a/b", "./a/c", tmp_path / "x" / "y"):
        assert hub.local_path(path) is path


def test_without_the_library_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigurationError) as caught:
        bitnet.load("somebody/a-model")
    assert str(caught.value) == (
        "'somebody/a-model' is no file or folder here, but may be an id of the Hub, which needs the library "
        "'huggingface_hub': pip install 'bitnet-runtime[hub]'"
    )


# ---- from a hub of our own, over HTTP, by the library as it is


MODEL = DATA / "llama-packed-bitlinear"
SHIPPED = {name: (MODEL / name).read_bytes() for name in ("config.json", "model.safetensors")}
# Contents differ: of two that are alike the library fetches one.
BESIDE = {name: json.dumps({"added": name}).encode()
          for name in ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json")}  # fmt: skip
DECOYS = {name: name.encode() for name in (
    "README.md", "LICENSE", ".gitattributes", "pytorch_model.bin", "model.bin", "modeling_model.py",
    "training_args.bin", "onnx/model.onnx", "original/consolidated.safetensors", "original/params.json", "model.gguf",
    "config.yaml", "runs/events.out", "tokenizer.model",
)}  # fmt: skip
FILES = {"main": {**SHIPPED, **BESIDE, **DECOYS}}
FETCH = """
import json, sys
from bitnet import errors, hub
try:
    print(json.dumps({"path": hub.fetch(**{"repo_id": "somebody/a-model", **json.loads(sys.argv[1])})}))
except errors.BitNetError as error:
    print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
"""


def fetched(endpoint, cache, env=(), **how):
    """What `hub.fetch` gives in a process of its own, whose hub is `endpoint`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    paths = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache / "home"), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FETCH, json.dumps({"cache_dir": str(cache), **how})], capture_output=True, text=True,
        check=True, timeout=120, env={**clean, **paths, **dict(env)},
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def test_what_a_model_needs_is_fetched_and_nothing_else(tmp_path):
    with serving(FILES) as (endpoint, hub_server):
        folder = fetched(endpoint, tmp_path)["path"]
        needed = sorted({**SHIPPED, **BESIDE})
        assert hub_server.got() == needed
        found = sorted(os.path.relpath(os.path.join(at, name), folder) for at, _, names in os.walk(folder)
                       for name in names)  # fmt: skip
        assert found == needed
        assert os.path.basename(folder) == COMMITS["main"]
        assert {authorization for _, _, authorization in hub_server.asked} == {None}
        with bitnet.load(folder) as one, bitnet.load(MODEL) as other:
            assert (one.infer([1, 2]) == other.infer([1, 2])).all()

        # Once more: it is there, and no content is sent.
        del hub_server.asked[:]
        assert fetched(endpoint, tmp_path)["path"] == folder
        assert hub_server.got() == []
        # Offline nothing is asked at all.
        del hub_server.asked[:]
        assert fetched(endpoint, tmp_path, offline=True)["path"] == folder
        assert fetched(endpoint, tmp_path, env={"HF_HUB_OFFLINE": "1"})["path"] == folder
        assert hub_server.asked == []
    # And with nobody at the other end what is in the cache will do.
    assert fetched(endpoint, tmp_path)["path"] == folder


def test_a_model_in_parts_and_an_embedding_model_are_fetched_whole(tmp_path):
    parts = {name: name.encode() for name in (
        "model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "1_Pooling/config.json", "modules.json", "tokenizer.json", "chat_template.jinja", "config.json",
    )}  # fmt: skip
    with serving({"main": {**parts, **DECOYS}}) as (endpoint, hub_server):
        fetched(endpoint, tmp_path)
        assert hub_server.got() == sorted(parts)


def test_a_revision_is_a_branch_a_tag_or_a_commit(tmp_path):
    other = {"config.json": b'{"other": 1}', "model.safetensors": b"other"}
    with serving({**FILES, "v1": other}) as (endpoint, _):
        for revision in ("v1", COMMITS["v1"]):
            folder = fetched(endpoint, tmp_path, revision=revision)["path"]
            assert os.path.basename(folder) == COMMITS["v1"]
            with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
                assert json.load(file) == {"other": 1}
        said = fetched(endpoint, tmp_path, revision="v2")["error"]
        assert said.startswith("ModelLoadError: there is no file or folder 'somebody/a-model', and the Hub gives none")
        assert "RevisionNotFound" in said


def test_a_token_is_sent_where_it_is_given(tmp_path):
    with serving(FILES, token="hf_secret") as (endpoint, hub_server):
        refused = fetched(endpoint, tmp_path)["error"]
        assert f"({endpoint}/somebody/a-model; cache {tmp_path})" in refused
        assert "GatedRepo" in refused or "401" in refused
        assert hub_server.got() == []
        for how in ({"token": "hf_secret"}, {"env": {"HF_TOKEN": "hf_secret"}}):
            del hub_server.asked[:]
            folder = fetched(endpoint, tmp_path, **how)["path"]
            assert os.path.isfile(os.path.join(folder, "model.safetensors"))
            sent = {authorization for _, path, authorization in hub_server.asked if "somebody" in path}
            assert sent == {"Bearer hf_secret"}
        assert "hf_secret" not in fetched(endpoint, tmp_path / "b", token="hf_wrong")["error"]


def test_without_a_network_it_is_said_where_it_was_looked_for(tmp_path):
    with serving(FILES) as (endpoint, _):
        pass
    said = fetched(endpoint, tmp_path)["error"]
    assert said == (
        f"ModelLoadError: there is no file or folder 'somebody/a-model', and the Hub gives none "
        f"({endpoint}/somebody/a-model; cache {tmp_path}): it is not in the cache, and the Hub is not reached"
    )
    with serving(FILES) as (endpoint, _):
        assert "RepositoryNotFound" in fetched(endpoint, tmp_path, repo_id="somebody/none")["error"]
