"""Converts whole files of rows, and reports what was converted by which rule, and what was left for which reason."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from glmtune.data.conversion.rows import ConvertedRow, Direction, convert_row
from glmtune.data.formats import Paths
from glmtune.data.readers import Row, expand_path, read_rows
from glmtune.errors import DataError, show_text, summarise_faults
from glmtune.files import check_writable_folder, storage_faults, written_aside
from glmtune.language import localise
from glmtune.language.plurals import count

SUFFIXES = (".json", ".jsonl")
_NUM_SHOWN = 10
_MAX_SHOWN = 300  # characters of a text, enough to judge a conversion by


@dataclass
class ConversionReport:
    """What became of the rows.

    Attributes:
        num_rows: All of them.
        converted: The rows that were converted, by rule.
        left: Those that were left as they are, by reason.
    """

    num_rows: int = 0
    converted: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)

    def add(self, row: ConvertedRow) -> None:
        """Counts a row."""
        self.num_rows += 1
        (self.converted if row.rule else self.left)[row.rule or row.reason] += 1

    def lines(self) -> list[str]:
        """The report, a line for each rule and each reason, the most frequent first."""
        num_converted, num_left = self.converted.total(), self.left.total()
        lines = [f"{count(self.num_rows, 'rows')}: {num_converted:,} converted, {num_left:,} left as they are"]
        for heading, counts in (("converted, by rule:", self.converted), ("left, by reason:", self.left)):
            if counts:
                lines += [heading, *(f"  {number:>7,}  {localise(name)}" for name, number in counts.most_common())]
        return lines


def convert_file(
    paths: Paths,
    output: str | Path,
    to: Direction,
    fields: Mapping[str, str] | None = None,
    console: Console | None = None,
) -> ConversionReport:
    """Writes rows with their questions as instructions with an input, or the other way round.

    A row that no rule fits is written exactly as it is, and so is every other column of a row that was converted.

    Args:
        paths: Files or names of hub data sets; see `readers.read_rows`.
        output: A `.json` or `.jsonl` file, which must not exist yet; its folder is created. It appears only once it is
            complete.
        to: What to convert to.
        fields: Other column names: maps the standard name to the column used instead.
        console: Where to print the report; None for the standard output.

    Returns:
        The report.

    Raises:
        DataError: A file cannot be read, `output` exists or has another suffix, or a value has no JSON form.
        StorageError: `output` cannot be written.
    """
    target = _check_output(output)
    rows = _read(paths)
    report = ConversionReport()
    with storage_faults(show_text(str(output))):
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(target) as unfinished, unfinished.open("wb") as file:
            file.writelines(_encode(_converted(rows, to, fields, report), is_array=target.suffix.lower() == ".json"))
    _print(console, [*report.lines(), f"written to {show_text(str(output))}"])
    return report


def preview(
    paths: Paths, to: Direction, fields: Mapping[str, str] | None = None, console: Console | None = None
) -> ConversionReport:
    """Prints ten rows before and after conversion, and the report; writes nothing.

    Args:
        paths: As for `convert_file`, as are `to` and `fields`.
        console: Where to print; None for the standard output.

    Returns:
        The report on all rows.

    Raises:
        DataError: A file cannot be read.
    """
    report = ConversionReport()
    num_shown = 0
    for row in _read(paths):
        converted = convert_row(row.values, to, fields)
        report.add(converted)
        if converted.rule and num_shown < _NUM_SHOWN:
            num_shown += 1
            (console or Console()).print(Text(f"{localise(str(row.source))} · {localise(converted.rule)}"))
            for sign, texts in (("-", converted.before), ("+", converted.after)):
                for text in texts:
                    (console or Console()).print(Text(f"  {sign} {show_text(text.replace(chr(10), '⏎'), _MAX_SHOWN)}"))
    _print(console, [*report.lines(), "nothing was written: this was a preview"])
    return report


def _check_output(output: str | Path) -> Path:
    """The file to write to, after all checks that are possible without writing."""
    target, name = expand_path(output), show_text(str(output))
    if target.suffix.lower() not in SUFFIXES:
        found = show_text(target.suffix) or "no suffix"
        raise DataError(f"{name}: expected a file named {' or '.join(SUFFIXES)} to write to, found {found!r}")
    with storage_faults(name):
        if os.path.lexists(target):  # also true of a broken link
            raise DataError(f"{name}: the file exists already and is not replaced. Remove it or name another one")
        check_writable_folder(target.parent)
    return target


def _read(paths: Paths) -> list[Row]:
    """All rows. A row that cannot be read could not be kept either, so it is a fault."""
    rows: list[Row] = []
    faults: list[str] = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        more, found = read_rows(path, needs_answer=False)
        rows += more
        faults += found
    if faults:
        raise DataError(summarise_faults("the data cannot be converted", faults))
    return rows


def _converted(
    rows: Iterable[Row], to: Direction, fields: Mapping[str, str] | None, report: ConversionReport
) -> Iterator[str]:
    """The JSON text of each row."""
    for row in rows:
        converted = convert_row(row.values, to, fields)
        report.add(converted)
        try:
            yield json.dumps(converted.values, ensure_ascii=False, default=_plain)
        except TypeError as error:
            raise DataError(f"{row.source}: {error}") from error


def _encode(texts: Iterable[str], *, is_array: bool) -> Iterator[bytes]:
    """The bytes of the file: an array, or a row a line. A lone surrogate, which UTF-8 has not, stays a JSON escape."""
    start, between, end = ("[\n", ",\n", "\n]\n") if is_array else ("", "\n", "\n")
    yield start.encode()
    for number, text in enumerate(texts):
        yield ((between if number else "") + text).encode(errors="backslashreplace")
    yield end.encode()


def _plain(value: Any) -> str:
    """A value of a Parquet file as JSON can hold it."""
    if isinstance(value, date | time | Decimal):
        return str(value)
    raise TypeError(f"a value has no JSON form: {show_text(repr(value), 60)}")


def _print(console: Console | None, lines: Iterable[str]) -> None:
    for line in lines:
        (console or Console()).print(Text(localise(line)))
