"""Appends rows of results to a CSV file, each with what it was measured on."""

import csv
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch


def append_row(file: Path, row: Mapping[str, Any], commit: str, **versions: Any) -> None:
    """Appends a row, in the order of the file's columns, and prints it; the file gets a heading if it is new.

    Args:
        file: The CSV file.
        row: What was measured.
        commit: The commit that was measured.
        **versions: Device and versions of packages that matter, beside torch and Python.

    Raises:
        ValueError: The file has other columns.
    """
    environment = {
        **versions,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit,
        "date": datetime.now(UTC).date().isoformat(),
    }
    values = {**row, **environment}
    columns = list(values)
    if file.exists():
        with file.open(newline="", encoding="utf-8") as stream:
            columns = next(csv.reader(stream))
        if set(columns) != set(values):
            raise ValueError(f"{file} has other columns: {', '.join(sorted(set(columns) ^ set(values)))}")
    is_new = not file.exists()
    with file.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=columns, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(values)
    print(values, flush=True)
