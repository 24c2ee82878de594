"""The skeleton of a page, and the parts that most pages have."""

from collections.abc import Collection, Iterable, Sequence
from functools import cache
from importlib import resources

from glmtune.language import language
from glmtune.pages.markup import Markup, element, joined


def page(title: str, *content: str, subtitle: str = "") -> str:
    """A whole page, to be written to a file.

    Args:
        title: Its heading, and its name in the browser.
        content: What follows, usually sections.
        subtitle: A line below the heading.
    """
    head = joined(
        Markup('<meta charset="utf-8">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<meta name="color-scheme" content="light dark">'),
        element("title", title),
        element("style", _style()),
    )
    below = element("p", subtitle, class_="subtitle") if subtitle else Markup()
    body = element("main", element("header", element("h1", title), below), *content)
    code = "zh-CN" if language() == "zh" else "en"
    return f"<!DOCTYPE html>\n{element('html', element('head', head), element('body', body), lang=code)}\n"


def section(heading: str, *content: str) -> Markup:
    """A section with its heading."""
    return element("section", element("h2", heading), *content)


def note(text: str) -> Markup:
    """A paragraph set apart, with good news."""
    return element("p", text, class_="note")


def figures(values: Iterable[tuple[str, str]]) -> Markup:
    """Numbers that are read first, each above what it counts.

    Args:
        values: What each counts, and the number as text.
    """
    tiles = (element("div", element("dd", value), element("dt", label)) for label, value in values)
    return element("dl", *tiles, class_="figures")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numeric: Collection[int] = ()) -> Markup:
    """A table; where it is wider than the page, it is scrolled by itself.

    Args:
        columns: The headings.
        rows: The cells, text or markup.
        numeric: The columns, counted from 0, that hold numbers and are aligned to the right.
    """
    classes = ["number" if index in numeric else "text" for index in range(len(columns))]
    head = (element("th", name, scope="col", class_=kind) for name, kind in zip(columns, classes, strict=True))
    body = (
        element("tr", *(element("td", cell, class_=kind) for cell, kind in zip(row, classes, strict=True)))
        for row in rows
    )
    whole = element("table", element("thead", element("tr", *head)), element("tbody", *body))
    return element("div", whole, class_="scroll", tabindex=0)


@cache
def _style() -> Markup:
    return Markup((resources.files("glmtune.pages") / "style.css").read_text(encoding="utf-8"))
