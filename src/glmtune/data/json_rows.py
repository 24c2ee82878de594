"""Rows of JSON text, an array or a row a line. Only what is being parsed is in memory, never the whole file."""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, TextIO

from glmtune.data.rows import Row, RowFault, Source
from glmtune.errors import DataError, show_text
from glmtune.json_values import MAX_DEPTH, is_too_deep, json_type

_Repeated = dict[int, tuple[dict[str, Any], list[str]]]  # objects with duplicate keys, by id, and these keys
_WHITE_SPACE = re.compile(r"[ \t\n\r]*")
_CHUNK = 1 << 20  # characters of an array that are read at a time


def read_json_rows(stream: TextIO, path: str, *, is_array: bool, has_lines: bool) -> Iterator[Row | RowFault]:
    """Reads JSON text. Files named .json often have one row per line, and the other way round.

    Args:
        stream: The text, from its start, in which only `\\n` ends a line.
        path: Its name, for messages.
        is_array: Whether its first letter is an opening square bracket.
        has_lines: Whether it must have a row per line otherwise.

    Yields:
        Each row, and a sentence for each thing that is wrong with one.

    Raises:
        DataError: It is no JSON.
    """
    if is_array:
        return _read_array(stream, path)
    is_lines = has_lines or _is_object_a_line(stream)
    stream.seek(0)
    if is_lines:
        return _read_lines(stream, path)
    name = show_text(path)
    value, _ = _parse(stream.read(), name, first_line=1)
    raise DataError(f"{name}: expected an array of rows at the top level, found {json_type(value)}{_advice(value)}")


def _is_object_a_line(stream: TextIO) -> bool:
    """Whether more than one line has text and the first such line is a JSON object by itself."""
    lines = (line for line in iter(stream.readline, "") if line.strip())
    try:
        return isinstance(json.loads(next(lines)), dict) and any(True for _ in lines)
    except (ValueError, RecursionError):
        return False


def _advice(value: Any) -> str:
    if not isinstance(value, dict):
        return ""
    for key, item in value.items():
        if isinstance(item, list) and item and isinstance(item[0], dict):
            return f'; its "{show_text(key, 60)}" holds an array of {len(item)}. Write that array alone into the file'
    return ". Put [ and ] around it, or name the file .jsonl if it has one row per line"


def _read_array(stream: TextIO, path: str) -> Iterator[Row | RowFault]:
    try:
        for number, (value, repeated) in enumerate(_elements(stream), start=1):
            yield from _checked(Source(path, number), value, repeated)
    except (ValueError, RecursionError):
        stream.seek(0)
        _parse(stream.read(), show_text(path), first_line=1)  # as a whole: the error says in which line it is
        raise  # it is JSON after all, which would be a bug


def _elements(stream: TextIO) -> Iterator[tuple[Any, _Repeated]]:
    """The elements of an array, parsed one by one.

    Raises:
        ValueError: It is no JSON.
        RecursionError: It is nested too deeply.
    """
    repeated: _Repeated = {}
    decoder = json.JSONDecoder(object_pairs_hook=lambda pairs: _build(pairs, repeated))
    text = ""
    while not text:
        text = stream.read(_CHUNK).lstrip()
    start, is_first = 1, True
    while True:
        start = _after_space(text, start)
        if is_first and text[start : start + 1] == "]":
            start += 1
            break
        repeated.clear()
        failure: json.JSONDecodeError | None = None
        try:
            value, end = decoder.raw_decode(text, start)
            end = _after_space(text, end)
        except json.JSONDecodeError as error:
            failure, value, end = error, None, len(text)
        is_cut_number = isinstance(value, int | float) and text[end : end + 1] not in (",", "]")  # 1 of 1.5
        if end == len(text) or is_cut_number:  # it may go on in what has not been read yet
            more = stream.read(max(_CHUNK, len(text) - start))
            if not more:
                raise failure or ValueError
            text, start = text[start:] + more, 0
            continue
        yield value, dict(repeated)
        start, is_first = end + 1, False
        if text[end] == "]":
            break
        if text[end] != ",":
            raise ValueError
    if (text[start:] + stream.read()).strip(" \t\n\r"):
        raise ValueError


def _after_space(text: str, start: int) -> int:
    found = _WHITE_SPACE.match(text, start)
    return start if found is None else found.end()


def _read_lines(stream: TextIO, path: str) -> Iterator[Row | RowFault]:
    number = 0
    for line, content in enumerate(stream, start=1):
        if not content.strip():
            continue
        number += 1
        source = Source(path, number, line)
        try:
            value, repeated = _parse(content.removesuffix("\n"), f"{show_text(path)}, row {number}", first_line=line)
        except DataError as error:
            yield RowFault(str(error), source)
            continue
        yield from _checked(source, value, repeated)


def _checked(source: Source, value: Any, repeated: _Repeated) -> Iterator[Row | RowFault]:
    """A JSON value as a row, after what is wrong with it."""
    if not isinstance(value, dict):
        yield RowFault(f"{source}: expected an object, found {json_type(value)}", source)
    elif is_too_deep(value):
        text = f"{source}: brackets are nested too deeply; at most {MAX_DEPTH} levels are read"
        yield RowFault(text, source)
    else:
        inside = [repeated[id(item)] for item in _objects_in(value) if id(item) in repeated] if repeated else []
        for _, keys in inside:
            for key in keys:
                text = f'{source}: the key "{show_text(key, 60)}" occurs twice in one object'
                yield RowFault(text, source, value)
        yield Row(source, value)


def _objects_in(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        yield from _objects_in(item)


def _build(pairs: list[tuple[str, Any]], repeated: _Repeated) -> dict[str, Any]:
    """An object of pairs; those with duplicate keys are added to `repeated`."""
    value = {sys.intern(key): each for key, each in pairs}  # or each of a million rows has names of its own
    if len(value) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        repeated[id(value)] = (value, sorted(key for key, number in counts.items() if number > 1))
    return value


def _parse(text: str, where: str, first_line: int) -> tuple[Any, _Repeated]:
    """A JSON value, and the objects in it that have duplicate keys."""
    repeated: _Repeated = {}
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _build(pairs, repeated)), repeated
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        hint = _syntax_hint(text, error)
        raise DataError(f"{where}, line {line}, column {error.colno}: not JSON: {error.msg}{hint}") from error
    except RecursionError as error:
        raise DataError(f"{where}: brackets are nested too deeply") from error
    except ValueError as error:
        most = sys.get_int_max_str_digits()
        raise DataError(f"{where}: a whole number has too many digits; at most {most:,} are read") from error


def _syntax_hint(text: str, error: json.JSONDecodeError) -> str:
    rest = text[error.pos :]
    if not rest.strip():
        return "; the text ends too early, as if cut off"
    if rest[0] in "'“”‘’":
        return f"; found {rest[0]}, where JSON needs straight double quotes"
    if re.match(r"\s*[}\]]", rest) and text[: error.pos].rstrip().endswith(","):
        return "; there is an extra comma before it"
    return f"; found {rest[:20].splitlines()[0]!r}" if rest.splitlines()[0] else ""
