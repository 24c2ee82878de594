"""Runs the server: its socket, its signals, and what it says."""

import asyncio
import ipaddress
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from glmtune.errors import ConfigError
from glmtune.server.service import Service

# How long a thread may keep the interpreter while another one waits for it. With the usual 5 ms, writing to clients
# would hold up the engine for about as long as a step takes.
SWITCH_INTERVAL_S = 0.0005
_BACKLOG = 2048
_LAST_BYTES_S = 1.0


def open_socket(host: str, port: int) -> socket.socket:
    """Opens the socket before anything is loaded, so that a port in use is known at once.

    Args:
        host: An address or a name.
        port: The port; 0 for any.

    Raises:
        ConfigError: It cannot be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"cannot listen on port {port} of {host}: {error}. Choose another with --port, or --host"
        ) from error


def address_of(opened: socket.socket) -> str:
    """The address that a client on this machine uses."""
    host, port = opened.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        return f"http://localhost:{port}"
    return f"http://[{host}]:{port}" if address.version == 6 else f"http://{host}:{port}"


def is_open_to_network(opened: socket.socket) -> bool:
    """Whether other machines can reach it."""
    return not ipaddress.ip_address(opened.getsockname()[0]).is_loopback


class _Server(uvicorn.Server):
    """uvicorn's server, which says what it waits for when it is told to stop."""

    def __init__(self, config: uvicorn.Config, service: Service, say: Callable[[str], None], has_page: bool) -> None:
        super().__init__(config)
        self._service = service
        self._say = say
        self._has_page = has_page
        self.num_signals = 0

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; but open pages, which never close their connections, are not waited for."""
        waiting = asyncio.ensure_future(self._end_pages()) if self._has_page else None
        await super().shutdown(sockets)
        if waiting is not None:
            waiting.cancel()

    async def _end_pages(self) -> None:
        while self._service.worker.num_active:
            await asyncio.sleep(0.1)
        await asyncio.sleep(_LAST_BYTES_S)
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.close()
        await asyncio.sleep(_LAST_BYTES_S)
        # What still runs is the page's own, and is cut off; that is no error.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self.force_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a signal that has been obeyed is not raised again: it would end the process as killed."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stops taking requests; the second signal ends those that run as well."""
        self.num_signals += 1
        self._service.is_stopping = self.should_exit = True
        if self.num_signals > 1:
            self.force_exit = True
            return
        number, seconds = self._service.worker.num_active, self.config.timeout_graceful_shutdown
        if number:
            self._say(f"Stopping. Replies that still run: {number}; they have {seconds} s to end.")
        else:
            self._say("Stopping.")


def serve(
    app: ASGIApp,
    service: Service,
    opened: socket.socket,
    drain_s: int,
    say: Callable[[str], None],
    *,
    has_page: bool = False,
) -> bool:
    """Serves until a signal comes.

    Args:
        app: From `create_app`.
        service: Its service.
        opened: From `open_socket`.
        drain_s: How long replies may still run after the signal, in seconds.
        say: Prints a line.
        has_page: Whether there is a page, which browsers keep connections open for.

    Returns:
        Whether all replies were finished.
    """
    # Forwarded headers are not believed: anybody may send them.
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, proxy_headers=False, lifespan="on",
        timeout_graceful_shutdown=drain_s, backlog=_BACKLOG,
    )  # fmt: skip
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    server = _Server(config, service, say, has_page)
    server.run(sockets=[opened])
    if service.worker.is_alive:  # after a second signal nobody has stopped it
        service.worker.stop()
    num_left = service.num_cut
    say("Stopped; all replies were finished." if not num_left else f"Stopped; replies cut off: {num_left}.")
    return not num_left
