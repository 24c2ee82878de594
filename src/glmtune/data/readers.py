"""Reads rows from JSON, JSON lines, CSV and Parquet files and Hugging Face hub data sets, without interpreting them.

A fault of a whole file (missing, empty, wrong encoding, ...) is raised; faults of single rows are returned, so that all
of them can be shown at once.
"""

import csv
import glob
import io
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Any

import pyarrow
import pyarrow.parquet

from glmtune.data.hub import is_hub_name, load_hub_rows
from glmtune.data.tables import read_table_rows
from glmtune.errors import DataError, show_names, show_text
from glmtune.files import say_os_error
from glmtune.json_values import MAX_DEPTH, is_too_deep, json_type

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
TEXT_SUFFIX = ".txt"
_MOST_LETTERS_A_CELL = 2**31 - 1  # the largest long of C on every system


@dataclass(frozen=True, slots=True)
class Source:
    """The file and row that something was read from.

    Attributes:
        path: The file, or the name of a hub data set, as it was given.
        row: Number of the row, from 1.
        line: Number of the line where the row starts, from 1, in files with one row per line.
    """

    path: str
    row: int
    line: int | None = None

    def __str__(self) -> str:
        where = f"{show_text(self.path)}, row {self.row}"
        return where if self.line is None else f"{show_text(self.path)}, row {self.row} (line {self.line})"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file: column names and JSON values."""

    source: Source
    values: dict[str, Any]


class RowFault(str):
    """A sentence that says what is wrong with a row, and knows which row that is.

    Attributes:
        source: Its file and row.
        values: The row, if it could be read at all.
    """

    source: Source
    values: dict[str, Any] | None

    def __new__(  # noqa: D102
        cls, text: str, source: Source, values: dict[str, Any] | None = None
    ) -> "RowFault":
        fault = super().__new__(cls, text)
        fault.source, fault.values = source, values
        return fault


def read_rows(path: str | Path, *, needs_answer: bool = True) -> tuple[list[Row], list[RowFault]]:
    """Reads all rows of one file or hub data set.

    Args:
        path: A file (`.json`, `.jsonl`, `.csv`, `.parquet`), or `owner/name` or `owner/name:split` of a data set on the
            hub where no such file exists. JSON text is an array or has one row per line; this is detected.
        needs_answer: Whether rows must have an answer. If not, a `.txt` file is accepted too; each of its lines that
            is not blank is the `question` of a row.

    Returns:
        The valid rows, and one sentence for each invalid row.

    Raises:
        DataError: The file as a whole cannot be read, or holds no rows.
    """
    given = str(path)
    name = show_text(given)
    file = expand_path(path)
    suffix = file.suffix.lower()
    suffixes = SUFFIXES if needs_answer else (*SUFFIXES, TEXT_SUFFIX)
    try:
        if not file.exists():
            if is_hub_name(given) and suffix not in suffixes:
                return _numbered(given, load_hub_rows(given)), []
            here = show_text(str(Path.cwd()))
            raise DataError(f"{name}: there is no such file. Check the path; relative paths start from {here}")
        if suffix not in suffixes:
            found = show_text(suffix) or "no suffix"
            raise DataError(f"{name}: expected a file named {', '.join(suffixes)}, found {found!r}")
        rows, faults = _read_file(file, given, suffix)
    except OSError as error:
        raise DataError(f"{name}: the file cannot be read: {say_os_error(error)}") from error
    if not rows and not faults:
        raise DataError(f"{name}: the file holds no rows; expected at least one")
    return rows, faults


def find_files(path: str | Path) -> list[str]:
    """The files that a name stands for.

    Args:
        path: A file or hub data set, which stands for itself; a folder, for the files in it that can be read, by name;
            a pattern such as `data/*.json`, for the files that match it, by name; or several of these with commas
            between them, in that order.

    Returns:
        At least one name. A name of a file that does not exist is returned as it is.

    Raises:
        DataError: A folder has no such file, or nothing matches a pattern.
    """
    given = str(path)
    place = expand_path(path)
    try:
        if place.is_dir():
            inside = (file for file in place.iterdir() if file.suffix.lower() in SUFFIXES and file.name[0] != ".")
            if found := sorted(str(file) for file in inside if file.is_file()):
                return found
            raise DataError(f"{show_text(given)}: there is no {', '.join(SUFFIXES)} in this folder")
        if place.exists() or is_hub_name(given):
            return [given]
    except OSError:  # a name that no file can have, of which reading says what is wrong
        return [given]
    if "," in given:
        return [file for part in given.split(",") if part.strip() for file in find_files(part.strip())]
    if any(letter in given for letter in "*?["):
        if found := sorted(file for file in glob.glob(str(place), recursive=True) if Path(file).is_file()):
            return found
        here = show_text(str(Path.cwd()))
        raise DataError(f"{show_text(given)}: no file matches this pattern; relative ones start from {here}")
    return [given]


def expand_path(path: str | Path) -> Path:
    """The path with `~` and `~user` replaced by the home folder they stand for.

    Raises:
        DataError: There is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(
            f"{show_text(str(path))}: the home folder is not known: {error}. Write the path in full"
        ) from error


def _read_file(file: Path, path: str, suffix: str) -> tuple[list[Row], list[RowFault]]:
    name = show_text(path)
    if file.stat().st_size == 0:
        raise DataError(f"{name}: the file is empty; expected at least one row")
    if suffix == ".parquet":
        return _numbered(path, _read_parquet(file, name)), []
    text = _decode(file, name)
    if suffix == TEXT_SUFFIX:
        return _read_questions(text, path), []
    return _read_csv(text, path) if suffix == ".csv" else _read_json(text, path, has_lines=suffix == ".jsonl")


_Repeated = dict[int, tuple[dict[str, Any], list[str]]]  # objects with duplicate keys, by id, and these keys


def _numbered(path: str, rows: list[dict[str, Any]]) -> list[Row]:
    return [Row(Source(path, number), values) for number, values in enumerate(rows, start=1)]


def _read_questions(text: str, path: str) -> list[Row]:
    """One question per line."""
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    return [Row(Source(path, row, number), {"question": line}) for row, (number, line) in enumerate(lines, start=1)]


def _decode(file: Path, name: str) -> str:
    """The text of a UTF-8 file, with or without a byte order mark."""
    data = file.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(_encoding_fault(data, name, error)) from error
    if not text.strip():
        raise DataError(f"{name}: the file is empty; expected at least one row")
    return text


def _encoding_fault(data: bytes, name: str, error: UnicodeDecodeError) -> str:
    line = data.count(b"\n", 0, error.start) + 1
    guess = "UTF-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else _legacy_encoding(data)
    command = f"iconv -f {guess} -t UTF-8 {shlex.quote(name)} > utf8{Path(name).suffix}"
    advice = command if guess else "save it as UTF-8"
    return (
        f"{name}, line {line}: expected UTF-8, found byte 0x{data[error.start]:02x} at offset {error.start}"
        f"{f'; it looks like {guess}' if guess else ''}. Convert the file: {advice}"
    )


def _legacy_encoding(data: bytes) -> str:
    """GBK or its superset if the bytes can be read as such, else nothing."""
    for encoding in ("GBK", "GB18030"):
        try:
            data.decode(encoding)
        except UnicodeDecodeError:
            continue
        return encoding
    return ""


def _read_parquet(file: Path, name: str) -> list[dict[str, Any]]:
    try:
        # Not read_table: it would interpret a folder named lang=zh as a partition column.
        with pyarrow.parquet.ParquetFile(file) as parquet:
            return read_table_rows(parquet.read(), name)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:  # the latter from a column name
        reason = show_text(str(error), 200)
        raise DataError(f"{name}: not a Parquet file, or a damaged one: {reason}") from error


def _read_csv(text: str, path: str) -> tuple[list[Row], list[RowFault]]:
    """Rows of a CSV file with a header; every cell stays a string."""
    name = show_text(path)
    csv.field_size_limit(_MOST_LETTERS_A_CELL)  # the default refuses texts beyond 128 KiB
    records = _csv_records(text, name)
    line, columns = next(records)
    if repeated := _repeated(columns):
        raise DataError(f"{name}, line {line}: the header has duplicate columns: {show_names(repeated)}")
    rows, faults = [], []
    for number, (line, cells) in enumerate(records, start=1):
        source = Source(path, number, line)
        if len(cells) == len(columns):
            rows.append(Row(source, dict(zip(columns, cells, strict=True))))
        else:
            text = f"{source}: expected {len(columns)} cells, as in the header, found {len(cells)}"
            faults.append(RowFault(text, source))
    return rows, faults


def _csv_records(text: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Records that are not blank, each with the line where it starts."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{name}, line {line}: not CSV: {error}. Check the quotes from that line on") from error


def _repeated(names: list[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def _read_json(text: str, path: str, *, has_lines: bool) -> tuple[list[Row], list[RowFault]]:
    """Rows of JSON text. Files named .json often have one row per line, and the other way round."""
    if text.lstrip().startswith("["):
        return _read_array(text, path)
    if has_lines or _is_object_a_line(text):
        return _read_lines(text, path)
    name = show_text(path)
    value, _ = _parse(text, name, first_line=1)
    raise DataError(f"{name}: expected an array of rows at the top level, found {json_type(value)}{_advice(value)}")


def _is_object_a_line(text: str) -> bool:
    """Whether more than one line has text and the first such line is a JSON object by itself."""
    first, _, rest = text.strip().partition("\n")
    try:
        return bool(rest) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _advice(value: Any) -> str:
    if not isinstance(value, dict):
        return ""
    for key, item in value.items():
        if isinstance(item, list) and item and isinstance(item[0], dict):
            return f'; its "{show_text(key, 60)}" holds an array of {len(item)}. Write that array alone into the file'
    return ". Put [ and ] around it, or name the file .jsonl if it has one row per line"


def _read_array(text: str, path: str) -> tuple[list[Row], list[RowFault]]:
    values, repeated = _parse(text, show_text(path), first_line=1)
    rows: list[Row] = []
    faults: list[RowFault] = []
    for number, value in enumerate(values, start=1):
        _add_row(Source(path, number), value, repeated, rows, faults)
    return rows, faults


def _read_lines(text: str, path: str) -> tuple[list[Row], list[RowFault]]:
    rows: list[Row] = []
    faults: list[RowFault] = []
    number = 0
    # Not splitlines, which also splits at U+2028 in a text; nor split, which doubles the memory of a large file.
    for line, found in enumerate(re.finditer(r"[^\n]*(?:\n|\Z)", text), start=1):
        content = found[0].removesuffix("\n")
        if not content.strip():
            continue
        number += 1
        try:
            value, repeated = _parse(content, f"{show_text(path)}, row {number}", first_line=line)
        except DataError as error:
            faults.append(RowFault(str(error), Source(path, number, line)))
            continue
        _add_row(Source(path, number, line), value, repeated, rows, faults)
    return rows, faults


def _add_row(source: Source, value: Any, repeated: _Repeated, rows: list[Row], faults: list[RowFault]) -> None:
    """Adds a JSON value to the rows, and what is wrong with it to the faults."""
    if not isinstance(value, dict):
        faults.append(RowFault(f"{source}: expected an object, found {json_type(value)}", source))
    elif is_too_deep(value):
        text = f"{source}: brackets are nested too deeply; at most {MAX_DEPTH} levels are read"
        faults.append(RowFault(text, source))
    else:
        inside = [repeated[id(item)] for item in _objects_in(value) if id(item) in repeated] if repeated else []
        faults += [
            RowFault(f'{source}: the key "{show_text(key, 60)}" occurs twice in one object', source, value)
            for _, keys in inside
            for key in keys
        ]
        rows.append(Row(source, value))


def _objects_in(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        yield from _objects_in(item)


def _parse(text: str, where: str, first_line: int) -> tuple[Any, _Repeated]:
    """A JSON value, and the objects in it that have duplicate keys."""
    repeated: _Repeated = {}

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = {intern(key): each for key, each in pairs}  # or each of a million rows has names of its own
        if len(value) < len(pairs):
            repeated[id(value)] = (value, _repeated([key for key, _ in pairs]))
        return value

    try:
        return json.loads(text, object_pairs_hook=build), repeated
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        hint = _syntax_hint(text, error)
        raise DataError(f"{where}, line {line}, column {error.colno}: not JSON: {error.msg}{hint}") from error
    except RecursionError as error:
        raise DataError(f"{where}: brackets are nested too deeply") from error
    except ValueError as error:  # an integer of thousands of digits
        raise DataError(f"{where}: not readable as JSON: {error}") from error


def _syntax_hint(text: str, error: json.JSONDecodeError) -> str:
    rest = text[error.pos :]
    if not rest.strip():
        return "; the text ends too early, as if cut off"
    if rest[0] in "'“”‘’":
        return f"; found {rest[0]}, where JSON needs straight double quotes"
    if re.match(r"\s*[}\]]", rest) and text[: error.pos].rstrip().endswith(","):
        return "; there is an extra comma before it"
    return f"; found {rest[:20].splitlines()[0]!r}" if rest.splitlines()[0] else ""
