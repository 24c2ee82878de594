"""Temporary handlers for Ctrl-C and the signals that end a process; signals that the parent ignores stay ignored."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# A terminal sends SIGHUP when it is closed; Windows does not have it.
_ENDING = [number for number in signal.Signals if number.name in ("SIGINT", "SIGTERM", "SIGHUP")]

_handled: set[signal.Signals] = set()  # by the blocks that we are in


@contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handles SIGINT, SIGTERM and SIGHUP within a block.

    Signals that the parent process ignores stay ignored, such as SIGHUP under nohup, or SIGINT in a script's background
    job. Python allows signal handlers only in the main thread; in other threads, this does nothing.

    Args:
        handler: Called with the number of the signal and the interrupted frame. Processes forked within the block do
            not inherit it: they leave SIGINT and SIGHUP to their parent, and SIGTERM ends them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _ENDING}
    heard = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}  # None: set in C
    for number in heard:
        signal.signal(number, handler)
    outer = {*_handled}
    _handled.update(heard)
    try:
        yield
    finally:
        _handled.intersection_update(outer)
        for number, old in heard.items():
            signal.signal(number, old)


def _leave_to_parent() -> None:
    """In a forked process: the system ends it at SIGTERM, which is how a pool ends its workers.

    A handler in Python would do so most of the time; if the signal comes just before the process waits for a lock, it
    would not run, and the pool would wait for the process forever.
    """
    for number in _handled:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    _handled.clear()


if os.name == "posix":
    os.register_at_fork(after_in_child=_leave_to_parent)
