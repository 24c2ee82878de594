"""The model hub: recognising its ids, checking that it can be reached, and downloading from it."""

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
    """Checks once that the hub answers; without a network, its client would retry for a minute.

    Raises:
        OSError: The hub cannot be reached.
    """
    if HF_HUB_OFFLINE or isinstance(try_to_load_from_cache(hub_id, "config.json"), str):
        return
    try:
        urlopen(Request(hf_hub_url(hub_id, "config.json"), method="HEAD"), timeout=_HUB_TIMEOUT_S).close()
    except HTTPError:
        return  # the hub answered; the download will report what the status means, and may have a token
    except URLError as error:
        if not isinstance(error.reason, SSLError):  # not fatal: the hub's client may have other certificates
            raise


def is_hub_id(path: str) -> bool:
    """Whether a path that does not exist here may be a hub id: `owner/name`, with no folder called owner."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", path) is not None and not Path(path).parent.is_dir()


def download_base(repo_id: str, kwargs: MutableMapping[str, Any]) -> Path:
    """Downloads a hub model into the local cache: safetensors if it has them, else `.bin`, and the small files.

    Args:
        repo_id: The hub id.
        kwargs: The keyword arguments of `from_pretrained`. Those that only concern the download are removed.

    Returns:
        The folder in the cache.

    Raises:
        ModelError: It cannot be downloaded.
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
            f"{repo_id!r} is not a folder here and could not be downloaded from the hub: {first_line} "
            "Check the path; on a slow network, set HF_ENDPOINT to a mirror, or download the folder first."
        ) from error


def download_small_files(repo_id: str, ignored: Sequence[str]) -> Path:
    """Downloads the files of a hub model, except the weights.

    Args:
        repo_id: The hub id.
        ignored: Patterns of files to leave out.

    Returns:
        The folder in the cache.

    Raises:
        ModelError: It cannot be downloaded.
    """
    try:
        return Path(snapshot_download(repo_id, ignore_patterns=list(ignored)))
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(f"the files of {repo_id!r} could not be downloaded from the hub: {error}") from error
