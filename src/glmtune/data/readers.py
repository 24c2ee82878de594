"""Reads rows from JSON, JSON lines, CSV and Parquet files and Hugging Face hub data sets, without interpreting them.

A fault of a whole file (missing, empty, wrong encoding, ...) is raised; faults of single rows come in place of the
rows, so that all of them can be shown at once. Files are read row by row: none is ever in memory as a whole.
"""

import csv
import glob
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pyarrow
import pyarrow.parquet

from glmtune.data.hub import is_hub_name, load_hub_rows
from glmtune.data.json_rows import read_json_rows
from glmtune.data.rows import Row, RowFault, Source
from glmtune.data.tables import check_column_names, read_table_rows
from glmtune.errors import DataError, show_names, show_text
from glmtune.files import say_os_error

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
TEXT_SUFFIX = ".txt"
_MOST_LETTERS_A_CELL = 2**31 - 1  # the largest long of C on every system
_LETTERS_AT_A_TIME = 8192
_ROWS_AT_A_TIME = 1000  # of a Parquet file


def read_rows(path: str | Path, *, needs_answer: bool = True) -> Iterator[Row | RowFault]:
    """Reads the rows of one file or hub data set, one after the other.

    Args:
        path: A file (`.json`, `.jsonl`, `.csv`, `.parquet`), or `owner/name` or `owner/name:split` of a data set on the
            hub where no such file exists. JSON text is an array or has one row per line; this is detected.
        needs_answer: Whether rows must have an answer. If not, a `.txt` file is accepted too; each of its lines that
            is not blank is the `question` of a row.

    Yields:
        Each valid row, and a sentence for each invalid one. A row of which a value is in doubt comes after that
        sentence.

    Raises:
        DataError: The file as a whole cannot be read, or holds no rows.
    """
    given = str(path)
    name = show_text(given)
    file = expand_path(path)
    suffix = file.suffix.lower()
    suffixes = SUFFIXES if needs_answer else (*SUFFIXES, TEXT_SUFFIX)
    is_empty = True
    try:
        if not file.exists():
            if is_hub_name(given) and suffix not in suffixes:
                yield from _numbered(given, load_hub_rows(given))
                return
            here = show_text(str(Path.cwd()))
            raise DataError(f"{name}: there is no such file. Check the path; relative paths start from {here}")
        if suffix not in suffixes:
            found = repr(show_text(suffix)) if suffix else "no suffix"
            raise DataError(f"{name}: expected a file named {', '.join(suffixes)}, found {found}")
        for row in _read_file(file, given, suffix):
            is_empty = False
            yield row
    except OSError as error:
        raise DataError(f"{name}: the file cannot be read: {say_os_error(error)}") from error
    if is_empty:
        raise DataError(f"{name}: the file holds no rows; expected at least one")


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


def _read_file(file: Path, path: str, suffix: str) -> Iterator[Row | RowFault]:
    name = show_text(path)
    if file.stat().st_size == 0:
        raise DataError(f"{name}: the file is empty; expected at least one row")
    if suffix == ".parquet":
        yield from _numbered(path, _read_parquet(file, name))
        return
    with _opened_text(file, name, newline="" if suffix == ".csv" else "\n") as stream:
        first = _first_letter(stream, name)
        if suffix == TEXT_SUFFIX:
            yield from _read_questions(stream, path)
        elif suffix == ".csv":
            yield from _read_csv(stream, path)
        else:
            yield from read_json_rows(stream, path, is_array=first == "[", has_lines=suffix == ".jsonl")


def _numbered(path: str, rows: Iterable[dict[str, Any]]) -> Iterator[Row]:
    return (Row(Source(path, number), values) for number, values in enumerate(rows, start=1))


def _read_questions(stream: TextIO, path: str) -> Iterator[Row]:
    """One question per line."""
    lines = ((number, line.strip()) for number, line in enumerate(stream, start=1) if line.strip())
    return (Row(Source(path, row, number), {"question": line}) for row, (number, line) in enumerate(lines, start=1))


@contextmanager
def _opened_text(file: Path, name: str, newline: str) -> Iterator[TextIO]:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises:
        DataError: As soon as something is read that is not UTF-8.
    """
    try:
        # Not splitlines, which also splits at U+2028 in a text.
        with file.open(encoding="utf-8-sig", newline=newline) as stream:
            yield stream
    except UnicodeDecodeError as error:
        raise DataError(encoding_fault(file.read_bytes(), name)) from error


def _first_letter(stream: TextIO, name: str) -> str:
    """The first character of a text that is no white space; afterwards, the text is at its start again."""
    while text := stream.read(_LETTERS_AT_A_TIME):
        if letters := text.lstrip():
            stream.seek(0)
            return letters[0]
    raise DataError(f"{name}: the file is empty; expected at least one row")


def encoding_fault(data: bytes, name: str) -> str:
    """A sentence on where a file is not UTF-8, what it may be instead, and what to do."""
    start = 0
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = error.start
    line = data.count(b"\n", 0, start) + 1
    guess = "UTF-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else _legacy_encoding(data)
    if not guess:
        advice = "save it as UTF-8"
        return (
            f"{name}, line {line}: expected UTF-8, found byte 0x{data[start]:02x} at offset {start}. "
            f"Convert the file: {advice}"
        )
    command = f"iconv -f {guess} -t UTF-8 {shlex.quote(name)} > utf8{Path(name).suffix}"
    return (
        f"{name}, line {line}: expected UTF-8, found byte 0x{data[start]:02x} at offset {start}; "
        f"it looks like {guess}. Convert the file: {command}"
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


def _read_parquet(file: Path, name: str) -> Iterator[dict[str, Any]]:
    try:
        # Not read_table: it would interpret a folder named lang=zh as a partition column.
        with pyarrow.parquet.ParquetFile(file) as parquet:
            check_column_names(parquet.schema_arrow.names, name)
            for batch in parquet.iter_batches(_ROWS_AT_A_TIME):
                yield from read_table_rows(pyarrow.Table.from_batches([batch]), name)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:  # the latter from a column name
        reason = show_text(str(error), 200)
        raise DataError(f"{name}: not a Parquet file, or a damaged one: {reason}") from error


def _read_csv(stream: TextIO, path: str) -> Iterator[Row | RowFault]:
    """Rows of a CSV file with a header; every cell stays a string."""
    name = show_text(path)
    records = csv_records(stream, name)
    line, columns = next(records)
    if repeated := sorted(column for column, number in Counter(columns).items() if number > 1):
        raise DataError(f"{name}, line {line}: the header has duplicate columns: {show_names(repeated)}")
    for number, (line, cells) in enumerate(records, start=1):
        source = Source(path, number, line)
        if len(cells) == len(columns):
            yield Row(source, dict(zip(columns, cells, strict=True)))
        else:
            text = f"{source}: expected {len(columns)} cells, as in the header, found {len(cells)}"
            yield RowFault(text, source)


def csv_records(stream: TextIO, name: str) -> Iterator[tuple[int, list[str]]]:
    """Records of CSV text that are not blank, each with the line where it starts.

    Args:
        stream: The text, opened with `newline=""`.
        name: Where it comes from, for messages.

    Raises:
        DataError: It is not CSV.
    """
    csv.field_size_limit(_MOST_LETTERS_A_CELL)  # the default refuses texts beyond 128 KiB
    reader = csv.reader(stream, strict=True)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{name}, line {line}: not CSV: {error}. Check the quotes from that line on") from error
