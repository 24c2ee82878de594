"""Weights of files: how much of each goes into a mixture.

A weight of 1 is all rows of a file, 0.2 a fifth of them, 2.5 all of them twice and half of them a third time. It is
given in a mapping, or behind the name: `general.json:0.2`. A name is read as a whole where such a file exists; a drive
letter (`C:\\data.json`) and a split of a hub data set (`owner/name:train`) are no numbers, and so no weights.
"""

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from glmtune.data.readers import expand_path, find_files
from glmtune.errors import DataError, show_text

Paths = str | Path | Sequence[str | Path] | Mapping[str, float]
_MOST = 1000  # more is a slip of the keyboard, and would fill the memory
_WEIGHT = re.compile(r"(.*[^:]):(-?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)", re.DOTALL)


def weighted_files(paths: Paths) -> tuple[list[tuple[str, float]], list[str]]:
    """The files that names stand for, each with its weight, in order; and the faults of names that stand for none."""
    files: list[tuple[str, float]] = []
    faults: list[str] = []
    if isinstance(paths, Mapping):
        given: Sequence[tuple[str | Path, float]] = list(paths.items())
    else:
        given = [(path, 1.0) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    for path, weight in given:
        try:
            files += [(file, _checked(str(path), own * weight)) for file, own in _find(str(path))]
        except DataError as error:
            faults.append(str(error))
    return files, faults


def drawn_rows(num_rows: int, weight: float, seed: str) -> list[int]:
    """The indices of the rows that a weight stands for: at least one, in order, those drawn twice at the end.

    Args:
        num_rows: How many rows the file has, at least 1.
        weight: The weight.
        seed: Decides which rows are drawn.
    """
    whole, part = divmod(weight, 1)
    number = round(part * num_rows)
    if not whole:
        number = max(number, 1)
    drawn = sorted(random.Random(seed).sample(range(num_rows), number))
    return [*range(num_rows)] * int(whole) + drawn


def _find(given: str) -> list[tuple[str, float]]:
    if not _exists(given):
        if "," in given:
            return [found for part in given.split(",") if part.strip() for found in _find(part.strip())]
        if found := _WEIGHT.fullmatch(given):
            return [(file, float(found[2])) for file in find_files(found[1])]
    return [(file, 1.0) for file in find_files(given)]


def _exists(given: str) -> bool:
    try:
        return expand_path(given).exists()
    except OSError:  # a name that no file can have
        return False


def _checked(path: str, weight: float) -> float:
    if not 0 < weight <= _MOST:
        raise DataError(f"{show_text(path)}: expected a weight above 0 and at most {_MOST:,}, found {weight:g}")
    return weight
