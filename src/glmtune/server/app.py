"""The HTTP application: routes, their description, and errors in one form."""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from glmtune import __version__
from glmtune.errors import AdapterError, show_text
from glmtune.server.answers import (
    ChatAnswer,
    DeletedModel,
    Health,
    ModelAnswer,
    ModelList,
    TextAnswer,
)
from glmtune.server.completions import answer_chat, answer_text
from glmtune.server.errors import MOST_SHOWN, ApiError, ErrorAnswer, not_json
from glmtune.server.limits import CheckHost, LimitBodies, RequireKey
from glmtune.server.models import ServedModel
from glmtune.server.prompting import away_from_loop, chat_length, chat_prompt, text_prompt
from glmtune.server.protocol import (
    AdapterRequest,
    ChatRequest,
    CompletionRequest,
    TokenizeAnswer,
    TokenizeRequest,
)
from glmtune.server.requests import RecordRequests
from glmtune.server.service import Service
from glmtune.server.validation import invalid_request

MAX_BODY_BYTES = 2**20
BODY_TIMEOUT_S = 20.0
_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "The request is at fault; `error.param` names the field."},
    "5XX": {"model": ErrorAnswer, "description": "The server could not answer it."},
}
_STREAM = {"text/event-stream": {"schema": {"type": "string"}}}
_FIELDS: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/tokenize": TokenizeRequest,
    "/v1/adapters": AdapterRequest,
}


def create_app(
    service: Service,
    *,
    origins: Sequence[str] = (),
    hosts: Collection[str] | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    body_timeout_s: float = BODY_TIMEOUT_S,
) -> FastAPI:
    """The application.

    Args:
        service: What it serves; its worker is started and stopped with the application.
        origins: Web pages from which browsers may call it; none by default.
        hosts: The names and addresses that it answers for; None for any.
        max_body_bytes: The most bytes of a body.
        body_timeout_s: By when a body has to be there, in seconds.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        service.worker.stop()

    # Its own pages load scripts from elsewhere; the description itself is at /openapi.json.
    app = FastAPI(title="glmtune", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    _add_completions(app, service)
    _add_models(app, service)
    _add_state(app, service)
    _add_error_handlers(app)
    app.add_middleware(LimitBodies, max_bytes=max_body_bytes, timeout_s=body_timeout_s)
    app.add_middleware(RequireKey, keys=service.keys)
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"])
    if hosts is not None:
        app.add_middleware(CheckHost, allowed=hosts)
    app.add_middleware(RecordRequests, metrics=service.metrics, write=service.write)
    return app


def _add_completions(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", response_model=ChatAnswer, responses={200: {"content": _STREAM}, **_ERRORS})
    async def chat(request: Request, body: ChatRequest) -> Response:
        """Answers a conversation, at once or as server-sent events."""
        return await answer_chat(service, request, body)

    @app.post("/v1/completions", response_model=TextAnswer, responses={200: {"content": _STREAM}, **_ERRORS})
    async def complete(request: Request, body: CompletionRequest) -> Response:
        """Continues text as it is."""
        return await answer_text(service, request, body)

    @app.post("/tokenize", responses=_ERRORS)
    async def tokenize(body: TokenizeRequest) -> TokenizeAnswer:
        """The ids of a text, or of a conversation as it would be rendered."""
        models = service.models
        served, messages, text = models.get(body.model), body.messages, body.prompt or ""
        if messages is not None:
            length = chat_length(messages, body.tools)
            tokens = await away_from_loop(length, lambda: chat_prompt(models, served, messages, body.tools))
        else:
            tokens = await away_from_loop(len(text), lambda: text_prompt(models, text))
        return TokenizeAnswer(tokens=tokens, count=len(tokens), max_model_len=models.max_length)


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", responses=_ERRORS)
    async def list_models() -> ModelList:
        """What requests may name as their model."""
        return ModelList(data=[_shown(model) for model in service.models.served])

    @app.get("/v1/models/{name}", responses=_ERRORS)
    async def get_model(name: str) -> ModelAnswer:
        """One of them."""
        return _shown(service.models.get(name))

    @app.post("/v1/adapters", responses=_ERRORS)
    async def load_adapter(body: AdapterRequest) -> ModelAnswer:
        """Loads an adapter from one of the folders that the server allows."""
        name, folder = service.models.find_allowed(body.path, body.name)
        try:
            return _shown(await asyncio.to_thread(service.models.add_new, name, folder))
        except AdapterError as error:
            raise ApiError(f"the adapter cannot be loaded: {error}", param="path") from error

    @app.delete("/v1/adapters/{name}", responses=_ERRORS)
    async def unload_adapter(name: str) -> DeletedModel:
        """Takes an adapter out that no request uses."""
        await asyncio.to_thread(service.models.remove, name)
        return DeletedModel(id=name)


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health", responses={503: {"model": Health}})
    async def health() -> Response:
        """Whether requests are answered; needs no key."""
        status = "ok" if service.takes_requests else "stopping"
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    @app.get("/metrics", responses={200: {"content": {"text/plain": {}}}, **_ERRORS}, response_class=Response)
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _shown(model: ServedModel) -> ModelAnswer:
    return ModelAnswer(id=model.name, created=model.created)


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> Response:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        content_type = request.headers.get("content-type", "")
        if request.method == "POST" and not _is_json(content_type):
            refused = not_json(content_type)
            return JSONResponse(refused.body, refused.status)
        model = _FIELDS.get(request.url.path)
        fields = () if model is None else model.model_fields
        refused = invalid_request(error.errors(), fields)
        return JSONResponse(refused.body, refused.status)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        detail = str(error.detail)
        if error.status_code == 400:  # FastAPI's, for what the JSON module cannot read
            detail = "the body cannot be read: it is nested too deeply, or has a number of too many digits"
        if error.status_code in (404, 405):
            path = show_text(request.url.path, MOST_SHOWN)
            hint = f"did you mean /v1{path}?" if f"/v1{path}" in _FIELDS else "see /openapi.json"
            detail = f"there is no {request.method} {path} here; {hint}"
        refused = ApiError(detail, status=error.status_code)
        return JSONResponse(refused.body, refused.status, error.headers)

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> Response:  # its traceback goes to the log
        return JSONResponse(ApiError("an error in the server; its log says more", status=500).body, 500)
