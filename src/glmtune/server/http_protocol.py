"""uvicorn's side of a connection, with limits on what has not become a request yet."""

import asyncio
import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from glmtune.server.errors import ApiError
from glmtune.server.requests import RequestRecord

_LINGER_S = 1.0


def limited_protocol(
    max_connections: int, timeout_s: float, on_refused: Callable[[RequestRecord], None]
) -> type[asyncio.Protocol]:
    """A protocol that refuses too many connections, headers that come too slowly, and what is not HTTP.

    Args:
        max_connections: The most connections that are open at once.
        timeout_s: Within how many seconds all headers of a request have to come.
        on_refused: Is given the record of what is answered without the application.
    """

    class LimitedProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        _timer: asyncio.TimerHandle | None = None
        _is_refused = _has_begun = False

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                self._refuse(
                    ApiError("too many connections are open; try again later", status=503, headers={"Retry-After": "1"})
                )
            else:
                self._wait_for_headers()

        def data_received(self, data: bytes) -> None:
            if self._is_refused:
                return
            self._has_begun = True
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_waiting()
            else:
                self._wait_for_headers()

        def send_400_response(self, msg: str) -> None:
            if self.cycle is None or self.cycle.response_complete:
                self._refuse(ApiError("this is no HTTP request that the server can read"))
            else:  # the application has a record of it
                super().send_400_response(msg)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _wait_for_headers(self) -> None:
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(timeout_s, self._give_up)

        def _stop_waiting(self) -> None:
            self._has_begun = False
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _give_up(self) -> None:
            if self._has_begun:
                self._refuse(ApiError(f"the headers did not come within {timeout_s:g} s", status=408))
            else:  # an idle connection, which expects no answer
                self.transport.close()

        def _refuse(self, error: ApiError) -> None:
            """Answers without the application; whatever comes after is not read, or the answer could get lost."""
            self._is_refused = True
            record = RequestRecord(self.client[0] if self.client else "", status=error.status)
            self.transport.write(_raw_answer(error, record.request_id))
            if self.transport.can_write_eof():
                self.transport.write_eof()
            asyncio.get_running_loop().call_later(_LINGER_S, self.transport.abort)
            self._stop_waiting()
            on_refused(record)

    return LimitedProtocol


def _raw_answer(error: ApiError, request_id: str) -> bytes:
    body = json.dumps(error.body).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
    headers |= {**error.headers, "X-Request-Id": request_id}
    lines = [f"{name}: {value}".encode() for name, value in headers.items()]
    first = b"HTTP/1.1 %d %s" % (error.status, HTTPStatus(error.status).phrase.encode())
    return b"\r\n".join((first, *lines, b"", body))
