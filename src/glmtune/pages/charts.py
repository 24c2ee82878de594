"""Charts as inline SVG: lengths are percentages, so a chart is as wide as the page and its letters never shrink."""

from collections.abc import Sequence
from typing import NamedTuple

from glmtune.pages.markup import Markup, element

_BAR_HEIGHT_PX = 14


class Bar(NamedTuple):
    """A bar of a chart.

    Attributes:
        label: What it is about.
        value: Its length, at least 0.
        shown: The value as text.
    """

    label: str
    value: float
    shown: str


def bar_chart(bars: Sequence[Bar], *, label: str) -> Markup:
    """Horizontal bars, one below the other, the longest as wide as there is room.

    Args:
        bars: At least one.
        label: What the chart shows, for those who hear it read.
    """
    longest = max(bar.value for bar in bars) or 1
    rows = [
        element(
            "tr",
            element("th", bar.label, scope="row"),
            element("td", _bar(100 * bar.value / longest), class_="bar", aria_hidden="true"),
            element("td", bar.shown, class_="number"),
        )
        for bar in bars
    ]
    return element("table", element("tbody", *rows), class_="bars", aria_label=label)


def _bar(percent: float) -> Markup:
    # A pixel at the least, so that one sample among thousands is seen.
    width = f"max({percent:.2f}%, {1 if percent else 0}px)"
    rectangle = element("rect", height=_BAR_HEIGHT_PX, rx=2, style=f"width:{width}")
    return element("svg", rectangle, width="100%", height=_BAR_HEIGHT_PX, preserveAspectRatio="none")
