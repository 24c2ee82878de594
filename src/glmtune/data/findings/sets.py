"""What only many conversations together show: answers that are alike, questions with several answers, lengths."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy
from numpy.typing import NDArray

_LEAST_ANSWERS = 20
_LEAST_SHARE = 0.3
_LEAST_LETTERS = 6
_MOST_LETTERS = 60
_OUTLIER_FACTOR = 8
_LONG_ANSWER = 500  # characters; a shorter one troubles nobody, be it the longest by far


def same_rows(keys: Sequence[int]) -> Iterator[list[int]]:
    """Groups of at least two rows that have the same key, each in order."""
    values = numpy.asarray(keys, numpy.int64)
    order = numpy.argsort(values, kind="stable")
    starts = numpy.flatnonzero(numpy.diff(values[order], prepend=values[order[:1]] ^ 1))
    sizes = numpy.diff(starts, append=len(order))
    for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        yield order[start : start + size].tolist()


def alike_part(answers: Sequence[str], take: Callable[[str, int], str]) -> tuple[str, list[int]]:
    """The longest opening (or ending) that many answers share.

    Answers that are hardly longer than it are labels or set phrases, which are meant to be alike, and so are the
    brackets of JSON and code; they do not count.

    Args:
        answers: The answers.
        take: Gives so many characters of a text, from its start or from its end.

    Returns:
        The text, and the answers that have it; nothing if there is none.
    """
    best: tuple[str, list[int]] = ("", [])
    rows = [row for row, answer in enumerate(answers) if answer.lstrip()[:1] not in ("{", "[", "`", "<")]
    if len(rows) < _LEAST_ANSWERS:
        return best
    for length in range(_LEAST_LETTERS, _MOST_LETTERS):
        rows = [row for row in rows if len(answers[row]) >= 2 * length]
        counts = Counter(take(answers[row], length) for row in rows)
        text, number = counts.most_common(1)[0] if counts else ("", 0)
        if number < max(_LEAST_SHARE * len(answers), _LEAST_ANSWERS):
            break
        rows = [row for row in rows if take(answers[row], length) == text]
        best = (text, rows)
    return best


def outliers(lengths: NDArray[numpy.int64]) -> list[int]:
    """Rows whose answer is several times as long as those of nearly all others: all but the longest 1 %, or three."""
    if len(lengths) < _LEAST_ANSWERS:
        return []
    usual = numpy.sort(lengths)[-1 - max(3, len(lengths) // 100)]
    return numpy.flatnonzero(lengths > max(_LONG_ANSWER, _OUTLIER_FACTOR * usual)).tolist()
