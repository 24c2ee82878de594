"""What a request needs before it is read: the right host, a key, and a body of limited size and time."""

import asyncio
import re
from collections.abc import Collection

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glmtune.errors import show_text
from glmtune.server.auth import ApiKeys
from glmtune.server.errors import MOST_SHOWN, ApiError

_OPEN_PATHS = frozenset(("/health", "/"))
# The page asks for a key itself. Gradio does so before it reads an upload, and limits it, but reads other bodies first.
PAGE_PATH = "/ui"
_UPLOAD_PATH = f"{PAGE_PATH}/gradio_api/upload"
_MOST_PAGE_BYTES = 16 * 2**20  # the page sends its whole conversations


def is_page(path: str) -> bool:
    """Whether a path belongs to the page in the browser."""
    return path == PAGE_PATH or path.startswith(f"{PAGE_PATH}/")


class CheckHost:
    """Answers only where the address that the client has asked for is one of the server's, as ASGI middleware.

    Otherwise a malicious web page, whose name suddenly stands for 127.0.0.1 (DNS rebinding), could read the answers
    of a server that only listens to this machine.

    Args:
        app: The application.
        allowed: The names and addresses, IPv6 ones in brackets.
    """

    def __init__(self, app: ASGIApp, allowed: Collection[str]) -> None:
        self._app = app
        self._allowed = frozenset(host.lower() for host in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        values = [value for name, value in scope["headers"] if name == b"host"]
        hosts = [_without_port(value.decode("latin-1")) for value in values]
        if all(host in self._allowed for host in hosts):  # without one, it is no browser
            await self._app(scope, receive, send)
            return
        shown = show_text(hosts[0], MOST_SHOWN)
        error = ApiError(f"this server is not {shown}; start it with --allowed-host {shown} if it is", status=403)
        await JSONResponse(error.body, error.status)(scope, receive, send)


def _without_port(host: str) -> str:
    return re.sub(r":\d*$", "", host.lower())


class RequireKey:
    """Lets only requests through that have a key, as ASGI middleware; `/health` is open.

    Args:
        app: The application.
        keys: The keys.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http" or _is_open(scope):
            await self._app(scope, receive, send)
            return
        header = next((value for name, value in scope["headers"] if name == b"authorization"), None)
        if self._keys.allow(header):
            await self._app(scope, receive, send)
            return
        state = "missing" if header is None else "wrong"
        error = ApiError(
            f"the API key is {state}; send it as Authorization: Bearer KEY", status=401, code="invalid_api_key"
        )
        answer = JSONResponse(error.body, error.status, {"WWW-Authenticate": "Bearer"})
        await answer(scope, receive, send)


def _is_open(scope: Scope) -> bool:
    return scope["path"] in _OPEN_PATHS or is_page(scope["path"]) or scope["method"] == "OPTIONS"


class LimitBodies:
    """Refuses bodies that are too large or come too slowly, as ASGI middleware.

    Args:
        app: The application.
        max_bytes: The most bytes of a body; the page has a limit of its own.
        timeout_s: By when all of it has to be there.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http" or scope["path"] == _UPLOAD_PATH:
            await self._app(scope, receive, send)
            return
        max_bytes = _MOST_PAGE_BYTES if is_page(scope["path"]) else self._max_bytes
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        num_bytes, is_complete = 0, False

        async def limited() -> Message:
            nonlocal num_bytes, is_complete
            if is_complete:
                return await receive()  # the next is that the client goes away, whenever it does
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the body did not come within {self._timeout_s:g} s") from None
            num_bytes += len(message.get("body", b""))
            if num_bytes > max_bytes:
                raise HTTPException(413, f"the body has more than {max_bytes:,} bytes")
            is_complete = not message.get("more_body", False)
            return message

        await self._app(scope, limited, send)
