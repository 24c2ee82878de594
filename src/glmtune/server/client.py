"""A conversation with a server, by the standard library alone: `glmtune chat --url` needs no extra."""

import http.client
import json
import os
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import SplitResult, urlsplit

from glmtune.errors import ConfigError, ModelError, show_text
from glmtune.prompts import Message
from glmtune.server.auth import VARIABLE

_TIMEOUT_S = 600
_DONE = b"data: [DONE]"
# What the server calls otherwise than transformers does.
_NAMES = {"max_new_tokens": "max_tokens"}
_OPTIONS = (
    *("max_new_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
    *("presence_penalty", "frequency_penalty", "seed"),
)


class RemoteChat:
    """A conversation like `glmtune.Chat`, answered by a server.

    When it exceeds the model's context, the oldest exchanges are left out of what is sent but stay in the history.

    Args:
        url: The server's address, with or without `/v1`.
        model: The model's name; None for the server's first.
        system: The system prompt; None for the run's own.
        **options: Sampling options by their transformers names.

    Attributes:
        history: The messages so far, without the system prompt.
        system: The system prompt; None for the run's own.

    Raises:
        ConfigError: The address is none, or an option is unknown.
    """

    # The server refuses messages that it cannot read whole, so none is shortened.
    num_cut_tokens = max_prompt_tokens = 0

    def __init__(self, url: str, model: str | None = None, system: str | None = None, **options: Any) -> None:
        self._parts = parts = _split(url)
        self.history: list[Message] = []
        self.system = system
        self._path = parts.path.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"
        self._fields = {**_fields(options), **({} if model is None else {"model": model})}

    def stream(self, text: str) -> Generator[str, None, None]:
        """Sends a message and yields the reply as it comes.

        Closing the generator ends the reply, at the server too; what there is of it stays in the history.

        Args:
            text: The message.

        Raises:
            ModelError: The server refuses, cannot be reached, or breaks off. The history stays as it was.
        """
        message, reply, is_done = Message("user", text), "", False
        try:
            with self._answer([*self.history, message]) as lines:
                for line in lines:
                    is_done = is_done or line.strip() == _DONE
                    if piece := _piece(line):
                        reply += piece
                        yield piece
        except (GeneratorExit, KeyboardInterrupt):
            if reply:
                self.history += [message, Message("assistant", reply)]
            raise
        if not is_done:
            raise ModelError("the server has broken off before the end of the reply; ask again")
        self.history += [message, Message("assistant", reply)]

    def reset(self) -> None:
        """Clears the history; the system prompt stays."""
        self.history.clear()

    @contextmanager
    def _answer(self, messages: list[Message]) -> Generator[Generator[bytes, None, None], None, None]:
        """The lines of the answer; the oldest exchanges are left out if it does not fit otherwise."""
        with closing(self._connect()) as connection:
            try:
                while (response := self._send(connection, messages)).status != 200:
                    error = _read_error(response)
                    if error.get("code") != "context_length_exceeded" or len(messages) < 3:
                        raise ModelError(f"the server answers {response.status}: {_shown(error)}")
                    messages = messages[2:]
                yield _lines(response)
            except (OSError, http.client.HTTPException) as error:
                address = self._parts.netloc.rpartition("@")[2]
                raise ModelError(
                    f"the server at {address} cannot be reached: {error or type(error).__name__}"
                ) from error

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        return kind(self._parts.hostname or "", self._parts.port, timeout=_TIMEOUT_S)

    def _send(self, connection: http.client.HTTPConnection, messages: list[Message]) -> http.client.HTTPResponse:
        sent = [{"role": message.role, "content": message.content} for message in messages]
        if self.system is not None:
            sent = [{"role": "system", "content": self.system}, *sent]
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        body = json.dumps({**self._fields, "messages": sent, "stream": True})
        connection.request("POST", self._path, body, headers)
        return connection.getresponse()


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # half an IPv6 address, or a port that is none
        is_address = False
    if not is_address:
        raise ConfigError(f"--url: expected an address such as http://127.0.0.1:8000, found {show_text(url, 80)}")
    return parts


def _fields(options: Mapping[str, Any]) -> dict[str, Any]:
    options = {name: value for name, value in options.items() if value is not None}
    if options.pop("do_sample", False):
        options.setdefault("temperature", 1.0)
    if unknown := [name for name in options if name not in _OPTIONS]:
        raise ConfigError(f"{', '.join(unknown)}: not an option of the server; it has {', '.join(_OPTIONS)}")
    return {_NAMES.get(name, name): value for name, value in options.items()}


def _lines(response: http.client.HTTPResponse) -> Generator[bytes, None, None]:
    while line := response.readline():
        yield line


def _piece(line: bytes) -> str:
    """The text that a line of the stream brings.

    Raises:
        ModelError: It says that something has gone wrong.
    """
    line = line.strip()
    if line in (b"", _DONE) or line.startswith(b":"):  # a comment, by which proxies keep connections open
        return ""
    data = line.removeprefix(b"data: ")
    try:
        chunk = json.loads(data)
        if "error" in chunk:
            raise ModelError(f"the server says: {_shown(chunk['error'])}")
        choices = chunk["choices"]
        return str(choices[0]["delta"].get("content") or "") if choices else ""
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"the server's answer is not that of an OpenAI API: {show_text(str(data), 80)}") from error


def _read_error(response: http.client.HTTPResponse) -> dict[str, Any]:
    text = response.read()
    try:
        error = json.loads(text)["error"]
        return error if isinstance(error, dict) else {"message": str(error)}
    except (ValueError, LookupError, TypeError):
        return {"message": show_text(text.decode("utf-8", "replace"), 200)}


def _shown(error: Mapping[str, Any]) -> str:
    return show_text(str(error.get("message", "")), 500)
