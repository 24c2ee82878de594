"""Metrics that are functions of sums over rows, and a bootstrap interval of their paired difference.

A mean has the sums (of values, of ones), a loss (of weighted losses, of weights), BLEU its counts of n-grams. To draw
rows again is to weight their statistics, so that nothing is computed twice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

_NUM_RESAMPLES = 1000
LEAST_ROWS = 5  # of fewer, an interval says nothing


@dataclass(frozen=True)
class Measure:
    """A metric of some rows.

    Attributes:
        statistics: What each row adds to the sums, [rows, sums].
        combine: The metric, as a function of the sums.
    """

    statistics: NDArray[numpy.float64]
    combine: Callable[[NDArray[numpy.float64]], float]

    @property
    def value(self) -> float:
        """The metric of all rows."""
        return self.combine(self.statistics.sum(axis=0))


@dataclass(frozen=True)
class Difference:
    """How far a metric is from another model's on the same rows.

    Attributes:
        value: The difference.
        low: Lower end of its 95 % interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0: more than noise."""
        return self.low > 0 or self.high < 0

    def say(self, form: str) -> str:
        """The difference with its interval, each written in the form of its metric; ~ marks one that may be noise."""
        signed = form.replace("{:", "{:+")
        mark = "" if self.is_clear else "~ "
        return f"{mark}{signed.format(self.value)} [{signed.format(self.low)}, {signed.format(self.high)}]"


def ratio(sums: NDArray[numpy.float64]) -> float:
    """The first sum over the second; not a number where the second is 0."""
    return float(sums[0] / sums[1]) if sums[1] else float("nan")


def mean(values: Sequence[float] | NDArray[numpy.float64]) -> Measure:
    """The mean of a value for each row."""
    column = numpy.asarray(values, dtype=numpy.float64)
    return Measure(numpy.stack([column, numpy.ones_like(column)], axis=1), ratio)


def difference(after: Measure, before: Measure, seed: int = 0) -> Difference | None:
    """The difference of a metric between two models, with its 95 % bootstrap interval.

    Rows are drawn with replacement, the same for both: what is hard about a row is hard for both, and falls out.

    Args:
        after: The metric of one model.
        before: The metric of the other, on the same rows in the same order.
        seed: Seed for drawing the rows.

    Returns:
        The difference; None where there are too few rows for an interval.

    Source:
        Koehn (2004), Statistical significance tests for machine translation evaluation.
    """
    num_rows = len(after.statistics)
    if num_rows < LEAST_ROWS:
        return None
    generator = numpy.random.default_rng(seed)
    drawn = []
    for _ in range(_NUM_RESAMPLES):
        times = numpy.bincount(generator.integers(num_rows, size=num_rows), minlength=num_rows).astype(numpy.float64)
        drawn.append(after.combine(times @ after.statistics) - before.combine(times @ before.statistics))
    low, high = numpy.nanpercentile(drawn, [2.5, 97.5])
    return Difference(after.value - before.value, float(low), float(high))
