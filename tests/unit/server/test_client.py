"""Without these, the terminal could take half a reply for a whole one."""

import json
import socket
import threading

import pytest

from glmtune.errors import ModelError
from glmtune.server.client import RemoteChat


@pytest.fixture
def answering():
    """A server that answers once, with the lines it is given, and closes the connection; its port."""
    with socket.create_server(("127.0.0.1", 0)) as opened:
        threads = []

        def answer(*lines):
            def run():
                connection, _ = opened.accept()
                with connection:
                    received = b""
                    while b"}" not in received.partition(b"\r\n\r\n")[2]:
                        received += connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"".join(lines))

            threads.append(threading.Thread(target=run))
            threads[-1].start()
            return opened.getsockname()[1]

        yield answer
        for thread in threads:
            thread.join()


def chunk(text):
    return f"data: {json.dumps({'choices': [{'delta': {'content': text}}]})}\n\n".encode()


def test_a_stream_that_breaks_off_is_no_reply(answering):
    chat = RemoteChat(f"127.0.0.1:{answering(chunk('你'), chunk('好'))}")
    shown = []
    with pytest.raises(ModelError, match="broken off before the end"):
        shown.extend(chat.stream("你是谁？"))
    assert chat.history == []


def test_a_stream_that_ends_as_it_should_is_one(answering):
    chat = RemoteChat(f"127.0.0.1:{answering(chunk('你'), chunk('好'), b'data: [DONE]')}")
    assert "".join(chat.stream("你是谁？")) == "你好"
    assert chat.history[-1].content == "你好"
