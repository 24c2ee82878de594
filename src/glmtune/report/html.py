"""A report as one HTML page."""

from collections.abc import Sequence

from glmtune.pages import Markup, element, figures, page, section, table
from glmtune.report.blocks import Block, Chart, Commands, Exchange, Figures, Lines, Report, Table
from glmtune.report.curves import line_chart


def to_html(report: Report) -> str:
    """The page, to be written to a file."""
    sections = [section(each.heading, *map(_block, each.blocks)) for each in report.sections]
    return page(report.title, *sections, subtitle=report.subtitle)


def _block(block: Block) -> Markup:
    match block:
        case Figures(values):
            return figures(values)
        case Lines(lines):
            return Markup("".join(element("p", line, style="overflow-wrap:anywhere") for line in lines))
        case Table(columns, rows, numeric):
            return table(columns, [[_cell(cell) for cell in row] for row in rows], numeric=numeric)
        case Chart():
            return line_chart(block)
        case Exchange(question, answers):
            return _exchange(question, answers)
        case Commands(commands):
            return element("pre", "\n".join(commands))


def _cell(text: str) -> str:
    """A cell whose line breaks are kept, where it has any."""
    return element("span", text, style="white-space:pre-line") if "\n" in text else text


def _exchange(question: str, answers: Sequence[tuple[str, str]]) -> Markup:
    said = [
        element("div", element("div", name, class_="role"), element("div", text or "—", class_="content"))
        for name, text in answers
    ]
    asked = element("div", element("strong", question), class_="content")
    return element("div", asked, *said, class_="message")
