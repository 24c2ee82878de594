"""Writes rows to JSON files, which appear only once they are complete and never replace another."""

import json
import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from types import FrameType
from typing import Any

from glmtune.data.readers import expand_path
from glmtune.data.rows import Source
from glmtune.errors import DataError, show_text
from glmtune.files import check_writable_folder, storage_faults, written_aside
from glmtune.signals import handling

SUFFIXES = (".json", ".jsonl")
Rows = Iterable[tuple[Source | None, Mapping[str, Any]]]  # each row, and where it comes from


def check_output(output: str | Path) -> Path:
    """The file to write to, after all checks that are possible without writing.

    Raises:
        DataError: It exists or has another suffix than `.json` and `.jsonl`.
        StorageError: Its folder cannot be written to.
    """
    target, name = expand_path(output), show_text(str(output))
    if target.suffix.lower() not in SUFFIXES:
        found = repr(show_text(target.suffix)) if target.suffix else "no suffix"
        raise DataError(f"{name}: expected a file named .json or .jsonl to write to, found {found}")
    with storage_faults(name):
        if os.path.lexists(target):  # also true of a broken link
            raise _exists(name)
        check_writable_folder(target.parent)
    return target


def _exists(name: str) -> DataError:
    return DataError(f"{name}: the file exists already and is not replaced. Remove it or name another one")


def check_outputs(*outputs: str | Path | None) -> None:
    """Checks several files to write to, as `check_output` does; None stands for none.

    Raises:
        DataError: Two of them are the same, or one cannot be used.
        StorageError: The folder of one cannot be written to.
    """
    targets = [check_output(output) for output in outputs if output is not None]
    if len({target.absolute() for target in targets}) < len(targets):
        raise DataError(f"{show_text(str(targets[0]))}: two files to write have this name. Name another one")


def write_together(*files: tuple[Rows, str | Path]) -> None:
    """Writes rows to several files, as `write_rows` does: all of them, or none.

    Raises:
        DataError: A file cannot be used, or a value has no JSON form.
        StorageError: A file cannot be written.
    """
    written: list[Path] = []
    try:
        for rows, output in files:
            write_rows(rows, output)
            written.append(expand_path(output))
    except BaseException:
        for file in written:
            file.unlink(missing_ok=True)
        raise


def write_rows(rows: Rows, output: str | Path) -> int:
    """Writes rows, with all their columns.

    Args:
        rows: Each row, and where it comes from, for messages.
        output: A `.json` file, for an array, or a `.jsonl` file, for a row a line. It must not exist; its folder is
            created, and removed again if nothing is written.

    Returns:
        How many rows were written.

    Raises:
        DataError: `output` cannot be used, or a value has no JSON form.
        StorageError: It cannot be written.
    """
    target, name = check_output(output), show_text(str(output))
    written = _Texts(rows)
    with handling(_end), storage_faults(name), _folder_for(target):
        try:
            with written_aside(target, replaces=False) as unfinished, unfinished.open("wb") as file:
                file.writelines(_encode(written, is_array=target.suffix.lower() == ".json"))
        except FileExistsError as error:  # another process has written it meanwhile
            raise _exists(name) from error
    return written.num_rows


def _end(number: int, frame: FrameType | None) -> None:
    """Ends the process after it has cleared up, whichever signal asks for that."""
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


@contextmanager
def _folder_for(file: Path) -> Iterator[None]:
    """Creates the folder of a file; if the block fails, removes what it created, unless there is something in it."""
    created = [folder for folder in file.parents if not folder.exists()]
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for folder in created:  # the innermost first
                folder.rmdir()
        raise


class _Texts:
    """The JSON text of each row; counts them."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.num_rows = 0

    def __iter__(self) -> Iterator[str]:
        for source, values in self._rows:
            self.num_rows += 1
            try:
                yield json.dumps(values, ensure_ascii=False, default=_plain)
            except TypeError as error:
                raise DataError(f"{source}: {error}" if source else str(error)) from error


def _encode(texts: Iterable[str], *, is_array: bool) -> Iterator[bytes]:
    """The bytes of the file: an array, or a row a line. A lone surrogate, which UTF-8 has not, stays a JSON escape."""
    start, between, end = ("[\n", ",\n", "\n]\n") if is_array else ("", "\n", "\n")
    yield start.encode()
    number = -1
    for number, text in enumerate(texts):
        yield ((between if number else "") + text).encode(errors="backslashreplace")
    if is_array or number >= 0:
        yield end.encode()


def _plain(value: Any) -> str:
    """A value of a Parquet file as JSON can hold it."""
    if isinstance(value, date | time | Decimal):
        return str(value)
    raise TypeError(f"a value has no JSON form: {show_text(repr(value), 60)}")
