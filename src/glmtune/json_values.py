"""Reads the fields of an object, such as a row of data, with one-sentence errors for what is wrong with them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glmtune.errors import DataError, show_names, show_text

MAX_DEPTH = 100  # nested brackets; far below Python's recursion limit
_CONTAINERS = (list, tuple, dict)


@dataclass(frozen=True)
class Unreadable:
    """Stands for a value of a file that has no Python form, such as a date beyond the year 9999.

    It is an error only where the value is used. Converted to text, it gives the reason.
    """

    reason: str

    def __str__(self) -> str:
        return self.reason


def read_text(values: Mapping[str, Any], name: str, *, may_be_empty: bool = False, advice: str = "Add it") -> str:
    """Reads a required text.

    Args:
        values: An object in the data.
        name: The key of the text.
        may_be_empty: Whether empty text, or nothing but white space, is allowed.
        advice: What to do if the key is missing.

    Returns:
        The text, unchanged.

    Raises:
        DataError: It is missing, not a string, empty, or not valid Unicode.
    """
    if values.get(name) is None:
        state = "null" if name in values else "missing"
        raise DataError(f'"{name}" is {state}; found: {show_names(values) or "nothing"}. {advice}')
    value = values[name]
    if not isinstance(value, str):
        raise DataError(f'"{name}" has to be a string, found {json_type(value)}: {shorten(value)}')
    check_unicode(value, name)
    if not may_be_empty and not value.strip():
        raise DataError(f'"{name}" is empty. Fill it in or remove the row')
    return value


def read_optional_text(values: Mapping[str, Any], name: str) -> str:
    """Reads an optional text; the empty string if it is missing, null or empty.

    Raises:
        DataError: It is present but not a string.
    """
    return "" if values.get(name) is None else read_text(values, name, may_be_empty=True)


def read_list(values: Mapping[str, Any], name: str) -> list[Any]:
    """Reads an array, also one in JSON text, the only form a CSV cell can hold; empty if missing, null or empty.

    Raises:
        DataError: It is present but not an array.
    """
    value = values.get(name)
    if value is None or value == "":
        return []
    if isinstance(value, str):
        value = parse_json(value, name)
    if not isinstance(value, list):
        raise DataError(f'"{name}" has to be an array, found {json_type(value)}: {shorten(value)}')
    return value


def parse_json(text: str, name: str) -> Any:
    """Parses JSON text inside a field.

    Raises:
        DataError: It is not JSON, or nested too deeply.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f'"{name}" has to be JSON text, found {shorten(text)}: {error}') from error
    _check_depth(value, name)
    return value


def write_json(value: Any, name: str) -> str:
    """Converts a value to JSON text for the model, such as the result of a tool.

    Raises:
        DataError: It has no JSON form (such as NaN, or a date in a Parquet file), is nested too deeply, or is not
            valid Unicode.
    """
    _check_depth(value, name)
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f'"{name}" may contain JSON values only: {error}') from error
    check_unicode(text, name)
    return text


def check_unicode(text: str, name: str) -> None:
    r"""Refuses text that no tokenizer can encode: half of a surrogate pair, such as a lone `\ud83d` in JSON.

    Raises:
        DataError: The text contains such a half.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])[1:-1]
        raise DataError(f'"{name}" holds {half}, half of a surrogate pair, at character {error.start + 1}') from error


def is_too_deep(value: Any) -> bool:
    """Whether arrays and objects are nested more than `MAX_DEPTH` deep."""
    level = [value] if isinstance(value, _CONTAINERS) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return False
        inside = (each.values() if isinstance(each, dict) else each for each in level)
        level = [item for items in inside for item in items if isinstance(item, _CONTAINERS)]
    return bool(level)


def _check_depth(value: Any, name: str) -> None:
    if is_too_deep(value):
        raise DataError(f'"{name}" is nested more than {MAX_DEPTH} brackets deep')


def json_type(value: Any) -> str:
    """The JSON type of a value, with its article: `a string`, `an array`, ..."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, Unreadable):
        return "a value that cannot be read"
    names = {str: "a string", dict: "an object", list: "an array", int: "a number", float: "a number"}
    return names.get(type(value), "null" if value is None else f"a {type(value).__name__}")


def shorten(value: Any) -> str:
    """A value as JSON, safe for a terminal and short enough for a sentence."""
    if isinstance(value, Unreadable):
        return show_text(value.reason, 200)
    return show_text(json.dumps(value, ensure_ascii=False, default=str), 60)
