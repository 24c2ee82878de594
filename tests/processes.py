"""Programs that tests start: however slow the machine is, they are waited for, and end with the test.

Nothing here goes by the clock but to end what hangs. A test waits for an event by reading what the program prints.
"""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

HANG_S = 3600
"""After so long a program counts as hanging, and the test that started it fails."""


def run(*command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end; text in and out is UTF-8, and what it prints is kept."""
    options = {"capture_output": True, "encoding": "utf-8", "timeout": HANG_S, **options}
    return subprocess.run([str(part) for part in command], check=False, **options)


@contextmanager
def started(*command: Any, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a program and, at the end, kills it if it still runs. Its pipes are unbuffered bytes."""
    with subprocess.Popen([str(part) for part in command], bufsize=0, **options) as process:
        watch = threading.Timer(HANG_S, process.kill)
        watch.start()
        try:
            yield process
        finally:
            watch.cancel()
            process.kill()


def read_until(pipe: IO[bytes] | None, word: str) -> str:
    """Reads a pipe, which must be there, line by line until a word comes; returns what was read.

    At the pipe's end the word has not come: an AssertionError with all that was printed instead.
    """
    assert pipe is not None
    read = ""
    while word not in read:
        line = pipe.readline()
        assert line, f"the program ended without printing {word!r}:\n{read}"
        read += line.decode("utf-8", "replace")
    return read
