"""What is wrong with a body, in one sentence for the developer of the client."""

import difflib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from glmtune.errors import show_text
from glmtune.server.errors import MOST_SHOWN, UNSUPPORTED, ApiError

Fault = Mapping[str, Any]

# What was expected, by pydantic's type of fault.
_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
_OTHERS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than": lambda limit: f"a number above {_number(limit['gt'])}",
    "greater_than_equal": lambda limit: f"a number of at least {_number(limit['ge'])}",
    "less_than": lambda limit: f"a number below {_number(limit['lt'])}",
    "less_than_equal": lambda limit: f"a number of at most {_number(limit['le'])}",
    "string_too_short": lambda _: "a text that is not empty",
    "string_too_long": lambda limit: f"a text of at most {limit['max_length']:,} characters",
    "string_pattern_mismatch": lambda _: "a text without white space",
    "string_unicode": lambda _: "valid Unicode",
    "too_short": lambda _: "an array that is not empty",
    "too_long": lambda limit: f"an array of at most {limit['max_length']:,} items",
    "literal_error": lambda limit: limit["expected"].replace("False", "false").replace("'", '"'),
    "none_required": lambda _: "null",
}
# The branches of a union, which pydantic names among the parts of a place, beside those with brackets.
_BRANCHES = frozenset(("str", "int", "constrained-str", "TextPart", "NamedTool"))


def invalid_request(faults: Sequence[Fault], known: Iterable[str]) -> ApiError:
    """The error for a body that does not validate: its first fault.

    Args:
        faults: As pydantic lists them.
        known: The fields that the request has.
    """
    fault = next((each for each in faults if _is_unknown(each) and len(_place(each)) == 1), faults[0])
    same = [fault] if _is_unknown(fault) else _of_one_field(faults, _parts(fault))
    fault = max(same, key=_rank)
    kind, place, values = fault["type"], _place(fault), fault.get("ctx", {})
    param = _path(_parts(fault)) or None
    where = param or "the body"
    if kind == "json_invalid":
        error = show_text(str(values["error"]), MOST_SHOWN)
        return ApiError(f"the body is not JSON: {error}, at character {int(place[-1]) + 1:,}")
    if kind == "extra_forbidden":
        return _unknown_field(str(place[-1]), param or "", list(known) if len(place) == 1 else [])
    if kind == "missing":
        return ApiError(f"{where} is missing", param=param, code="missing_required_parameter")
    if kind == "value_error":  # our own
        return ApiError(str(values["error"]), param=param)
    if kind in _TYPES:
        expected = [_TYPES[each["type"]] for each in same if each["type"] in _TYPES and _rank(each) == _rank(fault)]
        message = " or ".join(dict.fromkeys(expected))
    elif kind in _OTHERS:
        message = _OTHERS[kind](values)
    else:
        message = show_text(fault["msg"], 200)
    return ApiError(f"{where}: expected {message}; found {_shown(fault.get('input'))}", param=param)


def _is_unknown(fault: Fault) -> bool:
    return bool(fault["type"] == "extra_forbidden")


def _place(fault: Fault) -> list[str | int]:
    return [part for part in fault["loc"] if part != "body"]


def _parts(fault: Fault) -> list[str | int]:
    """Where a fault is, without the branches of unions."""
    place = _place(fault)
    last = [place.pop()] if _is_unknown(fault) else []  # made up by the client, and no branch
    return [part for part in place if isinstance(part, int) or _is_name(part)] + last


def _is_name(part: str) -> bool:
    return bool(part) and part not in _BRANCHES and not any(mark in part for mark in "[(")


def _of_one_field(faults: Iterable[Fault], parts: Sequence[str | int]) -> list[Fault]:
    """The faults of a field and of what is in it: where it is a union, each branch has its own."""
    return [each for each in faults if _parts(each)[: len(parts)] == parts]


def _rank(fault: Fault) -> tuple[bool, int, list[int]]:
    """How likely a fault is that of the branch that was meant: one that fits in type, or got furthest."""
    parts = _parts(fault)
    return fault["type"] not in _TYPES, len(parts), [part for part in parts if isinstance(part, int)]


def _unknown_field(name: str, param: str, known: Sequence[str]) -> ApiError:
    if name in UNSUPPORTED:
        return ApiError(f"{param} is not supported by this server; leave it out", param=param, code="unsupported_field")
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean {nearest[0]}?" if nearest else "leave it out"
    return ApiError(f"{param or json.dumps(name)}: unknown field; {hint}", param=param, code="unknown_field")


def _path(parts: Iterable[str | int]) -> str:
    """`messages[0].content`."""
    path = ""
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{show_text(part, MOST_SHOWN)}" if path else show_text(part, MOST_SHOWN)
    return path


def _number(limit: float) -> str:
    return str(int(limit)) if limit == int(limit) else str(limit)


def _shown(value: Any) -> str:
    """A value that a client has sent, as JSON, short and safe for a message."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        return f"an array of length {len(value):,}" if value else "an empty array"
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number of more than 64 bits"
    return show_text(json.dumps(value, ensure_ascii=False), MOST_SHOWN)
