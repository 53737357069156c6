"""Ids of the Hugging Face Hub, as ``"microsoft/bitnet-b1.58-2B-4T"``, to a local folder; what a model needs, no more.

The library `huggingface_hub` does the work (extra ``hub``): its cache, its token, its progress bars, and its
environment variables, as ``HF_HUB_OFFLINE`` and ``HF_HOME``, are used as everywhere.
"""

import os
import re
from typing import Any

from bitnet.errors import ConfigurationError, ModelLoadError

__all__ = ["fetch", "local_path"]

ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
NEEDED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
          "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "model.safetensors.index.json",
          "1_Pooling/config.json", "modules.json")  # fmt: skip


def local_path(path: Any, **how: Any) -> Any:
    """Give the path of a checkpoint: what is there stays, and an id of the Hub is fetched.

    Parameters
    ----------
    path : str or path
    **how
        As of `fetch`.

    Returns
    -------
    str or path
    """
    if os.path.exists(path) or not isinstance(path, str) or not ID.fullmatch(path) or path.endswith(".gguf"):
        return path
    return fetch(path, **how)


def fetch(
    repo_id: str, *, revision: str | None = None, token: str | bool | None = None, offline: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
) -> str:  # fmt: skip
    """Get a checkpoint from the Hub, or from its cache.

    Parameters
    ----------
    repo_id : str
        As ``"microsoft/bitnet-b1.58-2B-4T"``.
    revision : str, optional
        A branch, a tag or a commit; by default the main branch.
    token : str or bool, optional
        For repositories that ask for one; by default the one that is logged in.
    offline : bool, optional
        Whether to look into the cache only.
    cache_dir : str, optional
        By default that of `huggingface_hub`.

    Returns
    -------
    str
        A folder.

    Raises
    ------
    ModelLoadError
        If it cannot be had: there is no network and it is not in the cache, it does not exist, or may not be read.
    ConfigurationError
        If `huggingface_hub` is not installed.
    """
    try:
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        why = f"'{repo_id}' is no file or folder here, but may be an id of the Hub"
        raise ConfigurationError.missing_library("huggingface_hub", "hub", why) from error
    where = f"{constants.ENDPOINT}/{repo_id}"
    cache = os.fspath(cache_dir or constants.HF_HUB_CACHE)
    patterns = [*NEEDED, "*.gguf"] if repo_id.lower().endswith("gguf") else [*NEEDED, "*.safetensors"]
    try:
        return str(snapshot_download(
            repo_id, revision=revision, token=token, local_files_only=offline,
            cache_dir=None if cache_dir is None else os.fspath(cache_dir),
            allow_patterns=patterns, ignore_patterns=["*/*.safetensors", "*/*.gguf"],
        ))  # fmt: skip
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        if isinstance(error, LocalEntryNotFoundError):
            reason = "it is not in the cache, and the Hub is not reached"
        raise ModelLoadError.not_fetched(repo_id, where, cache, reason) from error
