"""The model hubs, Hugging Face and ModelScope: recognising ids, checking that a hub can be reached, downloading."""

import re
from collections.abc import MutableMapping, Sequence
from functools import cache
from importlib import import_module, util
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
# The makers of ChatGLM have different names on ModelScope and on the Hugging Face hub, where they had another before.
_MODELSCOPE_OWNER, _HUB_OWNER = "ZhipuAI", "zai-org"
_OWNERS = (_MODELSCOPE_OWNER, _HUB_OWNER, "THUDM")


def reach_hub(hub_id: str) -> None:
    """Checks once that the hub answers; without a network, its client would retry for a minute.

    Raises:
        ModelError: The hub cannot be reached; says which lines download the model.
    """
    if isinstance(try_to_load_from_cache(hub_id, "config.json"), str):
        return
    if HF_HUB_OFFLINE:
        raise ModelError(_unreachable(hub_id, "HF_HUB_OFFLINE is set"))
    try:
        urlopen(Request(hf_hub_url(hub_id, "config.json"), method="HEAD"), timeout=_HUB_TIMEOUT_S).close()
    except HTTPError:
        return  # the hub answered; the download will report what the status means, and may have a token
    except OSError as error:
        reason = error.reason if isinstance(error, URLError) else error
        if not isinstance(reason, SSLError):  # not fatal: the hub's client may have other certificates
            raise ModelError(_unreachable(hub_id, str(reason))) from error


def _unreachable(hub_id: str, reason: str) -> str:
    return (
        f"base model {hub_id}: no such folder here, and the model hub cannot be reached ({reason}). "
        f"{_how_to_download(hub_id)}"
    )


def _how_to_download(hub_id: str) -> str:
    """The lines that download a model, from ModelScope and from the Hugging Face hub."""
    owner, _, name = hub_id.partition("/")
    on_modelscope, on_hub = (_MODELSCOPE_OWNER, _HUB_OWNER) if owner in _OWNERS else (owner, owner)
    return (
        "Download the folder with one of these lines, and give its path instead:\n"
        f"  pip install modelscope && modelscope download --model {on_modelscope}/{name} --local_dir {name}\n"
        f"  hf download {on_hub}/{name} --local-dir {name}"
    )


def is_modelscope_id(path: str) -> bool:
    """Whether a path that does not exist here is an id that only ModelScope has."""
    return is_hub_id(path) and path.partition("/")[0] == _MODELSCOPE_OWNER


def local_base(path: str | Path, *, with_weights: bool) -> str:
    """A base's path as it is, or for a ModelScope id, the folder that it is downloaded to, once in a process.

    Args:
        path: A folder or a hub id.
        with_weights: Whether the weights are needed too.

    Raises:
        ModelError: modelscope is not installed, or cannot download it.
    """
    return _from_modelscope(str(path), with_weights) if is_modelscope_id(str(path)) else str(path)


@cache
def _from_modelscope(model_id: str, with_weights: bool) -> str:
    if util.find_spec("modelscope") is None:
        raise ModelError(
            f"base model {model_id}: no such folder here; it is an id of ModelScope, and modelscope is not installed. "
            f"{_how_to_download(model_id)}"
        )
    download = import_module("modelscope").snapshot_download
    ignored = None if with_weights else [r".*\.safetensors$", r".*\.bin$"]
    try:
        return str(download(model_id, ignore_file_pattern=ignored))
    except Exception as error:  # its errors have no common class
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"base model {model_id} could not be downloaded from ModelScope: {first_line}. {_how_to_download(model_id)}"
        ) from error


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
