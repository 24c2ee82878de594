"""A report as Markdown, for a repository, an issue or a model card."""

from collections.abc import Iterator, Sequence

from glmtune.errors import show_text
from glmtune.language import localise
from glmtune.report.blocks import Block, Chart, Commands, Exchange, Figures, Lines, Report, Table


def to_markdown(report: Report) -> str:
    """The text, to be written to a file."""
    lines = [f"# {_text(report.title)}", "", _text(report.subtitle), ""]
    for section in report.sections:
        lines += [f"## {_text(section.heading)}", ""]
        for block in section.blocks:
            lines += [*_block(block), ""]
    return "\n".join(lines).rstrip() + "\n"


def _block(block: Block) -> Iterator[str]:
    match block:
        case Figures(values):
            yield from (f"- {_text(label)}: {_text(value)}" for label, value in values)
        case Lines(lines):
            yield from (f"- {_text(line)}" for line in lines)
        case Table(columns, rows, numeric):
            yield from _table(columns, rows, numeric)
        case Chart():
            yield from _chart(block)
        case Exchange(question, answers):
            yield f"**{_text(question)}**"
            yield ""
            yield from (f"- {_text(name)}: {_text(text) or '—'}" for name, text in answers)
        case Commands(commands):
            yield from ("```bash", *commands, "```")


def _chart(chart: Chart) -> Iterator[str]:
    """The first, the lowest, the highest and the last value of each line: Markdown has no charts."""
    columns = [chart.title, localise("first"), localise("lowest"), localise("highest"), localise("last")]
    rows = []
    for series in chart.series:
        if not series.is_faint or len(chart.series) == 1:
            values = [value for _, value in series.points]
            cells = [chart.form.format(each) for each in (values[0], min(values), max(values), values[-1])]
            rows.append([series.name, *cells])
    yield from _table(columns, rows, frozenset(range(1, len(columns))))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: frozenset[int]) -> Iterator[str]:
    yield _row(columns)
    yield "|" + "|".join("---:" if index in numeric else "---" for index in range(len(columns))) + "|"
    yield from map(_row, rows)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_text(cell).replace("|", "\\|") for cell in cells) + " |"


def _text(text: str) -> str:
    """One line, in which nothing is read as HTML or as the beginning of a block."""
    line = show_text(" ".join(text.split("\n"))).replace("<", "&lt;")
    for mark in ("\\", "`", "*", "_", "[", "]"):
        line = line.replace(mark, f"\\{mark}")
    return line
