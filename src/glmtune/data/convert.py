"""Converts rows of any supported format into one, and says what could not be kept."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from glmtune.data.formats import Example, Faulty, read_examples
from glmtune.data.output import check_output, write_rows
from glmtune.data.printing import print_lines
from glmtune.data.row_formats import FORMATS, STANDARD_NAMES, form_of, rename
from glmtune.data.rows import RowFault, Source
from glmtune.data.shapes import Shape, to_shape
from glmtune.data.skipped import num_skipped, write_skipped
from glmtune.data.weights import Paths
from glmtune.errors import DataError, show_text
from glmtune.language import localise
from glmtune.language.plurals import count


@dataclass
class _Report:
    """What became of the rows.

    Attributes:
        num_rows: Rows that were written.
        left: Rows that the format cannot express and that were left out, by reason.
        noted: Rows in which other tools may not understand something, by what.
        skipped: Rows that were left out, faulty ones among them.
    """

    num_rows: int = 0
    left: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    skipped: list[RowFault] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report, a line for each reason, the most frequent first."""
        lines = []
        if faulty := num_skipped(self.skipped) - self.left.total():
            lines.append(f"{count(faulty, 'rows')} left out, being faulty")
        for heading, counts in (
            ("left out, because the format has no place for it:", self.left),
            ("written, but:", self.noted),
        ):
            if counts:
                lines += [heading, *(f"  {number:>7,}  {localise(name)}" for name, number in counts.most_common())]
        return lines


def convert(
    paths: Paths,
    output: str | Path,
    fields: Mapping[str, str] | None = None,
    join: str = "\n",
    *,
    to: Shape = "messages",
    faulty: Faulty = "stop",
    console: Console | None = None,
) -> int:
    """Writes data of any supported format in another one; reading it gives the same conversations.

    Columns that are not read are kept. An instruction with an input stays one in Alpaca's format; the others have no
    place for it, so that the two are joined.

    Args:
        paths: As for `read_conversations`, as are `fields` and `join`.
        output: The `.json` or `.jsonl` file to write; it must not exist yet. Rows that are left out are written beside
            it, with the reason: `OUTPUT.skipped.jsonl`.
        to: The format; see `shapes.to_shape`.
        faulty: Whether a faulty row is an error or is left out.
        console: Where to report what was written; None for the standard output.

    Returns:
        The number of rows written.

    Raises:
        DataError: The data are invalid, in which case nothing is written; or `output` exists.
        StorageError: A file cannot be written.
    """
    target = check_output(output)
    examples, skipped = read_examples(paths, fields, join, faulty=faulty)
    report = _Report(skipped=list(skipped))
    report.num_rows = write_rows(_shaped(examples, to, fields or {}, report), output)
    lines = [f"{count(report.num_rows, 'rows')} written to {show_text(str(output))}", *report.lines()]
    if report.skipped:
        beside = target.with_name(f"{target.name}.skipped.jsonl")
        write_skipped(report.skipped, beside)
        lines.append(f"rows that were left out, with the reasons: {show_text(str(beside))}")
    print_lines(console, lines)
    return report.num_rows


def _shaped(
    examples: Sequence[Example], to: Shape, fields: Mapping[str, str], report: _Report
) -> Iterator[tuple[Source, dict[str, Any]]]:
    for example in examples:
        values = rename(example.values, fields)
        form = form_of(values, FORMATS[0], FORMATS, needs_answer=True)
        try:
            row, notes = to_shape(example.conversation, to)
        except DataError as reason:
            report.left[str(reason)] += 1
            report.skipped.append(RowFault(f"{example.source}: {reason}", example.source, example.values))
            continue
        if to == "alpaca" and "input" in form.known:
            row |= {name: values.get(name) or "" for name in ("instruction", "input")}
        others = {name: value for name, value in values.items() if name not in form.known}
        if any(name in row or name in STANDARD_NAMES for name in others):
            others = {name: value for name, value in others.items() if name not in STANDARD_NAMES}
            notes = {*notes, "columns that belong to another format are not kept"}
        report.noted.update(notes)
        yield example.source, {**others, **row}
