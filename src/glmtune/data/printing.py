"""What the data commands print has in common."""

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from glmtune.errors import show_text
from glmtune.language import localise


def print_lines(console: Console | None, lines: Iterable[str]) -> None:
    """Prints lines in the user's language; with no console, to the standard output."""
    console = console or Console()
    for line in lines:
        console.print(Text(localise(line)))


def visible(text: str, limit: int | None = None) -> str:
    """The text on one line, with control characters escaped."""
    return show_text(text.replace("\n", "⏎"), limit)
