"""What the browser may load for the page: nothing from elsewhere."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glmtune.server.limits import is_page

# A message may hold an image, whose address tells its owner that it is read, and what is in it. Not even the page's own
# server is asked for images: Gradio's would fetch those whose address follows `file=`. Gradio needs inline scripts.
_POLICY = {
    "default-src": "'self' 'unsafe-inline' 'unsafe-eval'",
    "img-src": "data: blob:",
    "media-src": "data: blob:",
    "object-src": "'none'",
    "base-uri": "'self'",
    "form-action": "'self'",
}
_HEADER = "; ".join(f"{name} {sources}" for name, sources in _POLICY.items()).encode()


class LoadNothingElsewhere:
    """Sends the page with a Content-Security-Policy, as ASGI middleware. Links may lead anywhere.

    Args:
        app: The application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http" or not is_page(scope["path"]):
            await self._app(scope, receive, send)
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _HEADER)]
            await send(message)

        await self._app(scope, receive, send_with_policy)
