"""A console and a log handler for the terminal that translate into the user's language."""

import logging
import sys
from typing import Any

from rich.console import Console
from rich.status import Status

from glmtune.language import localise


class TerminalConsole(Console):
    """A rich console that translates plain strings; tables and styled texts must already be translated.

    File names and what is in files are printed to the letter: `[b]` is no markup, and `:-1:` no picture of a thumb.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False} | options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints as rich does."""
        super().print(*(localise(each) if isinstance(each, str) else each for each in objects), **options)

    def status(self, status: Any, **options: Any) -> Status:
        """Shows a status as rich does."""
        return super().status(localise(status) if isinstance(status, str) else status, **options)


class _TerminalHandler(logging.Handler):
    """Writes log messages to standard error, one per line, as Python does when logging is not configured."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a message to the current standard error, which a progress bar may have replaced."""
        try:
            print(localise(self.format(record)), file=sys.stderr)
        except Exception:
            self.handleError(record)


def log_to_terminal() -> None:
    """Shows warnings of glmtune's modules on standard error, in the user's language."""
    handler = _TerminalHandler(logging.WARNING)
    logger = logging.getLogger("glmtune")
    logger.addHandler(handler)
    logger.propagate = False
