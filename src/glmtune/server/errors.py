"""Errors in OpenAI's form, `{"error": {"message", "type", "param", "code"}}`."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from glmtune.errors import show_text

MOST_SHOWN = 80  # characters of what a client has sent that an error quotes


class ErrorDetail(BaseModel):
    """What was wrong.

    Attributes:
        message: What was expected, what was found, and what to do.
        type: The kind of error.
        param: The field that is wrong.
        code: A word for programs.
    """

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class ApiError(Exception):
    """A request that cannot be answered.

    Args:
        message: One or two sentences for the person who wrote the client.
        status: The HTTP status.
        param: The field that is wrong, such as `messages[0].content`.
        code: A word for programs.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.detail = ErrorDetail(message=message, type=_type_of(status), param=param, code=code)

    @property
    def body(self) -> dict[str, Any]:
        """The answer's body."""
        return {"error": self.detail.model_dump()}


def _type_of(status: int) -> str:
    """OpenAI's word for a kind of error."""
    names = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    return names.get(status, "invalid_request_error" if status < 500 else "server_error")


# Fields of OpenAI's interface that have no counterpart here.
UNSUPPORTED = frozenset(
    (
        *("audio", "best_of", "echo", "function_call", "functions", "logit_bias", "metadata", "modalities"),
        *("moderation", "prediction", "prompt_cache_key", "prompt_cache_retention", "reasoning_effort"),
        *("safety_identifier", "service_tier", "store", "suffix", "verbosity", "web_search_options"),
    )
)


# What asks for nothing but what is done in any case.
_AS_DONE = {"service_tier": ("auto", "default"), "modalities": (["text"],), "verbosity": ("medium",)}


def without_unset(values: Any) -> Any:
    """A request without unsupported fields that ask for nothing: null, false, empty, or what is done anyway."""
    if not isinstance(values, dict):
        return values
    as_done = {**_AS_DONE, "best_of": (values.get("n") or 1,)}
    return {
        name: value
        for name, value in values.items()
        if name not in UNSUPPORTED or (value and value not in as_done.get(name, ()))
    }


def not_json(content_type: str) -> ApiError:
    """The error for a body that does not say that it is JSON."""
    found = show_text(content_type, MOST_SHOWN) or "none"
    return ApiError(f"expected a body with Content-Type: application/json, found {found}", status=415)
