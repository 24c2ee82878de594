"""One line a request, as JSON, and its metrics. Neither texts nor keys are ever in it."""

import json
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from queue import Full, Queue
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glmtune.server.connections import GONE
from glmtune.server.limits import is_page
from glmtune.server.metrics import Metrics

_KEY = "glmtune.record"
Write = Callable[["RequestRecord"], None]


@dataclass
class RequestRecord:
    """What is known of a request once it is over.

    Attributes:
        client: The client's address; None for the page's chats, which are known by their path alone.
        method: Its HTTP method; None where it never came that far.
        path: Its path, without the query; None likewise.
        status: The HTTP status.
        model: The model's name.
        user: What the client has called its user.
        prompt_tokens: Tokens of the prompts.
        completion_tokens: Tokens of the replies.
        first_token_at: When the first token came, by the monotonic clock.
        finish: Why the replies ended.
        is_cancelled: Whether the client went away.
    """

    client: str | None
    method: str | None = None
    path: str | None = None
    request_id: str = field(default_factory=lambda: f"req_{secrets.token_hex(8)}")
    begin: float = field(default_factory=time.monotonic)
    status: int = 0
    model: str | None = None
    user: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_at: float | None = None
    finish: str | None = None
    is_cancelled: bool = False

    def line(self) -> str:
        """The log's line."""
        values = {
            "time": _now(),
            "request": self.request_id,
            "client": self.client,
            "method": self.method,
            "path": self.path and self.path[:200],
            "status": GONE if self.is_cancelled else self.status,
            "model": self.model,
            "user": self.user,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "first_token_ms": None if self.first_token_at is None else self._ms(self.first_token_at),
            "ms": self._ms(time.monotonic()),
            "finish": self.finish,
        }
        return json.dumps({name: value for name, value in values.items() if value not in (None, 0)})

    def _ms(self, at: float) -> float:
        return round(1e3 * (at - self.begin), 1)


def record_of(scope: Scope) -> RequestRecord:
    """The record of a request that passes through `RecordRequests`."""
    record: RequestRecord = scope[_KEY]
    return record


class RecordRequests:
    """Keeps a record of each request, as ASGI middleware, and gives each answer its id.

    Args:
        app: The application.
        metrics: What counts them.
        write: Is given each record once its answer is complete.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, write: Write) -> None:
        self._app = app
        self._metrics = metrics
        self._write = write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http" or is_page(scope["path"]):  # its questions are many, and mostly about itself
            await self._app(scope, receive, send)
            return
        client = (scope.get("client") or ("",))[0]
        record = scope[_KEY] = RequestRecord(client, scope["method"], scope["path"])

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", record.request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            record.status = record.status or 500  # it is answered further out
            raise
        finally:
            route = scope.get("route")
            end_record(record, self._metrics, self._write, "other" if route is None else str(route.path))


def end_record(record: RequestRecord, metrics: Metrics, write: Write, path: str = "other") -> None:
    """Counts and logs a request that is over.

    Args:
        record: Its record.
        metrics: What counts it.
        write: Is given the record.
        path: The path of its route; what clients make up must not become a label.
    """
    metrics.requests.labels(path, str(GONE if record.is_cancelled else record.status)).inc()
    metrics.request_seconds.labels(path).observe(time.monotonic() - record.begin)
    if record.is_cancelled:
        metrics.cancelled.inc()
    if record.model is not None:
        metrics.prompt_tokens.labels(record.model).inc(record.prompt_tokens)
        metrics.completion_tokens.labels(record.model).inc(record.completion_tokens)
    if record.first_token_at is not None:
        metrics.first_token_seconds.observe(record.first_token_at - record.begin)
    write(record)


class _Stream(Protocol):
    def write(self, data: bytes, /) -> object: ...


class RequestLog:
    """Writes each record as a line, in a thread of its own: a stream that is not read must not stop the server.

    Lines that find the queue full are dropped; how many is told in a line of its own as soon as there is room.

    Args:
        stream: An unbuffered stream. One that is gone is no reason to stop serving.
        max_lines: The most lines that wait.
    """

    def __init__(self, stream: _Stream, max_lines: int = 10_000) -> None:
        self._stream = stream
        self._lines: Queue[bytes | None] = Queue(max_lines)
        self._num_dropped = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def __call__(self, record: RequestRecord) -> None:
        """Adds a record's line; does not wait."""
        try:
            self._lines.put_nowait(f"{record.line()}\n".encode())
        except Full:
            self._num_dropped += 1

    def close(self, timeout_s: float = 2.0) -> bool:
        """Writes what is left.

        Args:
            timeout_s: How long to wait for the stream, in seconds.

        Returns:
            Whether all of it has been written.
        """
        with suppress(Full):
            self._lines.put(None, timeout=timeout_s)
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        num_told = 0
        while (line := self._lines.get()) is not None:
            self._write(line)
            if num_told < (num_dropped := self._num_dropped):
                dropped = {"time": _now(), "dropped_lines": num_dropped - num_told}
                self._write(f"{json.dumps(dropped)}\n".encode())
                num_told = num_dropped

    def _write(self, line: bytes) -> None:
        with suppress(OSError, ValueError):
            self._stream.write(line)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
