"""Files of replies: a row for each question, with its own columns, in JSON lines or CSV.

    index   the question's own columns   reply   metadata

Columns of the question that have one of these three names are written as `input_index` and so on; only those of an
earlier file of replies, which is asked again, are left out.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glmtune.data.formats import Example
from glmtune.errors import ConfigError, DataError, show_text
from glmtune.inference.generate import Reply

_OWN_COLUMNS = ("index", "reply", "metadata")
_JSON_SUFFIXES = (".jsonl", ".json")
_CSV_SUFFIX = ".csv"


class ReplyFile:
    """What is written to a file of replies, and how its rows are told again.

    Args:
        path: The file; its suffix decides the format.
        questions: All questions.
    """

    def __init__(self, path: Path, questions: Sequence[Example]) -> None:
        self.renamed = _renamed_columns(questions)
        self._is_csv = path.suffix.lower() == _CSV_SUFFIX
        self._sources = [question.source for question in questions]
        self._rows = [self._own(index, question.values) for index, question in enumerate(questions)]
        columns = dict.fromkeys(column for row in self._rows for column in row)
        self._columns = [*(columns or ["index"]), "reply", "metadata"]

    @property
    def head(self) -> bytes:
        """What stands before the first row. A byte order mark, by which spreadsheet programs recognise UTF-8."""
        return b"\xef\xbb\xbf" + self._csv_line(self._columns) if self._is_csv else b""

    def line(self, index: int, reply: Reply) -> bytes:
        """The row of a question that has been answered."""
        return self._encode({**self._rows[index], "reply": reply.text, "metadata": reply.metadata})

    def count_rows(self, content: bytes, name: str) -> tuple[int, int]:
        """Counts the rows of an earlier run.

        Args:
            content: The file.
            name: Its name, for messages.

        Returns:
            The number of whole rows, and the number of bytes up to the end of the last.

        Raises:
            DataError: The file answers other questions, or is something else.
        """
        if not content.startswith(self.head):
            if self.head.startswith(content):
                return 0, 0
            raise DataError(_mismatch(name, "its heading is another one"))
        size, count = len(self.head), 0
        lines = self._split(content[size:])
        if len(lines) > len(self._rows):
            raise DataError(_mismatch(name, f"it has {len(lines)} rows, the input only {len(self._rows)}"))
        for line in lines:
            self._check_line(line, count, name)
            size, count = size + len(line), count + 1
        if rest := content[size:]:
            start = self._start(count) if count < len(self._rows) else b""
            if not (start and (rest.startswith(start) or start.startswith(rest))):
                raise DataError(_mismatch(name, "its last line is not the beginning of the next reply"))
        return count, size

    def _own(self, index: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """The columns before the reply."""
        kept = {self.renamed.get(name, name): value for name, value in values.items()}
        return {"index": index, **{name: value for name, value in kept.items() if name not in _OWN_COLUMNS}}

    def _check_line(self, line: bytes, index: int, name: str) -> None:
        number = index + 1
        if self._is_csv:
            is_same = line.startswith(self._start(index))
        else:
            try:
                written = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(_mismatch(name, f"line {number} is not JSON")) from error
            if not isinstance(written, dict) or "reply" not in written:
                raise DataError(_mismatch(name, f'line {number} has no "reply"'))
            own = {column: value for column, value in written.items() if column not in ("reply", "metadata")}
            is_same = _dump(own) == _dump(json.loads(_dump(self._rows[index])))
        if not is_same:
            source = self._sources[index]
            raise DataError(_mismatch(name, f"line {number} answers another question than {source} asks"))

    def _start(self, index: int) -> bytes:
        """The beginning of a question's row, up to the reply."""
        if self._is_csv:
            return self._csv_line(self._cells(self._rows[index])[:-2]).removesuffix(b"\r\n") + b","
        return self._encode({**self._rows[index], "reply": "", "metadata": ""}).removesuffix(b'"}\n')

    def _split(self, content: bytes) -> list[bytes]:
        """The whole rows."""
        if not self._is_csv:
            return [line + b"\n" for line in content.split(b"\n")[:-1]]
        lines: list[bytes] = []
        start = 0
        while (end := content.find(b"\r\n", start)) >= 0:
            # Quotes come in pairs within a cell, so a line break is the row's end where their number is even.
            while content.count(b'"', start, end) % 2:
                end = content.find(b"\r\n", end + 2)
                if end < 0:
                    return lines
            lines.append(content[start : end + 2])
            start = end + 2
        return lines

    def _encode(self, row: Mapping[str, Any]) -> bytes:
        """A row of the file. A lone surrogate, which UTF-8 cannot encode, stays a JSON escape."""
        if self._is_csv:
            return self._csv_line(self._cells(row))
        written = {column: value for column, value in row.items() if column != "metadata" or value}
        return f"{_dump(written)}\n".encode(errors="backslashreplace")

    def _cells(self, row: Mapping[str, Any]) -> list[str]:
        values = [row.get(column, "") for column in self._columns]
        return ["" if value is None else value if isinstance(value, str) else _dump(value) for value in values]

    @staticmethod
    def _csv_line(cells: Sequence[str]) -> bytes:
        text = io.StringIO(newline="")
        csv.writer(text).writerow(cells)
        return text.getvalue().encode(errors="backslashreplace")


def check_reply_suffix(path: Path) -> None:
    """Refuses a file of replies whose name asks for a format that is not written.

    Raises:
        ConfigError: The suffix is another one than .jsonl, .json or .csv.
    """
    if path.suffix.lower() not in (*_JSON_SUFFIXES, _CSV_SUFFIX):
        raise ConfigError(
            f"{show_text(str(path))}: replies are written as JSON lines (.jsonl, .json) or CSV (.csv); "
            "name the file accordingly"
        )


def _renamed_columns(questions: Sequence[Example]) -> dict[str, str]:
    """New names of the input's columns that have a name of ours; none for an earlier file of replies."""
    if all(_is_reply(index, question.values) for index, question in enumerate(questions)):
        return {}
    columns = {column for question in questions for column in question.values}
    renamed = {}
    for name in _OWN_COLUMNS:
        if name in columns:
            new = f"input_{name}"
            while new in columns:
                new = f"input_{new}"
            renamed[name] = new
    return renamed


def _is_reply(index: int, values: Mapping[str, Any]) -> bool:
    """Whether a row is of an earlier file of replies: the number in front, the reply at the end."""
    columns = list(values)
    ours = [column for column in columns[1:] if column in _OWN_COLUMNS]
    return (
        columns[:1] == ["index"]
        and str(values["index"]) == str(index)
        and ours in (["reply"], ["reply", "metadata"])
        and columns[-len(ours) :] == ours
    )


def _mismatch(name: str, reason: str) -> str:
    return f"{name} exists and does not continue this input: {reason}. Choose another --output, or delete the file"


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
