"""Data sets of the Hugging Face hub."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from ssl import SSLError
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import datasets
import huggingface_hub

from glmtune.data.tables import read_table_rows
from glmtune.errors import DataError, show_text

_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.\[\]:%+-]+)?")


_HUB_TIMEOUT_S = 5.0


def is_hub_name(name: str) -> bool:
    """Whether a name has the form `owner/name` or `owner/name:split`."""
    return _NAME.fullmatch(name) is not None


def load_hub_rows(name: str) -> list[dict[str, Any]]:
    """Loads a data set from the hub, or from the cache of an earlier download.

    Args:
        name: `owner/name`, or `owner/name:split`; the split is `train` unless given, and may be a slice: `train[:100]`.

    Returns:
        The rows.

    Raises:
        DataError: It cannot be reached or does not exist.
    """
    repository, _, split = name.partition(":")
    unreachable = _why_unreachable(repository)
    try:
        with _offline() if unreachable else nullcontext():  # from the cache, or not at all
            dataset = datasets.load_dataset(repository, split=split or "train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = unreachable or show_text(str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise DataError(
            f"{name}: there is no such file, and the hub data set cannot be loaded: {reason}. "
            "Check the path; for the hub, check the network, the name and the split (owner/name:split), "
            "or set HF_ENDPOINT to a mirror"
        ) from error
    # As a table, so that images and audio in unused columns are not decoded.
    return read_table_rows(dataset.with_format("arrow")[:], name)


def _why_unreachable(repository: str) -> str:
    """Why the hub does not answer, asked once: its client would retry for half a minute. Empty if it does."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return ""  # the client knows
    address = huggingface_hub.hf_hub_url(repository, "README.md", repo_type="dataset")
    try:
        urlopen(Request(address, method="HEAD"), timeout=_HUB_TIMEOUT_S).close()
    except HTTPError:
        return ""  # it answers; the client reports what the status means, and may have a token
    except URLError as error:  # the client may have other certificates
        return "" if isinstance(error.reason, SSLError) else f"the hub cannot be reached ({error.reason})"
    except OSError as error:
        return f"the hub cannot be reached ({error})"
    return ""


@contextmanager
def _offline() -> Iterator[None]:
    """Keeps the hub's client from trying to reach it."""
    huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = False
