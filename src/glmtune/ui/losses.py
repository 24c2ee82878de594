"""The losses of a run, read from its log as it grows."""

import json
import math
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MOST_POINTS = 1000


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        last: The last entry with a loss; None if there is none yet.
        points: Steps and losses, at most about a thousand, the last one among them.
    """

    last: dict[str, Any] | None
    points: list[tuple[int, float]]


class LossReader:
    """Reads a run's log; each time only what is new. Threads may share it.

    Args:
        file: The log, which need not exist yet. A run that is resumed replaces it.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._start_again(None)

    def _start_again(self, file_id: int | None) -> None:
        self._file_id = file_id
        self._num_read = 0
        self._last: dict[str, Any] | None = None
        self._points: list[tuple[int, float]] = []

    def read(self) -> Progress:
        """The run's progress now."""
        with self._lock:
            try:
                self._read_lines()
            except OSError:  # it is not there yet
                self._start_again(None)
            spacing = math.ceil(len(self._points) / _MOST_POINTS) or 1
            return Progress(self._last, self._points[::-1][::spacing][::-1])

    def _read_lines(self) -> None:
        with self._file.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if status.st_ino != self._file_id or status.st_size < self._num_read:
                self._start_again(status.st_ino)
            stream.seek(self._num_read)
            lines = stream.read().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):  # it is being written
            lines.pop()
        self._num_read += sum(map(len, lines))
        self._add(lines)

    def _add(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            try:
                entry = json.loads(line)
                step, loss = entry["step"], entry["loss"]
            except (ValueError, LookupError, TypeError):  # cut off by a crash, or without a loss
                continue
            if loss is not None:  # null stands for NaN
                self._last = entry
                self._points.append((step, loss))
