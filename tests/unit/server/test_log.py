"""Without these, a program that stops reading the server's log would stop the server."""

import json
import threading

from glmtune.server.requests import RequestLog, RequestRecord

HANG_S = 60


class StalledStream:
    """Takes its first write only once it is released, as a pipe that nothing reads.

    Attributes:
        is_writing: Set once a write has begun.
        is_released: Lets writes end.
        written: What has been written.
    """

    def __init__(self) -> None:
        self.is_writing, self.is_released = threading.Event(), threading.Event()
        self.written = b""

    def write(self, line: bytes) -> int:
        self.is_writing.set()
        assert self.is_released.wait(HANG_S)
        self.written += line
        return len(line)


def test_requests_are_answered_while_the_log_is_not_read(connect):
    stream = StalledStream()
    log = RequestLog(stream, max_lines=2)
    client = connect(write=log)
    assert client.get("/v1/models").status_code == 200
    assert stream.is_writing.wait(HANG_S)
    assert {client.get("/v1/models").status_code for _ in range(5)} == {200}
    assert not stream.written
    stream.is_released.set()
    assert log.close(HANG_S)
    lines = [json.loads(line) for line in stream.written.splitlines()]
    assert [line["status"] for line in lines if "status" in line] == [200] * 3
    assert [line["dropped_lines"] for line in lines if "status" not in line] == [3]


def test_the_end_does_not_wait_for_a_reader_that_never_comes():
    stream = StalledStream()
    log = RequestLog(stream, max_lines=1)
    log(RequestRecord("127.0.0.1"))
    assert stream.is_writing.wait(HANG_S)
    log(RequestRecord("127.0.0.1"))
    assert not log.close(timeout_s=0)
    stream.is_released.set()


def test_all_lines_are_written_before_the_end():
    stream = StalledStream()
    stream.is_released.set()
    log = RequestLog(stream)
    for _ in range(100):
        log(RequestRecord("127.0.0.1", status=200))
    assert log.close(HANG_S)
    assert len(stream.written.splitlines()) == 100


def test_a_stream_that_is_gone_is_no_reason_to_stop():
    class Gone:
        def write(self, _: bytes) -> int:
            raise BrokenPipeError

    log = RequestLog(Gone())
    log(RequestRecord("127.0.0.1"))
    assert log.close(HANG_S)
