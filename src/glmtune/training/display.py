"""Where a run shows its progress, which may go away without the run ending."""

import os
import sys
from typing import Any, TextIO, cast

from rich.console import Console

from glmtune.language.terminal import TerminalConsole


class _SurvivingStream:
    """A text stream that may lose its terminal (EIO) or its reader (EPIPE): from then on it swallows what it is given.

    Not only what we print goes through it: libraries' progress bars would raise, and rich would end the process.

    Args:
        stream: The stream; whatever is not about writing is its own.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_lost = False

    def write(self, text: str) -> int:
        """Writes, as far as anybody is there."""
        if not self._is_lost:
            try:
                return self._stream.write(text)
            except OSError:
                self._is_lost = True
        return len(text)

    def flush(self) -> None:
        """Flushes, as far as anybody is there."""
        if not self._is_lost:
            try:
                self._stream.flush()
            except OSError:
                self._is_lost = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def surviving(stream: TextIO | None) -> TextIO:
    """A standard stream that never raises because nobody is there; one that was closed from the start gives None."""
    if stream is None:
        stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open as long as the process is
    return stream if isinstance(stream, _SurvivingStream) else cast(TextIO, _SurvivingStream(stream))


def progress_console() -> Console:
    """The console for progress: standard error, for as long as it is there."""
    return TerminalConsole(file=surviving(sys.stderr))
