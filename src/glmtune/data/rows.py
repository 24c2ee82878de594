"""Rows as they are read from files, where each stands, and what is wrong with one."""

from dataclasses import dataclass
from typing import Any

from glmtune.errors import show_text


@dataclass(frozen=True, slots=True)
class Source:
    """The file and row that something was read from.

    Attributes:
        path: The file, or the name of a hub data set, as it was given.
        row: Number of the row, from 1.
        line: Number of the line where the row starts, from 1, in files with one row per line.
    """

    path: str
    row: int
    line: int | None = None

    def __str__(self) -> str:
        where = f"{show_text(self.path)}, row {self.row}"
        return where if self.line is None else f"{show_text(self.path)}, row {self.row} (line {self.line})"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file: column names and JSON values."""

    source: Source
    values: dict[str, Any]


class RowFault(str):
    """A sentence that says what is wrong with a row, and knows which row that is.

    Attributes:
        source: Its file and row.
        values: The row, if it could be read at all.
    """

    source: Source
    values: dict[str, Any] | None

    def __new__(  # noqa: D102
        cls, text: str, source: Source, values: dict[str, Any] | None = None
    ) -> "RowFault":
        fault = super().__new__(cls, text)
        fault.source, fault.values = source, values
        return fault
