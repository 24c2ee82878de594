"""Answers to clients that may go away at any time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Answer = TypeVar("Answer")
GONE = 499  # nginx's status for a client that did not wait; it is only logged


async def _gone(receive: Receive) -> None:
    """Returns once the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(receive: Receive, answer: Awaitable[Answer]) -> Answer | None:
    """An answer, or None as soon as the client has gone away; the answer is then cancelled.

    Args:
        receive: The request's, whose body has been read.
        answer: What is being worked on.
    """
    working, gone = asyncio.ensure_future(answer), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, gone):
            task.cancel()


class EventStream(Response):
    """Server-sent events, which end as soon as the client goes away.

    Args:
        events: One or several events at a time, each a whole `data: ...` with its empty line; closed in any case.
        on_gone: Called if the client has not waited for the end.
        on_end: Called at last in any case, also if no event has been asked for yet.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], on_gone: Callable[[], None], on_end: Callable[[], None]) -> None:
        self.status_code = 200
        self.background = None
        # X-Accel-Buffering: nginx would collect the events otherwise.
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._events = events
        self._on_gone = on_gone
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events."""
        sending, gone = asyncio.ensure_future(self._send(send)), asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            else:
                self._on_gone()
        finally:
            for task in (sending, gone):
                task.cancel()
            try:
                await asyncio.wait((sending,))
            finally:
                self._on_end()

    async def _send(self, send: Send) -> None:
        closing: Any = self._events
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for event in self._events:
                await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await closing.aclose()
