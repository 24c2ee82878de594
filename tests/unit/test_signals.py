"""Without these, Ctrl-C could go unheard, or a run under nohup be ended by what nohup is to keep from it."""

import os
import signal

import pytest

from glmtune.signals import handling


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_heard_and_then_handled_as_before(number: int) -> None:
    heard = []
    before = signal.getsignal(number)
    with handling(lambda number, frame: heard.append(number)):
        os.kill(os.getpid(), number)
    assert heard == [number]
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_the_parent_process_has_had_ignored_stays_ignored(number: int) -> None:
    heard = []
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with handling(lambda number, frame: heard.append(number)):
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)
    assert heard == []
