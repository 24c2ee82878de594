"""The one thread that steps the engine, and the requests that wait for what it brings.

Everything but the thread itself runs on the event loop. The thread is given commands, which it carries out between two
steps, so that the loop never waits for a step.
"""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from glmtune.errors import GlmtuneError, ModelError
from glmtune.inference.engine.engine import Engine, Event
from glmtune.inference.engine.request import Request, RunningRequest

_logger = logging.getLogger(__name__)
_RECENT = 0.1  # the share of the newest reply in the mean time that replies take
_LONGEST_WAIT_S = 60


class QueueFullError(Exception):
    """Too many requests are waiting.

    Args:
        retry_after_s: When there may be room.
    """

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s


class RefusedError(Exception):
    """The engine does not take a request; the message says why."""


class Ticket:
    """A request in the worker's hands.

    Args:
        request: The request.
        is_whole: Whether the reply is read only when complete, so the consumer is not woken per token.
    """

    def __init__(self, request: Request, is_whole: bool) -> None:
        self.request = request
        self.first_token_at: float | None = None
        self._is_whole = is_whole
        self._events: deque[Event] = deque()
        self._error: Exception | None = None
        self._has_ended = self._is_awaited = False
        self._ready = asyncio.Event()

    async def take(self) -> list[Event]:
        """What has come since the last time, at least one event; the last of them has a `finish_reason`.

        Raises:
            RefusedError: The engine does not take the request.
            GlmtuneError: It could not go on with it.
        """
        self._is_awaited = True  # set before checking, to avoid a lost wake-up
        while not self._has_news:
            self._ready.clear()
            await self._ready.wait()
        self._is_awaited = False
        if self._error is not None:
            raise self._error
        return [self._events.popleft() for _ in range(len(self._events))]

    async def pause(self, seconds: float) -> None:
        """Waits, but not beyond the end of the reply."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._has_ended and self._error is None:
                    self._ready.clear()
                    await self._ready.wait()

    def add(self, event: Event) -> bool:
        """Adds what a step has brought; called in the engine's thread.

        Returns:
            Whether to wake the consumer: it waits for the event, or this was the last one.
        """
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()
        if event.error is not None:
            self._error = event.error
        self._events.append(event)
        self._has_ended = event.finish_reason is not None
        return self._has_ended or (self._is_awaited and not self._is_whole)

    def wake(self) -> None:
        """Lets `take` look again; called on the event loop."""
        self._ready.set()

    def fail(self, error: Exception) -> None:
        """Ends it with an error; called on the event loop."""
        self._error = error
        self._ready.set()

    @property
    def has_ended(self) -> bool:
        """Whether the engine has nothing more to add."""
        return self._has_ended

    @property
    def _has_news(self) -> bool:
        has_event = self._has_ended if self._is_whole else bool(self._events)
        return has_event or self._error is not None


class Worker:
    """Steps an engine for requests of an event loop.

    Args:
        engine: The engine; only the worker steps it.
        max_queue: The most requests that wait, beside those that the engine runs at once.
    """

    def __init__(self, engine: Engine, max_queue: int) -> None:
        self._engine = engine
        self._most = engine.max_rows + max_queue
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._wake = threading.Condition()
        self._commands: deque[Callable[[], None]] = deque()
        self._is_stopping = False
        self._active: set[Ticket] = set()  # the loop's
        self._running: dict[RunningRequest, Ticket] = {}  # the thread's, as is the next
        self._submitted: dict[Ticket, RunningRequest] = {}
        self._reply_s = 1.0

    @property
    def is_alive(self) -> bool:
        """Whether requests are being worked on."""
        return self._thread.is_alive() and not self._is_stopping

    @property
    def num_active(self) -> int:
        """Requests that have neither ended nor been cancelled."""
        return len(self._active)

    def start(self) -> None:
        """Starts the thread; called on the event loop that requests come from."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the current step; what still runs is cancelled."""
        self._is_stopping = True
        self._command(lambda: None)
        self._thread.join()

    def submit(self, requests: Sequence[Request], *, is_whole: bool) -> list[Ticket]:
        """Takes requests, all or none.

        Args:
            requests: The requests.
            is_whole: As for `Ticket`.

        Raises:
            QueueFullError: Too many are waiting.
        """
        if len(self._active) + len(requests) > self._most:
            waiting = len(self._active) + len(requests) - self._engine.max_rows
            seconds = math.ceil(self._reply_s * waiting / self._engine.max_rows)
            raise QueueFullError(max(1, min(seconds, _LONGEST_WAIT_S)))
        tickets = [Ticket(request, is_whole) for request in requests]
        self._active.update(tickets)
        self._command(lambda: self._submit(tickets))
        return tickets

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Gives up requests that have not ended; their places are free after the current step."""
        left = [ticket for ticket in tickets if ticket in self._active]
        if left:
            self._active.difference_update(left)
            self._command(lambda: self._cancel(left))

    def end_all(self, error: Exception) -> int:
        """Ends all requests with an error.

        Returns:
            How many there were.
        """
        left = list(self._active)
        self.cancel(left)
        for ticket in left:
            ticket.fail(error)
        return len(left)

    def _command(self, command: Callable[[], None]) -> None:
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    # On the loop, at the thread's request

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed, and no request waits any more
                self._loop.call_soon_threadsafe(function, *arguments)

    def _tell_news(self, tickets: Sequence[Ticket]) -> None:
        now = time.monotonic()
        for ticket in tickets:
            if ticket.has_ended and ticket in self._active:
                self._active.discard(ticket)
                self._reply_s += _RECENT * (now - (ticket.first_token_at or now) - self._reply_s)
            ticket.wake()

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        self._active.discard(ticket)
        ticket.fail(error)

    def _fail_all(self, error: Exception) -> None:
        for ticket in list(self._active):
            self._fail(ticket, error)

    # In the thread

    def _run(self) -> None:
        try:
            self._work()
        except Exception:  # such as a device that answers with errors alone from now on
            _logger.exception("The engine cannot go on; start the server again.")
            self._is_stopping = True
            self._tell(self._fail_all, ModelError("an error in the server; its log says more"))

    def _work(self) -> None:
        while not self._is_stopping:
            with self._wake:
                while not self._commands and not self._running:
                    self._wake.wait()
                commands = list(self._commands)
                self._commands.clear()
            for command in commands:
                command()
            if self._running:
                self._step()
        self._cancel(list(self._submitted))

    def _submit(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            try:
                running = self._engine.submit(ticket.request)
            except GlmtuneError as error:
                self._tell(self._fail, ticket, RefusedError(str(error)))
            except Exception:  # a bug, which must not end the thread: no request would be answered any more
                _logger.exception("The engine failed to take a request.")
                self._tell(self._fail, ticket, ModelError("an error in the server; its log says more"))
            else:
                self._running[running], self._submitted[ticket] = ticket, running

    def _cancel(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            running = self._submitted.pop(ticket, None)
            if running is not None:
                del self._running[running]
                self._engine.cancel(running)

    def _step(self) -> None:
        try:
            events = self._engine.step()
        except Exception as error:
            if not any(running.finish_reason for running in self._running):
                raise  # nothing has ended, so the next step would fail as well
            if not isinstance(error, GlmtuneError):
                _logger.exception("A step of the engine failed.")
            # Replies that had just ended, whose last tokens are lost, have no error of their own.
            lost = ModelError("the end of the reply was lost through an error in the server; ask again")
            events = [
                Event(running, [], "error", error=running.error or lost)
                for running in self._running
                if running.finish_reason is not None
            ]
        to_wake = []
        for event in events:
            ticket = self._running.get(event.request)
            if ticket is None:
                continue
            if event.finish_reason is not None:
                del self._running[event.request], self._submitted[ticket]
            if ticket.add(event):
                to_wake.append(ticket)
        if to_wake:
            self._tell(self._tell_news, to_wake)
