"""Standard output that cannot be written to, on a full disk or with no reader left, is one error."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO, cast

from glmtune.errors import StorageError


class OutputLostError(StorageError):
    """Standard output cannot be written to."""


class _CheckedStream:
    """A text stream whose failure is an error of ours, raised again by every later call.

    Libraries that print have their own ideas of a failed write: rich ends the process, typer shows a traceback.

    Args:
        stream: The underlying stream; all attributes but `write` and `flush` are passed through.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._fault: str | None = None

    def write(self, text: str) -> int:
        """Writes the text."""
        with self._checked():
            return self._stream.write(text)

    def flush(self) -> None:
        """Flushes the stream."""
        with self._checked():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _checked(self) -> Iterator[None]:
        if self._fault is not None:  # typer's first write only tries the stream, and ignores the error
            raise OutputLostError(self._fault)
        try:
            yield
        except OSError as error:
            self._fault = self._lost(error)
            raise OutputLostError(self._fault) from error

    def _lost(self, error: OSError) -> str:
        from glmtune.files import say_os_error

        # What is still buffered goes nowhere, or Python would fail on it once more when it ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        if isinstance(error, BrokenPipeError):
            return "the output was cut off: the program that it went to has ended"
        return f"standard output: {say_os_error(error)}"


@contextmanager
def checked_output() -> Iterator[None]:
    """Checks, within a block and at its end, that standard output can be written to.

    Raises:
        OutputLostError: It cannot.
    """
    if sys.stdout is None:  # closed from the start: it has no reader
        yield
        return
    stream = cast(TextIO, _CheckedStream(sys.stdout))
    with redirect_stdout(stream):
        yield
        sys.stdout.flush()  # not `stream`: a command that outlives its display has replaced it
