"""Ids of the Hub: from its cache, without a network; and what is said if there is nothing."""

import os
import shutil
import sys

import numpy as np
import pytest
from checkpoints import DATA

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
