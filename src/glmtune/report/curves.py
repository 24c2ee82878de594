"""Averaging and thinning of logged values, and line charts as inline SVG.

The lines are stretched to the width of the page, with strokes of their own width; the letters stand beside the SVG, so
that they keep their size.
"""

from collections.abc import Sequence

from glmtune.pages import Markup, element
from glmtune.report.blocks import Chart, Series

_MOST_POINTS = 400
_HEIGHT_PX = 170
# Readable on light and dark ground, and told apart by people who see red and green alike.
_COLOURS = ("var(--accent)", "#d9822b", "#2a9d8f", "#a05195", "#8c8c3f", "#c2506b")


def smooth(values: Sequence[float], weight: float) -> list[float]:
    """An exponential moving average with bias correction for the first values.

    Args:
        values: At least one number.
        weight: Weight of the previous average, from 0 to below 1.
    """
    smoothed = []
    average = total = 0.0
    for value in values:
        average = weight * average + (1 - weight) * value
        total = weight * total + (1 - weight)
        smoothed.append(average / total)
    return smoothed


def averaged(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points with their values smoothed; the more there are, the more strongly."""
    weight = len(points) / (len(points) + 20)
    return list(zip([step for step, _ in points], smooth([value for _, value in points], weight), strict=True))


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most so many points that a page stays small: the means of neighbours."""
    size = -(-len(points) // _MOST_POINTS)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) if size > 1 else part[0] for part in parts]


def line_chart(chart: Chart) -> Markup:
    """A chart as a figure with its title, legend and ends of the axes."""
    points = [point for series in chart.series for point in series.points]
    left, right = min(step for step, _ in points), max(step for step, _ in points)
    low, high = min(value for _, value in points), max(value for _, value in points)
    margin = 0.04 * (high - low) or abs(high) * 0.05 or 1.0
    bottom, top = low - margin, high + margin
    if low >= 0:
        bottom = max(bottom, 0.0)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        step, value = point
        return 1000 * (step - left) / (right - left or 1), 1000 * (top - value) / (top - bottom)

    grid = [
        element("path", d=f"M0 {y}H1000", style="stroke:var(--line);stroke-width:1", vector_effect="non-scaling-stroke")
        for y in (0, 500, 1000)
    ]
    lines = [
        drawn
        for series, colour in zip(chart.series, _colours(chart.series), strict=True)
        for drawn in _lines([place(point) for point in thinned(series.points)], series, colour)
    ]
    svg = element(
        "svg",
        *grid,
        *lines,
        viewBox="0 0 1000 1000",
        preserveAspectRatio="none",
        style=f"width:100%;height:{_HEIGHT_PX}px;overflow:visible",
        role="img",
        aria_label=chart.title,
    )
    values = [chart.form.format(value) for value in (top, (top + bottom) / 2, bottom)]
    return element(
        "figure",
        element("figcaption", element("strong", chart.title), *_legend(chart), style="margin:0 0 .5rem"),
        element(
            "div",
            element("div", *(element("span", value) for value in values), style=_SCALE),
            svg,
            element("span"),
            element("div", element("span", f"{left:,.0f}"), element("span", f"{right:,.0f}"), style=_STEPS),
            style="display:grid;grid-template-columns:auto 1fr;gap:.25rem .6rem",
        ),
        style="margin:1.25rem 0",
    )


_FAINT = (
    "color:var(--faint);font-size:.8rem;font-variant-numeric:tabular-nums;display:flex;justify-content:space-between"
)
_SCALE = f"{_FAINT};flex-direction:column;text-align:right;line-height:1"
_STEPS = _FAINT


def _lines(places: Sequence[tuple[float, float]], series: Series, colour: str) -> list[Markup]:
    line = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    opacity = 0.35 if series.is_faint else 1
    drawn = [_path(line, f"fill:none;stroke:{colour};stroke-width:{1.2 if series.is_faint else 2};opacity:{opacity}")]
    if series.has_dots or len(places) == 1:
        dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in places)
        drawn.append(_path(dots, f"stroke:{colour};stroke-width:7;stroke-linecap:round"))
    return drawn


def _path(d: str, style: str) -> Markup:
    return element("path", d=d, style=style, vector_effect="non-scaling-stroke")


def _legend(chart: Chart) -> list[Markup]:
    if len(chart.series) == 1 and chart.series[0].name == chart.title:
        return []
    return [
        element(
            "span",
            element(
                "span",
                style=f"display:inline-block;width:.9rem;height:.25rem;vertical-align:middle;margin-right:.3rem;"
                f"background:{colour};opacity:{0.45 if series.is_faint else 1}",
            ),
            series.name,
            style="margin-left:1rem;font-size:.85rem;color:var(--faint);overflow-wrap:anywhere",
        )
        for series, colour in zip(chart.series, _colours(chart.series), strict=True)
    ]


def _colours(series: Sequence[Series]) -> list[str]:
    """A colour for each line; a faint one has that of its average, which comes next."""
    numbers = [sum(not before.is_faint for before in series[:index]) for index in range(len(series))]
    return [_COLOURS[number % len(_COLOURS)] for number in numbers]
