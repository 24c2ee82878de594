"""The model hub: which names belong to it, whether it can be reached, and what is fetched from it."""

import re
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from ssl import SSLError
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from huggingface_hub import hf_hub_url, snapshot_download, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from glmtune.errors import ModelError

_HUB_TIMEOUT_S = 5.0


def reach_hub(hub_id: str) -> None:
    """Probes the hub once; without a network, its client would retry for a minute.

    Raises:
        OSError: It cannot be reached.
    """
    if HF_HUB_OFFLINE or isinstance(try_to_load_from_cache(hub_id, "config.json"), str):
        return
    try:
        urlopen(Request(hf_hub_url(hub_id, "config.json"), method="HEAD"), timeout=_HUB_TIMEOUT_S).close()
    except HTTPError:
        return  # the hub answered; the download reports what the status means, and may have a token
    except URLError as error:
        if not isinstance(error.reason, SSLError):  # not fatal: the hub's client may have other certificates
            raise


def is_hub_id(path: str) -> bool:
    """Whether a path that does not exist here can be a model on a hub: `owner/name`, with no folder called owner."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", path) is not None and not Path(path).parent.is_dir()


def download_base(repo_id: str, kwargs: MutableMapping[str, Any]) -> Path:
    """Fetches a hub model into the local cache: safetensors where it has them, else `.bin`, and the small files.

    Args:
        repo_id: The hub id.
        kwargs: The keyword arguments of `from_pretrained`. Those that only concern a download are taken out of it.

    Returns:
        The folder in the cache.

    Raises:
        ModelError: It is not to be had.
    """
    options = {
        name: kwargs[name]
        for name in ("revision", "cache_dir", "token", "local_files_only", "force_download")
        if kwargs.get(name) is not None
    }
    for name in ("force_download", "local_files_only"):
        kwargs.pop(name, None)
    try:
        small = ["*.json", "*.model", "*.txt"]
        folder = Path(snapshot_download(repo_id, allow_patterns=[*small, "*.safetensors"], **options))
        if not any(folder.rglob("*.safetensors")):
            folder = Path(snapshot_download(repo_id, allow_patterns=[*small, "*.bin"], **options))
        return folder
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"{repo_id!r} is no folder here and could not be had from the hub: {first_line} "
            "Check the path; behind a slow network set HF_ENDPOINT to a mirror, or download the folder first."
        ) from error


def download_small_files(repo_id: str, ignored: Sequence[str]) -> Path:
    """Fetches a hub model's files but for the weights.

    Args:
        repo_id: The hub id.
        ignored: Patterns of what is left out.

    Returns:
        The folder in the cache.

    Raises:
        ModelError: It is not to be had.
    """
    try:
        return Path(snapshot_download(repo_id, ignore_patterns=list(ignored)))
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(f"the files of {repo_id!r} could not be had from the hub: {error}") from error
