"""Temporary handlers for Ctrl-C and the signals that end a process; signals that the parent ignores stay ignored."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# A terminal sends SIGHUP when it is closed; Windows does not have it.
_ENDING = [number for number in signal.Signals if number.name in ("SIGINT", "SIGTERM", "SIGHUP")]


@contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handles SIGINT, SIGTERM and SIGHUP within a block.

    Signals that the parent process ignores stay ignored, such as SIGHUP under nohup, or SIGINT in a script's background
    job. Python allows signal handlers only in the main thread; in other threads, this does nothing.

    Args:
        handler: Called with the number of the signal and the interrupted frame. Processes forked within the block
            inherit it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _ENDING}
    heard = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}  # None: set in C
    for number in heard:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in heard.items():
            signal.signal(number, old)
