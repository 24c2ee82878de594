"""Where text meets a person in a terminal: a console and a log handler that speak the reader's language."""

import logging
import sys
from typing import Any

from rich.console import Console
from rich.status import Status

from glmtune.language import localise


class TerminalConsole(Console):
    """A rich console that puts plain texts into the reader's language; tables and styled texts come in it already."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints as rich does."""
        super().print(*(localise(each) if isinstance(each, str) else each for each in objects), **options)

    def status(self, status: Any, **options: Any) -> Status:
        """Shows a status as rich does."""
        return super().status(localise(status) if isinstance(status, str) else status, **options)


class _TerminalHandler(logging.Handler):
    """Writes log messages to standard error, a line each, as Python does where nobody has set up logging."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a message to whatever is standard error at that moment: a progress bar may stand in its place."""
        try:
            print(localise(self.format(record)), file=sys.stderr)
        except Exception:
            self.handleError(record)


def log_to_terminal() -> None:
    """Shows the warnings of glmtune's modules on standard error, in the reader's language."""
    handler = _TerminalHandler(logging.WARNING)
    logger = logging.getLogger("glmtune")
    logger.addHandler(handler)
    logger.propagate = False
