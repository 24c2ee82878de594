"""Converts whole files of rows, and reports what was converted by which rule, and what was left for which reason."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from glmtune.data.conversion.rows import ConvertedRow, Direction, convert_row
from glmtune.data.output import write_rows
from glmtune.data.printing import print_lines, visible
from glmtune.data.readers import read_rows
from glmtune.data.rows import Row, RowFault
from glmtune.data.weights import Paths, weighted_files
from glmtune.errors import DataError, show_text, summarise_faults
from glmtune.language import localise
from glmtune.language.plurals import count

_NUM_SHOWN = 10
_MAX_SHOWN = 300  # characters of a text, enough to judge a conversion by


@dataclass
class _Report:
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
) -> int:
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
        The number of rows that were converted.

    Raises:
        DataError: A file cannot be read, `output` exists or has another suffix, or a value has no JSON form.
        StorageError: `output` cannot be written.
    """
    report = _Report()
    write_rows(_converted(_read(paths), to, fields, report), output)
    print_lines(console, [*report.lines(), f"written to {show_text(str(output))}"])
    return report.converted.total()


def preview(
    paths: Paths, to: Direction, fields: Mapping[str, str] | None = None, console: Console | None = None
) -> None:
    """Prints ten rows before and after conversion, and the report; writes nothing.

    Args:
        paths: As for `convert_file`, as are `to` and `fields`.
        console: Where to print; None for the standard output.

    Raises:
        DataError: A file cannot be read.
    """
    report = _Report()
    shown: list[str] = []  # only once all rows have been read: where one is faulty, none is shown
    num_shown = 0
    for row in _read(paths):
        converted = convert_row(row.values, to, fields)
        report.add(converted)
        if converted.rule and num_shown < _NUM_SHOWN:
            num_shown += 1
            shown.append(f"{localise(str(row.source))} · {localise(converted.rule)}")
            for sign, texts in (("-", converted.before), ("+", converted.after)):
                shown += [f"  {sign} {visible(text, _MAX_SHOWN)}" for text in texts]
    for line in shown:
        (console or Console()).print(Text(line))
    print_lines(console, [*report.lines(), "nothing was written: this was a preview"])


def _read(paths: Paths) -> Iterator[Row]:
    """The rows, as they are read. One that cannot be read could not be kept either: in the end, it is a fault."""
    files, faults = weighted_files(paths)
    faults += [
        f"{show_text(path)}: the weight {weight:g} has no effect here; glmtune data merge draws rows by weight"
        for path, weight in files
        if weight != 1
    ]
    for path, _ in files:
        for row in read_rows(path, needs_answer=False):
            if isinstance(row, RowFault):
                faults.append(row)
            elif not faults:
                yield row
    if faults:
        raise DataError(summarise_faults("the data cannot be converted", faults))


def _converted(
    rows: Iterable[Row], to: Direction, fields: Mapping[str, str] | None, report: _Report
) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Each row, with where it comes from."""
    for row in rows:
        converted = convert_row(row.values, to, fields)
        report.add(converted)
        yield row.source, converted.values
