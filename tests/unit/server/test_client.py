"""Without these, the terminal could take half a reply for a whole one."""

import json
import socket
import threading

import pytest

from glmtune.errors import ConfigError, ModelError
from glmtune.server.client import RemoteChat

HANG_S = 60


@pytest.fixture
def answering():
    """A server that answers once, with the lines it is given, and closes the connection; its port."""
    with socket.create_server(("127.0.0.1", 0)) as opened:
        opened.settimeout(HANG_S)
        threads = []

        def answer(*lines):
            def run():
                connection, _ = opened.accept()
                connection.settimeout(HANG_S)
                with connection:
                    received = b""
                    while b"}" not in received.partition(b"\r\n\r\n")[2]:
                        part = connection.recv(65536)
                        if not part:
                            return
                        received += part
                    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"".join(lines))

            threads.append(threading.Thread(target=run, daemon=True))
            threads[-1].start()
            return opened.getsockname()[1]

        yield answer
        for thread in threads:
            thread.join(HANG_S)


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


@pytest.mark.parametrize(
    "url",
    [
        *("http://localhost:99999", "http://localhost:abc", "127.0.0.1:99999", "localhost:0", "http://[::1"),
        *("", "ftp://localhost", "http://", "http://:8000"),
    ],
)
def test_an_address_that_is_none_is_told_so(url):
    with pytest.raises(ConfigError, match="--url: expected an address such as"):
        RemoteChat(url)
