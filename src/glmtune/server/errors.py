"""Errors in OpenAI's form, `{"error": {"message", "type", "param", "code"}}`."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
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
_UNSUPPORTED = frozenset(
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
        if name not in _UNSUPPORTED or (value and value not in as_done.get(name, ()))
    }


def not_json(content_type: str) -> ApiError:
    """The error for a body that does not say that it is JSON."""
    found = show_text(content_type, MOST_SHOWN) or "none"
    return ApiError(f"expected a body with Content-Type: application/json, found {found}", status=415)


def invalid_request(faults: Sequence[Mapping[str, Any]], known: Iterable[str]) -> ApiError:
    """The error for a body that does not validate: its first fault.

    Args:
        faults: As pydantic lists them.
        known: The fields that the request has.
    """
    fault = next((each for each in faults if each["type"] == "extra_forbidden"), faults[0])
    place = [part for part in fault["loc"] if part != "body"]
    param = _path(place) or None
    if fault["type"] == "json_invalid":
        return ApiError(f"the body is not JSON: {show_text(str(fault['ctx']['error']), MOST_SHOWN)}")
    if fault["type"] == "extra_forbidden":
        return _unknown_field(str(place[-1]), param or "", list(known) if len(place) == 1 else [])
    if fault["type"] == "missing":
        return ApiError(f"{param or 'the body'} is missing", param=param, code="missing_required_parameter")
    if fault["type"] == "value_error":  # our own
        return ApiError(str(fault["ctx"]["error"]), param=param)
    found = shown_value(fault.get("input"))
    message = fault["msg"][:1].lower() + fault["msg"][1:]
    return ApiError(f"{param or 'the body'}: {show_text(message, 200)}; found {found}", param=param)


def _unknown_field(name: str, param: str, known: Sequence[str]) -> ApiError:
    if name in _UNSUPPORTED:
        return ApiError(f"{param} is not supported by this server; leave it out", param=param, code="unsupported_field")
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean {nearest[0]}?" if nearest else "leave it out"
    return ApiError(f"{param}: unknown field; {hint}", param=param, code="unknown_field")


def _path(place: Iterable[Any]) -> str:
    """`messages[0].content`; the branches of a union, which pydantic names as well, are left out."""
    path = ""
    for part in place:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part and not any(mark in part for mark in "[(") and part not in _BRANCHES:
            path += f".{show_text(part, MOST_SHOWN)}" if path else show_text(part, MOST_SHOWN)
    return path


_BRANCHES = frozenset(("str", "int", "constrained-str", "TextPart", "NamedTool"))


def shown_value(value: Any) -> str:
    """A value that a client has sent, short and safe for a message."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        return "an array"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 64:
        return "a number of more than 64 bits"
    return show_text(ascii(value) if isinstance(value, str) else str(value), MOST_SHOWN)
