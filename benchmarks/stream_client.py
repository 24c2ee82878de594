"""A client of the server that costs little: asyncio's streams, HTTP/1.1, one connection a request."""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Received:
    """What a request has brought.

    Attributes:
        status: The HTTP status; 0 if the connection broke.
        text: All text.
        num_tokens: Tokens, as the server counts them.
        first_s: Seconds to the first text.
        seconds: Seconds to the end.
        headers: The answer's headers.
    """

    status: int = 0
    text: str = ""
    num_tokens: int = 0
    first_s: float = 0.0
    seconds: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


async def post(port: int, path: str, body: Mapping[str, Any], *, vanish_after_first: bool = False) -> Received:
    """Sends a request and reads its answer, streamed or not.

    Args:
        port: The server's, on this machine.
        path: The path.
        body: The request.
        vanish_after_first: Whether to close the connection at the first event.
    """
    received, begin = Received(), time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    try:
        received.status = int((await reader.readline()).split()[1])
        while (line := await reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode().partition(":")
            received.headers[name.lower()] = value.strip()
        if body.get("stream") and received.status == 200:
            await _read_events(reader, received, begin, vanish_after_first)
        else:
            text = await reader.read()
            received.text = text.decode()
    finally:
        writer.close()
    received.seconds = time.perf_counter() - begin
    return received


async def _read_events(reader: asyncio.StreamReader, received: Received, begin: float, vanish: bool) -> None:
    """Reads events; the sizes of HTTP's chunks are lines of their own, which begin with no `data:`."""
    while line := await reader.readline():
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if event.get("usage"):
            received.num_tokens = event["usage"]["completion_tokens"]
        for choice in event.get("choices", ()):
            text = choice["delta"].get("content") if "delta" in choice else choice["text"]
            if text and not received.first_s:
                received.first_s = time.perf_counter() - begin
            received.text += text or ""
        if "error" in event:
            received.status = 500
        if vanish and received.text:
            return


async def get(port: int, path: str) -> str:
    """The body of an answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    return answer.partition("\r\n\r\n")[2]
