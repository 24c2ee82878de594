"""Draws rows at random, and mixes files by weight."""

import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from glmtune.data.formats import read_examples
from glmtune.data.output import check_output, write_rows
from glmtune.data.printing import print_lines
from glmtune.data.selection.amounts import num_asked_for
from glmtune.data.weights import Paths
from glmtune.errors import ConfigError, show_text
from glmtune.language.plurals import count


def sample(
    paths: Paths,
    output: str | Path,
    fields: Mapping[str, str] | None = None,
    *,
    fraction: float | None = None,
    number: int | None = None,
    seed: int = 42,
    console: Console | None = None,
) -> int:
    """Writes rows that are drawn at random, in the order in which they were.

    Args:
        paths: As for `read_conversations`, as is `fields`.
        output: The `.json` or `.jsonl` file to write; it must not exist yet.
        fraction: Which share of the rows; either this or `number` is needed.
        number: How many rows.
        seed: Decides which.
        console: Where to print the report; None for the standard output.

    Returns:
        The number of rows written.

    Raises:
        ConfigError: There are not as many rows.
        DataError: The data are faulty, or `output` exists.
        StorageError: It cannot be written.
    """
    if (fraction is None) == (number is None):
        raise ConfigError("data sample needs --count or --fraction, and not both")
    check_output(output)
    examples, _ = read_examples(paths, fields)
    wanted = num_asked_for(len(examples), fraction, number)
    if not 0 < wanted <= len(examples):
        raise ConfigError(f"{wanted:,} cannot be drawn from {count(len(examples), 'rows')}")
    drawn = sorted(random.Random(seed).sample(range(len(examples)), wanted))
    write_rows(((examples[row].source, examples[row].values) for row in drawn), output)
    print_lines(console, [f"{wanted:,} of {count(len(examples), 'rows')} written to {show_text(str(output))}"])
    return wanted


def merge(
    paths: Paths,
    output: str | Path,
    fields: Mapping[str, str] | None = None,
    *,
    seed: int = 42,
    console: Console | None = None,
) -> int:
    """Writes the rows of several files into one, of each as many as its weight says, in the order of the files.

    Args:
        paths: As for `read_conversations`, with weights (see `weights`), as is `fields`.
        output: The `.json` or `.jsonl` file to write; it must not exist yet.
        seed: Decides which rows are drawn from files with weights.
        console: Where to print the report; None for the standard output.

    Returns:
        The number of rows written.

    Raises:
        DataError: The data are faulty, or `output` exists.
        StorageError: It cannot be written.
    """
    check_output(output)
    examples, _ = read_examples(paths, fields, seed=seed)
    write_rows(((each.source, each.values) for each in examples), output)
    by_file = Counter(each.source.path for each in examples)
    lines = [f"{show_text(path)}: {count(number, 'rows')}" for path, number in by_file.items()]
    print_lines(console, [*lines, f"{count(len(examples), 'rows')} written to {show_text(str(output))}"])
    return len(examples)
