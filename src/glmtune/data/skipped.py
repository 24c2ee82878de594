"""Rows that were left out because something is wrong with them, with the reason."""

import json
from collections.abc import Iterable
from pathlib import Path

from glmtune.data.rows import RowFault
from glmtune.errors import show_text
from glmtune.files import storage_faults, written_aside

SKIPPED_NAME = "skipped_rows.jsonl"


def write_skipped(skipped: Iterable[RowFault], file: str | Path) -> None:
    """Writes JSON lines: the file and row, the reason, and the row itself where it could be read.

    Args:
        skipped: The faults. A row with several is written once, with all reasons.
        file: The file to write; an earlier one is replaced.

    Raises:
        StorageError: It cannot be written.
    """
    rows: dict[tuple[str, int], dict[str, object]] = {}
    for fault in skipped:
        source = fault.source
        row = rows.setdefault(
            (source.path, source.row),
            {"file": source.path, "row": source.row, "line": source.line, "reasons": [], "values": fault.values},
        )
        reasons = row["reasons"]
        assert isinstance(reasons, list)
        reasons.append(fault.removeprefix(f"{source}: "))
    with storage_faults(show_text(str(file))), written_aside(file) as unfinished:
        lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows.values())
        with unfinished.open("wb") as stream:
            stream.writelines(line.encode(errors="backslashreplace") for line in lines)


def num_skipped(skipped: Iterable[RowFault]) -> int:
    """How many rows were left out."""
    return len({(fault.source.path, fault.source.row) for fault in skipped})
