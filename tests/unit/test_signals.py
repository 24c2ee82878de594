"""Without these, Ctrl-C could go unheard, nohup not keep a run alive, or a pool wait for its workers forever."""

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


@pytest.mark.posix  # elsewhere, nothing is forked
def test_a_forked_worker_is_ended_by_the_system_and_leaves_the_rest_to_its_parent() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    there, here = os.pipe()
    with handling(lambda number, frame: None):
        if not (child := os.fork()):
            found = [signal.getsignal(number).name for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
            os.write(here, " ".join(found).encode())
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(there, 100).decode() == "SIG_IGN SIG_DFL SIG_IGN"
    if not (child := os.fork()):  # outside of the block, nothing is changed
        found = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        os._exit(found != before)
    assert os.waitpid(child, 0)[1] == 0
    for end in (there, here):
        os.close(end)
