"""Data sets of the Hugging Face hub."""

import re
from typing import Any

import datasets

from glmtune.data.tables import read_table_rows
from glmtune.errors import DataError, show_text

_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.\[\]:%+-]+)?")


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
    try:
        dataset = datasets.load_dataset(repository, split=split or "train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = show_text(str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise DataError(
            f"{name}: there is no such file, and the hub data set cannot be loaded: {reason}. "
            "Check the path; for the hub, check the network, the name and the split (owner/name:split), "
            "or set HF_ENDPOINT to a mirror"
        ) from error
    # As a table, so that images and audio in unused columns are not decoded.
    return read_table_rows(dataset.with_format("arrow")[:], name)
