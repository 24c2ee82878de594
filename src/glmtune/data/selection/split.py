"""Splits rows into training and evaluation so that the one says something about the other."""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy
from rich.console import Console

from glmtune.data.duplicates.near import grouped, near_pairs
from glmtune.data.formats import Example, read_examples
from glmtune.data.output import SUFFIXES, check_outputs, write_together
from glmtune.data.printing import print_lines
from glmtune.data.selection.amounts import check_share, num_asked_for
from glmtune.data.selection.texts import answer_length, question_text
from glmtune.data.weights import Paths
from glmtune.errors import ConfigError, show_text
from glmtune.language.plurals import count

_DEFAULT_FRACTION = 0.05
_NUM_LENGTHS = 5  # classes of answers from short to long


def split(
    paths: Paths,
    output: str | Path,
    fields: Mapping[str, str] | None = None,
    join: str = "\n",
    *,
    fraction: float | None = None,
    number: int | None = None,
    seed: int = 42,
    threshold: float = 0.7,
    console: Console | None = None,
) -> int:
    """Writes `train` and `eval` files.

    The evaluation rows are drawn from every file and from short and long answers in proportion. Rows that ask nearly
    the same are on one side, all of them, or the evaluation would ask what was trained on.

    Args:
        paths: As for `read_conversations`, as are `fields` and `join`.
        output: The folder to write to; `train.json` and `eval.json` must not exist in it (`.jsonl` for rows of lines).
        fraction: The share of rows for evaluation; 0.05 if neither it nor `number` is given.
        number: How many rows are for evaluation, instead.
        seed: Decides which.
        threshold: How similar questions have to be to stay together; see `duplicates.near`.
        console: Where to print the report; None for the standard output.

    Returns:
        The number of rows for evaluation.

    Raises:
        ConfigError: Nothing would be left on one side, or a share is wrong.
        DataError: The data are faulty, or a file to write exists.
        StorageError: A file cannot be written.
    """
    if fraction is not None and number is not None:
        raise ConfigError("give --fraction or --count, not both")
    check_share("--threshold", threshold)
    examples, _ = read_examples(paths, fields, join)
    suffix = Path(examples[0].source.path).suffix.lower()
    suffix = suffix if suffix in SUFFIXES else ".jsonl"
    train, evaluation = (Path(output) / f"{name}{suffix}" for name in ("train", "eval"))
    check_outputs(train, evaluation)
    wanted = num_asked_for(len(examples), _DEFAULT_FRACTION if fraction is None else fraction, number)
    if not 0 < wanted < len(examples):
        raise ConfigError(f"of {count(len(examples), 'rows')}, {wanted:,} for evaluation leave nothing on one side")
    texts = [question_text(example) for example in examples]
    groups = grouped(near_pairs(texts, threshold), len(texts))
    chosen = held_out(examples, groups, wanted, seed)
    if not chosen:
        raise ConfigError(
            f"all rows ask nearly the same, and stay on one side. Raise --threshold, which is {threshold:g}"
        )
    write_together(
        (((each.source, each.values) for row, each in enumerate(examples) if row not in chosen), train),
        (((each.source, each.values) for row, each in enumerate(examples) if row in chosen), evaluation),
    )
    sizes = numpy.bincount(numpy.asarray(groups))
    num_grouped = int(sizes[sizes > 1].sum())
    lines = [
        f"for training: {count(len(examples) - len(chosen), 'rows')}, {show_text(str(train))}",
        f"for evaluation: {count(len(chosen), 'rows')}, {show_text(str(evaluation))}",
    ]
    if num_grouped:
        lines.append(f"{count(num_grouped, 'rows')} ask nearly the same as others and stay on one side")
    if len(chosen) != wanted:
        lines.append(f"{count(wanted, 'rows')} for evaluation were wanted; groups cannot be divided")
    print_lines(console, lines)
    return len(chosen)


def held_out(examples: Sequence[Example], groups: Sequence[int], wanted: int, seed: int) -> set[int]:
    """Draws rows for evaluation: whole groups, from every file and class of lengths in proportion."""
    members: dict[int, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        members[group].append(row)
    lengths = numpy.asarray([answer_length(example) for example in examples])
    edges = numpy.quantile(lengths, numpy.arange(1, _NUM_LENGTHS) / _NUM_LENGTHS)
    classes = numpy.searchsorted(edges, lengths).tolist()
    strata: dict[tuple[str, int], list[list[int]]] = defaultdict(list)
    for group, rows in members.items():
        strata[examples[group].source.path, classes[group]].append(rows)
    draw = random.Random(seed)
    chosen: set[int] = set()
    left: list[list[int]] = []
    for (_, quota), units in zip(
        sorted(_quotas({key: sum(map(len, units)) for key, units in strata.items()}, wanted).items()),
        (strata[key] for key in sorted(strata)),
        strict=True,
    ):
        draw.shuffle(units)
        taken = 0
        for rows in units:
            if taken + len(rows) <= quota:
                chosen.update(rows)
                taken += len(rows)
            else:
                left.append(rows)
    draw.shuffle(left)
    for rows in left:  # where groups left quotas unfilled
        if len(chosen) + len(rows) <= wanted:
            chosen.update(rows)
    return chosen


def _quotas(sizes: Mapping[tuple[str, int], int], wanted: int) -> dict[tuple[str, int], int]:
    """How many rows of each stratum are wanted; the parts that rounding leaves go where they are largest."""
    shares = {key: wanted * size / sum(sizes.values()) for key, size in sizes.items()}
    quotas = {key: int(share) for key, share in shares.items()}
    by_rest = sorted(shares, key=lambda key: (quotas[key] - shares[key], key))
    for key in by_rest[: wanted - sum(quotas.values())]:
        quotas[key] += 1
    return quotas
