"""Runs the server: its socket, its signals, and what it says."""

import asyncio
import errno
import ipaddress
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from glmtune.errors import ConfigError
from glmtune.server.errors import ApiError
from glmtune.server.http_protocol import limited_protocol
from glmtune.server.requests import end_record
from glmtune.server.service import Service

# How long a thread may keep the interpreter while another one waits for it. With the usual 5 ms, writing to clients
# would hold up the engine for about as long as a step takes.
SWITCH_INTERVAL_S = 0.0005
_REASONS = {
    errno.EADDRINUSE: "another program is using it",
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.EACCES: "the system does not allow it",
}
_BACKLOG = 2048
_LAST_BYTES_S = 1.0
_LOOK_AGAIN_S = 0.05


def open_socket(host: str, port: int) -> socket.socket:
    """Opens the socket before anything is loaded, so that a port in use is known at once.

    Args:
        host: An address or a name.
        port: The port; 0 for any.

    Raises:
        ConfigError: The address or port is unavailable.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = (_REASONS.get(error.errno or 0) if isinstance(error, OSError) else None) or str(error)
        raise ConfigError(
            f"cannot listen on port {port} of {host}: {reason}. Choose another with --port, or --host"
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


def answered_hosts(opened: socket.socket, host: str, further: Sequence[str]) -> list[str] | None:
    """The names and addresses that a server answers for, as browsers write them.

    Args:
        opened: From `open_socket`.
        host: What it was told to listen on.
        further: Names that it was told to answer for.

    Returns:
        The host names to accept; None accepts any, for a server that is open to the network and was told no names.
    """
    if is_open_to_network(opened) and not further:
        return None
    return ["localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host, *further]


class _Server(uvicorn.Server):
    """uvicorn's server, which says what it waits for when it is told to stop."""

    def __init__(
        self, config: uvicorn.Config, service: Service, drain_s: int, say: Callable[[str], None], has_page: bool
    ) -> None:
        super().__init__(config)
        self._service = service
        self._drain_s = drain_s
        self._say = say
        self._has_page = has_page
        self._num_signals = 0
        self.num_cut = 0

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, but requests whose time is up are answered before their connections are closed."""
        ending = asyncio.ensure_future(self._end())
        await super().shutdown(sockets)
        ending.cancel()

    async def _end(self) -> None:
        """Ends what still runs when its time is up, and at last what does not read its answer.

        Open pages, which never close their connections, are not waited for.
        """
        loop, worker = asyncio.get_running_loop(), self._service.worker
        deadline = loop.time() + self._drain_s
        while loop.time() < deadline and self._num_signals < 2 and (worker.num_active or not self._has_page):
            await asyncio.sleep(_LOOK_AGAIN_S)
        self.num_cut = worker.end_all(ApiError("the server was stopped before the reply had ended", status=503))
        await asyncio.sleep(_LAST_BYTES_S)
        # What now fails fails for clients that are to be cut off; that is no error.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await asyncio.sleep(_LAST_BYTES_S)
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
        self._num_signals += 1
        self._service.is_stopping = self.should_exit = True
        if self._num_signals > 1:
            return
        number, seconds = self._service.worker.num_active, self._drain_s
        if number:
            self._say(f"Stopping. Replies that still run: {number}; they have {seconds} s to end.")
        else:
            self._say("Stopping.")


def serve(
    app: ASGIApp,
    service: Service,
    opened: socket.socket,
    say: Callable[[str], None],
    *,
    drain_s: int,
    max_connections: int,
    header_timeout_s: float,
    has_page: bool = False,
) -> bool:
    """Serves until a signal comes.

    Args:
        app: From `create_app`.
        service: Its service.
        opened: From `open_socket`.
        say: Prints a line.
        drain_s: How long replies may still run after the signal, in seconds.
        max_connections: The most connections that are open at once.
        header_timeout_s: Within how many seconds all headers of a request have to come.
        has_page: Whether there is a page, which browsers keep connections open for.

    Returns:
        Whether all replies were finished.
    """
    protocol = limited_protocol(
        max_connections, header_timeout_s, lambda record: end_record(record, service.metrics, service.write)
    )
    # Forwarded headers are not trusted: any client may send them.
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, proxy_headers=False, lifespan="on",
        backlog=_BACKLOG, http=protocol, ws="none",
    )  # fmt: skip
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    server = _Server(config, service, drain_s, say, has_page)
    server.run(sockets=[opened])
    if service.worker.is_alive:  # after a forced end, it has not been stopped yet
        service.worker.stop()
    num_cut = server.num_cut
    say("Stopped; all replies were finished." if not num_cut else f"Stopped; replies cut off: {num_cut}.")
    return not num_cut
