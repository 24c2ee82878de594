"""The console for a run's progress; losing it does not end the run."""

import os
import sys
from typing import Any, TextIO, cast

from rich.console import Console

from glmtune.errors import StorageError
from glmtune.language.terminal import TerminalConsole


class _SurvivingStream:
    """A text stream that discards output once its terminal (EIO) or its reader (EPIPE) is gone.

    It also receives output of libraries: their progress bars would raise, and rich would end the process.

    Args:
        stream: The underlying stream; all attributes but `write` and `flush` are passed through.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_lost = False

    def write(self, text: str) -> int:
        """Writes the text; discards it once the stream is lost."""
        if not self._is_lost:
            try:
                return self._stream.write(text)
            except (OSError, StorageError):  # StorageError: from the command line's own check
                self._is_lost = True
        return len(text)

    def flush(self) -> None:
        """Flushes the stream, unless it is lost."""
        if not self._is_lost:
            try:
                self._stream.flush()
            except (OSError, StorageError):  # StorageError: from the command line's own check
                self._is_lost = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def surviving(stream: TextIO | None) -> TextIO:
    """Wraps a standard stream so that losing it raises nothing; None, a stream closed from the start, is discarded."""
    if stream is None:
        stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open for the life of the process
    return stream if isinstance(stream, _SurvivingStream) else cast(TextIO, _SurvivingStream(stream))


def progress_console() -> Console:
    """The console for progress: standard error, for as long as it is open."""
    return TerminalConsole(file=surviving(sys.stderr))
