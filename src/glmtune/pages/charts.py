"""Charts as inline SVG: lengths are percentages, so a chart is as wide as the page and its letters never shrink."""

from collections.abc import Sequence

from glmtune.pages.markup import Markup, element

_BAR_HEIGHT_PX = 14


def bar_chart(bars: Sequence[tuple[str, float, str]], *, label: str) -> Markup:
    """Horizontal bars, one below the other, the longest as wide as there is room.

    Args:
        bars: At least one: what it is about, its length, at least 0, and the value as text.
        label: What the chart shows, for those who hear it read.
    """
    longest = max(value for _, value, _ in bars) or 1
    rows = [
        element(
            "tr",
            element("th", about, scope="row"),
            element("td", _bar(100 * value / longest), class_="bar", aria_hidden="true"),
            element("td", shown, class_="number"),
        )
        for about, value, shown in bars
    ]
    return element("table", element("tbody", *rows), class_="bars", aria_label=label)


def _bar(percent: float) -> Markup:
    # A pixel at the least, so that one sample among thousands is seen.
    width = f"max({percent:.2f}%, {1 if percent else 0}px)"
    rectangle = element("rect", height=_BAR_HEIGHT_PX, rx=2, style=f"width:{width}")
    return element("svg", rectangle, width="100%", height=_BAR_HEIGHT_PX, preserveAspectRatio="none")
