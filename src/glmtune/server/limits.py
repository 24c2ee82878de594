"""What a request may have before anybody looks into it: a key, and a body that is neither too large nor too slow."""

import asyncio

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glmtune.server.auth import ApiKeys
from glmtune.server.errors import ApiError

_OPEN_PATHS = frozenset(("/health", "/"))
# The page asks for a key itself, and limits what is uploaded.
PAGE_PATH = "/ui"


def is_page(path: str) -> bool:
    """Whether a path belongs to the page in the browser."""
    return path == PAGE_PATH or path.startswith(f"{PAGE_PATH}/")


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
        max_bytes: The most bytes of a body.
        timeout_s: By when all of it has to be there.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http" or is_page(scope["path"]):
            await self._app(scope, receive, send)
            return
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
            if num_bytes > self._max_bytes:
                raise HTTPException(413, f"the body has more than {self._max_bytes:,} bytes")
            is_complete = not message.get("more_body", False)
            return message

        await self._app(scope, limited, send)
