"""Removes rows that say what an earlier row says."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy
from rich.console import Console

from glmtune.data.duplicates.near import DEFAULT_THRESHOLD, near_pairs
from glmtune.data.findings.sets import same_rows
from glmtune.data.formats import Example, read_examples
from glmtune.data.output import check_outputs, write_rows, write_together
from glmtune.data.printing import print_lines
from glmtune.data.selection.amounts import check_share
from glmtune.data.selection.texts import exact_text, question_text, whole_text
from glmtune.data.weights import Paths
from glmtune.errors import show_text
from glmtune.language.plurals import count

Compared = Literal["row", "question"]


def dedupe(
    paths: Paths,
    output: str | Path,
    fields: Mapping[str, str] | None = None,
    join: str = "\n",
    *,
    compare: Compared = "row",
    near: bool = True,
    threshold: float = DEFAULT_THRESHOLD,
    removed: str | Path | None = None,
    console: Console | None = None,
) -> tuple[dict[int, int], dict[int, int]]:
    """Writes the rows without duplicates; of rows that are alike, the first is kept.

    Args:
        paths: As for `read_conversations`, as are `fields` and `join`.
        output: The `.json` or `.jsonl` file to write; it must not exist yet.
        compare: Whether whole rows are compared, or only what they ask, whatever the answers are.
        near: Whether near-duplicates are removed, too.
        threshold: How similar they have to be, from 0 to 1; see `duplicates.near`.
        removed: A file for the rows that are removed, each with the row that it is a duplicate of; None for none.
        console: Where to print the report; None for the standard output.

    Returns:
        As `find_duplicates`.

    Raises:
        ConfigError: The threshold is wrong.
        DataError: The data are faulty, or a file to write exists.
        StorageError: A file cannot be written.
    """
    check_share("--threshold", threshold)
    check_outputs(output, removed)
    examples, _ = read_examples(paths, fields, join)
    exact, nearly = find_duplicates(examples, compare, near=near, threshold=threshold)
    gone = exact | nearly
    kept = ((each.source, each.values) for row, each in enumerate(examples) if row not in gone)
    if removed is None:
        write_rows(kept, output)
    else:
        rows = (
            {
                "duplicate": "exact" if row in exact else "near",
                "of": {"file": examples[other].source.path, "row": examples[other].source.row},
                "file": examples[row].source.path,
                "row": examples[row].source.row,
                "values": examples[row].values,
            }
            for row, other in sorted(gone.items())
        )
        write_together((((None, values) for values in rows), removed), (kept, output))
    summary = (
        f"{count(len(examples), 'rows')}: {len(examples) - len(gone):,} kept, {len(exact):,} removed as exact "
        f"duplicates, {len(nearly):,} as near-duplicates"
    )
    print_lines(console, [summary, f"written to {show_text(str(output))}"])
    return exact, nearly


def find_duplicates(
    examples: Sequence[Example], compare: Compared = "row", *, near: bool = True, threshold: float = DEFAULT_THRESHOLD
) -> tuple[dict[int, int], dict[int, int]]:
    """Finds the rows that are duplicates of earlier ones that are not.

    Returns:
        By the index of a duplicate, that of the earlier row that says the same to the letter; and for the others, that
        of the one that says nearly the same.
    """
    exact: dict[int, int] = {}
    nearly: dict[int, int] = {}
    key_of = exact_text if compare == "row" else question_text
    keys = numpy.fromiter((hash(key_of(example)) for example in examples), numpy.int64, len(examples))
    for first, *others in same_rows(keys):
        exact |= dict.fromkeys(others, first)
    if near:
        kept = [row for row in range(len(examples)) if row not in exact]
        text_of = whole_text if compare == "row" else question_text
        texts = [text_of(examples[row]) for row in kept]
        # Pairs come sorted: by the time that a row is the first of a pair, it is known whether it is kept.
        for earlier, later in near_pairs(texts, threshold):
            if kept[earlier] not in nearly and _numbers(texts[earlier]) == _numbers(texts[later]):
                nearly.setdefault(kept[later], kept[earlier])
    return exact, nearly


def _numbers(text: str) -> list[str]:
    """The numbers in a text. However similar they look, two sums or two dates are no duplicates."""
    return re.findall(r"\d+", text)
