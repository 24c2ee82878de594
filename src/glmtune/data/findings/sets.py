"""What only many conversations together show: answers that are alike, questions with several answers, lengths."""

from collections import Counter
from collections.abc import Callable, Iterator

import numpy
from numpy.typing import NDArray

_LEAST_ANSWERS = 20
_LEAST_SHARE = 0.3
LEAST_LETTERS = 6
_MOST_LETTERS = 60
_OUTLIER_FACTOR = 8
_LONG_ANSWER = 500  # characters; shorter answers are not reported, even if far longer than the rest


def same_rows(values: NDArray[numpy.int64]) -> Iterator[list[int]]:
    """Groups of at least two rows that have the same value, each in order."""
    order = numpy.argsort(values, kind="stable")
    starts = numpy.flatnonzero(numpy.diff(values[order], prepend=values[order[:1]] ^ 1))
    sizes = numpy.diff(starts, append=len(order))
    for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        yield order[start : start + size].tolist()


def alike_part(
    keys: NDArray[numpy.int64],
    lengths: NDArray[numpy.int64],
    answer_of: Callable[[int], str],
    take: Callable[[str, int], str],
) -> tuple[str, list[int]]:
    """The longest opening (or ending) that many answers share.

    Answers that are hardly longer than it are labels or set phrases, which are meant to be alike; they do not count.

    Args:
        keys: A hash of the first (or last) `LEAST_LETTERS` characters of each answer; 0 for one that does not count.
        lengths: How long each answer is.
        answer_of: Gives the answer of a row.
        take: Gives so many characters of a text, from its start or from its end.

    Returns:
        The text, and the answers that have it; nothing if there is none.
    """
    least = max(_LEAST_SHARE * len(keys), _LEAST_ANSWERS)
    candidates = numpy.flatnonzero((keys != 0) & (lengths >= 2 * LEAST_LETTERS))
    if len(candidates) < least:
        return "", []
    _, firsts, sizes = numpy.unique(keys[candidates], return_index=True, return_counts=True)
    first = candidates[firsts[sizes == sizes.max()].min()]
    rows: list[int] = candidates[keys[candidates] == keys[first]].tolist()
    best: tuple[str, list[int]] = ("", [])
    if len(rows) < least:
        return best
    texts = {row: take(answer_of(row), _MOST_LETTERS) for row in rows}
    for length in range(LEAST_LETTERS, _MOST_LETTERS):
        rows = [row for row in rows if lengths[row] >= 2 * length]
        counts = Counter(take(texts[row], length) for row in rows)
        text, number = counts.most_common(1)[0] if counts else ("", 0)
        if number < least:
            break
        rows = [row for row in rows if take(texts[row], length) == text]
        best = (text, rows)
    return best


def outliers(lengths: NDArray[numpy.int64]) -> list[int]:
    """Rows whose answer is several times as long as those of nearly all others: all but the longest 1 %, or three."""
    if len(lengths) < _LEAST_ANSWERS:
        return []
    usual = numpy.sort(lengths)[-1 - max(3, len(lengths) // 100)]
    return numpy.flatnonzero(lengths > max(_LONG_ANSWER, _OUTLIER_FACTOR * usual)).tolist()
