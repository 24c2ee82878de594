"""What a report consists of, before it is a page; every text is in the user's language already."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figures:
    """Numbers that are read first: what each counts, and the number as text."""

    values: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Lines:
    """Paragraphs of one line each."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table; columns in `numeric` hold numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        name: What it is.
        points: Pairs of step and value, ascending.
        has_dots: Whether its points are marked, as of few evaluations.
        is_faint: Whether another line, such as its average, is to be seen before it.
    """

    name: str
    points: Sequence[tuple[float, float]]
    has_dots: bool = False
    is_faint: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart over the optimiser steps.

    Attributes:
        title: What it shows.
        series: At least one line, each with at least one point.
        form: How values are written.
    """

    title: str
    series: Sequence[Series]
    form: str = "{:.3g}"


@dataclass(frozen=True)
class Exchange:
    """A question with several answers: who gave each, and its text."""

    question: str
    answers: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Commands:
    """Commands to be typed."""

    commands: Sequence[str]


Block = Figures | Lines | Table | Chart | Exchange | Commands


@dataclass(frozen=True)
class Section:
    """Blocks under a heading."""

    heading: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Report:
    """A whole report."""

    title: str
    subtitle: str
    sections: Sequence[Section]
