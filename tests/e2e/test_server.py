"""Without these, programs that talk to a real server, over a real socket, could be left waiting or cut off."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from peft import LoraConfig, get_peft_model

import processes
from glmtune.config import embedded_base
from glmtune.errors import ModelError
from glmtune.loading.bases import load_base
from glmtune.server.client import RemoteChat

KEY = "test-key-0123456789"
QUESTION: list[Any] = [{"role": "user", "content": "你是谁？"}]
ANSWER = "我是一个小小的语言模型，可以陪你聊天。"
TOOLS: list[Any] = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
LONG: dict[str, Any] = {"max_tokens": 480, "extra_body": {"min_tokens": 480}}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter called `other`."""
    import torch

    folder = tmp_path_factory.mktemp("adapters")
    model = get_peft_model(load_base(None)[0], LoraConfig(r=2, target_modules=["query_key_value"]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.5)
    model.peft_config["default"].base_model_name_or_path = str(embedded_base())
    model.save_pretrained(folder / "other")
    return folder


class Server:
    """A server process.

    Attributes:
        process: The process.
        log: The file with a line for each request.
        port: Where it listens.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log
        printed = processes.read_until(process.stderr, "/v1 (Ctrl-C")
        found = re.search(r"http://127\.0\.0\.1:(\d+)/v1", printed)
        assert found, printed
        self.port = int(found[1])

    def client(self, key: str = KEY, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0, **options)

    def end(self) -> str:
        """Waits until it has ended; returns the rest of what it has printed, the log not included."""
        _, err = self.process.communicate(timeout=processes.HANG_S)
        return str(err.decode())

    def send(self, *parts: bytes) -> str:
        """Sends bytes as they are and returns all that comes back."""
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            for part in parts:
                connection.sendall(part)
            answer = b""
            while received := connection.recv(65536):
                answer += received
        return answer.decode()


@contextmanager
def started(folder: Path, *arguments: Any) -> Iterator[Server]:
    """A server that writes its log into a folder."""
    environment = {**os.environ, "GLMTUNE_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "glmtune", "serve", "--port", 0, *arguments]
    log = folder / "server.log"
    with (
        log.open("wb") as stream,
        processes.started(*command, env=environment, stdout=stream, stderr=subprocess.PIPE) as process,
    ):
        yield Server(process, log)


@pytest.fixture(scope="module")
def server(adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ("--adapters-from", adapters, "--max-rows", 4, "--drain-s", processes.HANG_S)
    with started(tmp_path_factory.mktemp("server"), *options) as server:
        yield server
        server.process.send_signal(signal.SIGTERM)
        printed = server.end()
        assert server.process.returncode == 0, printed
        assert "all replies were finished" in printed
        log = server.log.read_text(encoding="utf-8")
        assert all(json.loads(line)["status"] for line in log.splitlines())
        printed += log
        assert "Traceback" not in printed
        assert KEY not in printed
        assert "你是谁" not in printed


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client
        again = client.chat.completions.create(model="base", messages=QUESTION, max_tokens=30)
        assert again.choices[0].message.content == ANSWER


def running(client: openai.OpenAI) -> float:
    """Requests that run or wait, as the server says."""
    text = client.with_options(base_url=str(client.base_url).removesuffix("v1/")).get("/metrics", cast_to=str)
    return sum(float(value) for value in re.findall(r"^glmtune_(?:running|waiting) (\S+)$", text, re.MULTILINE))


def until_idle(client: openai.OpenAI) -> None:
    """Waits until every place is free; a server that keeps one makes the test hang, and so fail."""
    while running(client):
        pass


def test_a_conversation_over_several_turns(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="base", messages=QUESTION)
    assert answer.choices[0].message.content == ANSWER
    assert answer.usage is not None
    messages = [*QUESTION, answer.choices[0].message, {"role": "user", "content": "你好"}]
    again = client.chat.completions.create(model="base", messages=messages)
    assert again.choices[0].message.content
    assert again.usage is not None
    assert again.usage.prompt_tokens > answer.usage.prompt_tokens


def test_a_stream_with_its_usage(client: openai.OpenAI) -> None:
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model="base", messages=QUESTION, stream=True, stream_options=options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert len(chunks) > 3
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 5


def test_the_clients_own_helper_reads_a_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="base", messages=QUESTION, tools=TOOLS) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "stop"
    assert final.choices[0].message.content


def test_choices_seeds_stops_and_logprobs(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {
        "model": "base",
        "messages": QUESTION,
        "n": 2,
        "seed": 5,
        "temperature": 1.5,
        "max_tokens": 9,
    }
    first, second = (client.chat.completions.create(**fields) for _ in range(2))
    assert [choice.message.content for choice in first.choices] == [choice.message.content for choice in second.choices]
    assert first.choices[0].message.content != first.choices[1].message.content
    answer = client.chat.completions.create(
        model="base", messages=QUESTION, stop=["语言"], logprobs=True, top_logprobs=3
    ).choices[0]
    assert answer.message.content == "我是一个小小的"
    assert answer.logprobs is not None
    assert answer.logprobs.content is not None
    assert all(len(token.top_logprobs) == 3 for token in answer.logprobs.content)
    text = client.completions.create(
        model="base", prompt="你好", max_tokens=3, extra_body={"top_k": 5, "temperature": 1}
    )
    assert text.choices[0].finish_reason in ("stop", "length")


def test_what_a_tool_has_returned_is_read(client: openai.OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "北京"}'}}
    messages = [*QUESTION, {"role": "assistant", "content": None, "tool_calls": [call]}]
    num_tokens = []
    for returned in ("", "晴", "晴，二十度"):
        observation = {"role": "tool", "tool_call_id": "call_1", "content": returned}
        answer = client.chat.completions.create(
            model="base", messages=[*messages, observation], tools=TOOLS, max_tokens=20
        )
        assert answer.usage is not None
        num_tokens.append(answer.usage.prompt_tokens)
    assert num_tokens == sorted(set(num_tokens))


def test_errors_have_the_clients_own_classes(server: Server, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.chat.completions.create(model="nobody", messages=QUESTION)
    with pytest.raises(openai.BadRequestError, match="logit_bias is not supported") as raised:
        client.chat.completions.create(model="base", messages=QUESTION, logit_bias={"1": 2})
    assert raised.value.param == "logit_bias"
    with server.client(key="wrong-key-9876") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_adapters_are_loaded_named_and_unloaded(client: openai.OpenAI) -> None:
    loaded = client.post("/adapters", body={"path": "other"}, cast_to=dict)
    assert loaded["id"] == "other"
    assert [model.id for model in client.models.list()] == ["other", "base"]
    other = client.chat.completions.create(model="other", messages=QUESTION, max_tokens=20)
    assert other.choices[0].message.content != ANSWER
    with pytest.raises(openai.PermissionDeniedError):
        client.post("/adapters", body={"path": "../../"}, cast_to=dict)
    stream = client.chat.completions.create(model="other", messages=QUESTION, stream=True, n=16, **LONG)
    next(iter(stream))
    with pytest.raises(openai.ConflictError, match="in use"):
        client.delete("/adapters/other", cast_to=dict)
    stream.close()
    until_idle(client)
    client.delete("/adapters/other", cast_to=dict)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_client_that_stops_reading_frees_its_place(client: openai.OpenAI) -> None:
    for _ in range(6):  # more than there are places
        stream = client.chat.completions.create(model="base", messages=QUESTION, stream=True, **LONG)
        next(iter(stream))
        stream.close()
    until_idle(client)


def test_a_client_that_waits_no_longer_frees_its_place(server: Server, client: openai.OpenAI) -> None:
    body = json.dumps({"messages": QUESTION, "n": 16, "max_tokens": 480, "min_tokens": 480}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head.encode() + body)
            while not running(client):
                pass
        until_idle(client)


def test_the_terminal_chat_talks_to_it(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMTUNE_API_KEY", KEY)
    chat = RemoteChat(f"127.0.0.1:{server.port}", max_new_tokens=30)
    assert "".join(chat.stream("你是谁？")) == ANSWER
    assert "".join(chat.stream("你好"))
    assert len(chat.history) == 4
    for _ in range(4):  # more than the context has room for
        assert "".join(chat.stream("春江花月夜，" * 35))
    assert len(chat.history) == 12
    stream = chat.stream("你是谁？")
    first = next(stream)
    stream.close()
    assert chat.history[-1].content == first
    monkeypatch.setenv("GLMTUNE_API_KEY", "wrong-key-9876")
    with pytest.raises(ModelError, match="401: the API key is wrong"):
        "".join(chat.stream("你好"))


def test_a_signal_lets_replies_end(tmp_path: Path) -> None:
    with started(tmp_path, "--drain-s", processes.HANG_S) as server, server.client() as client:
        stream = client.chat.completions.create(model="base", messages=QUESTION, stream=True, **LONG)
        chunks = iter(stream)
        next(chunks)
        server.process.send_signal(signal.SIGTERM)
        last = list(chunks)[-1]
        printed = server.end()
    assert last.choices[0].finish_reason in ("stop", "length")
    assert server.process.returncode == 0
    assert "all replies were finished" in printed


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that has little patience."""
    options = ("--body-timeout-s", 3, "--max-connections", 4)
    with started(tmp_path_factory.mktemp("strict"), *options, "--allowed-host", "glm.example") as server:
        yield server


def get(host: str) -> bytes:
    return (
        f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n\r\n".encode()
    )


def test_headers_that_come_too_slowly_are_given_up(strict: Server) -> None:
    answer = strict.send(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n")
    assert answer.startswith("HTTP/1.1 408")
    assert "the headers did not come within 3 s" in json.loads(answer.partition("\r\n\r\n")[2])["error"]["message"]
    assert strict.send() == ""  # nobody asks, so nobody is answered
    assert strict.send(get("localhost")).startswith("HTTP/1.1 200")


def test_a_body_that_comes_too_slowly_is_given_up(strict: Server) -> None:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    head += "Content-Type: application/json\r\nConnection: close\r\nContent-Length: 100\r\n\r\n"
    answer = strict.send(head.encode(), b'{"messages":')
    assert answer.startswith("HTTP/1.1 408")
    assert "did not come within 3 s" in answer


def test_a_name_that_is_not_the_servers_is_refused(strict: Server) -> None:
    for host in ("localhost", f"127.0.0.1:{strict.port}", "[::1]", "GLM.example:80"):
        assert strict.send(get(host)).startswith("HTTP/1.1 200"), host
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "[::2]"):
        answer = strict.send(get(host))
        assert answer.startswith("HTTP/1.1 403"), host
        assert "--allowed-host" in json.loads(answer.partition("\r\n\r\n")[2])["error"]["message"]


def test_too_many_connections_are_refused_until_some_are_closed(strict: Server) -> None:
    address = ("127.0.0.1", strict.port)
    opened = [socket.create_connection(address) for _ in range(4)]
    try:
        for connection in opened:
            connection.sendall(get("localhost").replace(b"close", b"keep-alive"))
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        answer = strict.send(get("localhost"))
    finally:
        for connection in opened:
            connection.close()
    assert answer.startswith("HTTP/1.1 503")
    assert "Retry-After: 1" in answer
    assert "too many connections" in json.loads(answer.partition("\r\n\r\n")[2])["error"]["message"]
    while not strict.send(get("localhost")).startswith("HTTP/1.1 200"):
        pass


def test_what_is_cut_off_at_the_end_is_told_so(tmp_path: Path) -> None:
    told: list[openai.APIError] = []

    def ask_whole(client: openai.OpenAI) -> None:
        with pytest.raises(openai.APIError) as raised:
            client.chat.completions.create(model="base", messages=QUESTION, n=16, **LONG)
        told.append(raised.value)

    with (
        started(tmp_path, "--max-rows", 1, "--drain-s", 0) as server,
        server.client() as client,
        server.client() as other,
    ):
        other.models.list()  # so that it is connected
        asking = threading.Thread(target=ask_whole, args=(other,))
        # Long enough, one at a time, to go on until the others are there; those come behind it.
        stream = client.chat.completions.create(model="base", messages=QUESTION, n=16, stream=True, **LONG)
        next(iter(stream))
        asking.start()
        while running(client) <= 16 and asking.is_alive():
            pass
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="stopped before the reply had ended"):
            list(stream)
        asking.join()
        printed = server.end()
    assert isinstance(told[0], openai.InternalServerError)
    assert told[0].status_code == 503
    assert server.process.returncode == 1
    cut_off = re.search(r"replies cut off: (\d+)", printed)
    assert cut_off
    assert int(cut_off[1]) > 16
    assert "Traceback" not in printed + server.log.read_text(encoding="utf-8")
