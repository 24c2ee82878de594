"""What the data commands print has in common."""

import re
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from glmtune.errors import show_text
from glmtune.language import localise


def print_lines(console: Console | None, lines: Iterable[str]) -> None:
    """Prints lines in the user's language, none of them broken; with no console, to the standard output."""
    console = console or Console()
    for line in lines:
        console.print(Text(localise(line)), soft_wrap=True)  # or a path could not be copied


def visible(text: str, limit: int | None = None) -> str:
    """The text on one line, with control characters escaped."""
    return show_text(text.replace("\n", "⏎"), limit)


def visible_token(token: str) -> str:
    """A token of the vocabulary; byte tokens of printable ASCII are shown as the character."""
    byte = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token)
    code = int(byte.group(1), 16) if byte else -1
    if code == ord("\n") or 0x20 < code < 0x7F:
        token = chr(code)
    return visible(token)
