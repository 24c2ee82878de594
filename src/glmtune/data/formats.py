"""Turns rows of every supported format into conversations or questions; the format is detected from the rows.

    instruction   instruction, input (optional), output
    pairs         question/answer, query/response or prompt/response
    chat          messages or conversations: see `glmtune/prompts/messages.py`

Rows of the first two formats may also have `history` ([[question, answer], ...]), `system` and `tools`; rows of the
last may have `system` and `tools`. Questions are read in the same way as training data, except that the answer may be
missing; if it is present, it is not shown to the model.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from glmtune.data.compact import CompactList, MadeList, SourceList, conversation_list, value_list
from glmtune.data.readers import read_rows
from glmtune.data.row_formats import (
    ANSWERS,
    FORMATS,
    STANDARD_NAMES,
    RowFormat,
    check_columns,
    complete_format,
    describe,
    form_of,
    partial_format,
    read_row,
    rename,
    unread_in_messages,
)
from glmtune.data.rows import Row, RowFault, Source
from glmtune.data.weights import Paths, drawn_rows, weighted_files
from glmtune.errors import DataError, show_names, show_text, summarise_faults
from glmtune.json_values import read_optional_text
from glmtune.language.plurals import count
from glmtune.prompts import Conversation

Faulty = Literal["stop", "skip"]
_ValueList = CompactList[dict[str, Any]]


@dataclass
class Conversations:
    """The contents of the data files.

    Attributes:
        items: The conversations, in the order of files and rows.
        sources: The file and row of each conversation.
        formats: By the path of each file, the format of its rows and the columns that are not read.
        join: The separator between `instruction` and `input`.
        num_joined: Rows that have both.
        skipped: What is wrong with rows that were left out (`faulty="skip"`).
    """

    items: CompactList[Conversation] = field(default_factory=conversation_list)
    sources: SourceList = field(default_factory=SourceList)
    formats: dict[str, str] = field(default_factory=dict)
    join: str = "\n"
    num_joined: int = 0
    skipped: list[RowFault] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.items)

    def take(self, rows: Iterable[int]) -> "Conversations":
        """Some of the conversations, with their sources."""
        chosen = list(rows)
        return Conversations(self.items.take(chosen), self.sources.take(chosen))

    def format_lines(self) -> list[str]:
        """How each file is read, a line a file."""
        return [f"{show_text(path)}: {form}" for path, form in self.formats.items()]


@dataclass(frozen=True, slots=True)
class Example:
    """A row, as it is in the file and as it is understood.

    Attributes:
        source: Its file and row.
        values: The row as it is in the file.
        conversation: What it says; of a row to be answered, the part that the model is asked.
    """

    source: Source
    values: dict[str, Any]
    conversation: Conversation


class _Examples(MadeList[Example]):
    """Examples in little memory: each is made when it is asked for."""

    def __init__(self, sources: SourceList, values: _ValueList, items: CompactList[Conversation]) -> None:
        self._sources, self._values, self._items = sources, values, items

    def __len__(self) -> int:
        return len(self._items)

    def make(self, index: int) -> Example:
        """The example at an index from 0 to below the length."""
        return Example(self._sources[index], self._values[index], self._items[index])


@dataclass
class _FileContent:
    """The contents of a file: its valid rows and the conversation of each, and the faults of the others.

    Attributes:
        values: The rows as they are; None if they are not needed.
    """

    items: CompactList[Conversation] = field(default_factory=conversation_list)
    sources: SourceList = field(default_factory=SourceList)
    is_joined: bytearray = field(default_factory=bytearray)
    values: _ValueList | None = None
    faults: list[str] = field(default_factory=list)
    form: str = ""

    def add(self, row: Row, conversation: Conversation, *, is_joined: bool) -> None:
        """Adds a valid row."""
        self.items.append(conversation)
        self.sources.append(row.source)
        self.is_joined.append(is_joined)
        if self.values is not None:
            self.values.append(row.values)

    def draw(self, weight: float, seed: str) -> None:
        """Keeps the rows that a weight stands for."""
        drawn = drawn_rows(len(self.items), weight, seed)
        self.items, self.sources = self.items.take(drawn), self.sources.take(drawn)
        self.is_joined = bytearray(self.is_joined[index] for index in drawn)
        if self.values is not None:
            self.values = self.values.take(drawn)


def read_conversations(
    paths: Paths,
    fields: Mapping[str, str] | None = None,
    join: str = "\n",
    *,
    faulty: Faulty = "stop",
    seed: int = 42,
) -> Conversations:
    """Reads all rows of one or several files.

    Args:
        paths: Files, folders, patterns or names of hub data sets; see `readers.find_files` and `readers.read_rows`.
            Files may have weights; see `weights`.
        fields: Other column names: maps the standard name to the column used instead, {"output": "reply"}.
        join: The separator between `instruction` and `input`; the tutorial uses none. Where `input` is empty or blank,
            the instruction is used alone.
        faulty: Whether a faulty row is an error or is left out. A file that cannot be read always is an error.
        seed: Decides which rows are drawn from files with weights.

    Returns:
        The conversations; the turns of each are in a valid order and end with the assistant's.

    Raises:
        DataError: Anything is wrong in any file; all faults, with their row numbers. Or no row is left.
    """
    found, faults = scan(paths, fields, join, seed=seed)
    found.skipped = _allowed(faults, faulty, len(found))
    return found


def read_examples(
    paths: Paths,
    fields: Mapping[str, str] | None = None,
    join: str = "\n",
    *,
    faulty: Faulty = "stop",
    seed: int = 42,
) -> tuple[Sequence[Example], list[RowFault]]:
    """Reads all rows of one or several files, and keeps them as they are, too.

    Args:
        paths: As for `read_conversations`, as are the others.

    Returns:
        The rows, and the faults of those that were left out.

    Raises:
        DataError: As `read_conversations` does.
    """
    values = value_list()
    found, faults = scan(paths, fields, join, seed=seed, values=values)
    return _Examples(found.sources, values, found.items), _allowed(faults, faulty, len(found))


def _allowed(faults: Sequence[str], faulty: Faulty, num_valid: int) -> list[RowFault]:
    """The faults, if they are of rows that may be left out.

    Raises:
        DataError: They may not.
    """
    of_rows = [fault for fault in faults if isinstance(fault, RowFault)]
    if faults and (faulty == "stop" or len(of_rows) < len(faults) or not num_valid):
        raise DataError(summarise_faults("the data cannot be used", faults))
    return of_rows


def read_questions(paths: Paths, fields: Mapping[str, str] | None = None, join: str = "\n") -> list[Example]:
    """Reads the questions of one or several files.

    Args:
        paths: Files as for `read_conversations`, with rows of any training format, with or without the answers; or
            `.txt` files with one question per line.
        fields: As for `read_conversations`.
        join: As for `read_conversations`; use the value that the model was trained with.

    Returns:
        The rows, in the order of files and rows; the conversation of each ends with the user's turn or an observation.

    Raises:
        DataError: Anything is wrong in any file; all faults, with their row numbers.
    """
    _check_names(fields or {})
    files, faults = weighted_files(paths)
    questions: list[Example] = []
    for file, _ in files:
        values = value_list()
        content = _read_file(file, fields or {}, join, values, needs_answer=False)
        faults += content.faults
        questions += map(Example, content.sources, values, content.items)
    if faults:
        raise DataError(summarise_faults("the questions cannot be answered", faults))
    return questions


def scan(
    paths: Paths,
    fields: Mapping[str, str] | None = None,
    join: str = "\n",
    *,
    seed: int | None = 42,
    values: _ValueList | None = None,
) -> tuple[Conversations, list[str]]:
    """Like `read_conversations`, but returns the faults, one sentence each, along with the valid rows.

    Args:
        paths: As for `read_conversations`, as are `fields` and `join`.
        seed: Decides which rows are drawn from files with weights; None for all rows once, whatever the weights.
        values: A list to which the rows as they are in the files are added.
    """
    found = Conversations(join=join)
    try:
        _check_names(fields or {})
    except DataError as error:
        return found, [str(error)]
    files, faults = weighted_files(paths)
    if not files and not faults:
        faults.append("no data file is given. Set data.path")
    for number, (path, weight) in enumerate(files):
        own = None if values is None else value_list()
        content = _read_file(path, fields or {}, join, own, needs_answer=True)
        faults += content.faults
        if content.form:
            found.formats[path] = content.form
        if seed is not None and weight != 1 and content.items:
            # By its place among the files, so that the draw stays the same when they are moved.
            content.draw(weight, f"{seed}/{number}")
            found.formats[path] += f"; weight {weight:g}, {count(len(content.items), 'rows')}"
        found.items.extend(content.items)
        found.sources.extend(content.sources)
        found.num_joined += sum(content.is_joined)
        if values is not None and content.values is not None:
            values.extend(content.values)
    return found, faults


def _read_file(
    path: str | Path, fields: Mapping[str, str], join: str, values: _ValueList | None, *, needs_answer: bool
) -> _FileContent:
    """The contents of a file. Where it has a fault as a whole, those of the conversations are not looked for."""
    reading = _FileReading(show_text(str(path)), fields, join, values, needs_answer=needs_answer)
    unreadable: list[str] = []
    try:
        for row in read_rows(path, needs_answer=needs_answer):
            if isinstance(row, RowFault):
                unreadable.append(row)
                reading.leave_out(row.source)
            else:
                reading.add(row)
    except DataError as error:
        return _FileContent(faults=[str(error)])
    try:
        content = reading.finish()
    except DataError as error:
        content = _FileContent(faults=[str(error)])
    content.faults += unreadable
    # Some faults are found as a file is read, others in its rows afterwards; what is not about a row comes first.
    content.faults.sort(key=lambda fault: fault.source.row if isinstance(fault, RowFault) else 0)
    return content


def _check_names(fields: Mapping[str, str]) -> None:
    unknown = [f"data.fields.{name}" for name in fields if name not in STANDARD_NAMES]
    if unknown:
        raise DataError(f"{show_names(unknown)} is not a known column; expected one of {', '.join(STANDARD_NAMES)}")


class _FileReading:
    """Turns the rows of one file into conversations as they come; those before its format is known wait for it.

    Args:
        name: The file, for messages.
        fields: Other column names.
        join: The separator between `instruction` and `input`.
        values: A list for the rows as they are; None if they are not needed.
        needs_answer: Whether rows must have an answer.
    """

    def __init__(
        self, name: str, fields: Mapping[str, str], join: str, values: _ValueList | None, *, needs_answer: bool
    ) -> None:
        self._name, self._fields, self._join, self._needs_answer = name, fields, join, needs_answer
        # If several formats match, the one with columns named by the user wins.
        self._forms = sorted(FORMATS, key=lambda form: not any(column in fields for column in form.columns))
        self._form: RowFormat | None = None
        self._content = _FileContent(values=values)
        self._columns: dict[str, None] = {}
        self._first: Mapping[str, Any] | None = None
        self._waiting: list[tuple[Row, dict[str, Any]]] = []
        self._faulty: set[Source] = set()
        self._others: dict[str, None] = {}
        self._left: set[str] = set()

    def leave_out(self, source: Source) -> None:
        """Takes no row from there: something is wrong with it already."""
        self._faulty.add(source)

    def add(self, row: Row) -> None:
        """Reads a row."""
        self._columns |= dict.fromkeys(row.values)
        values = rename(row.values, self._fields)
        self._first = values if self._first is None else self._first
        if self._form is not None:
            self._read(row, values, self._form)
            return
        self._waiting.append((row, values))
        self._form = complete_format(values, self._forms, needs_answer=self._needs_answer)
        if self._form is not None:
            self._read_waiting(self._form)

    def finish(self) -> _FileContent:
        """The contents, after the last row.

        Raises:
            DataError: The file has not the columns that it must have.
        """
        if self._first is None:
            return self._content
        needed = {key: self._fields[key] for key in self._fields if self._needs_answer or key not in ANSWERS}
        check_columns(self._name, self._columns, needed)
        form = self._form or partial_format(self._name, [values for _, values in self._waiting], self._forms)
        if unused := [key for key in self._fields if key not in form.known]:
            raise DataError(
                f"{self._name}: data.fields.{unused[0]} has no effect: these rows are read as {form.name}, which has "
                f'no "{unused[0]}". Map all columns of one format'
            )
        self._read_waiting(form)
        self._content.form = describe(form, self._first, list(self._others), self._left)
        return self._content

    def _read_waiting(self, form: RowFormat) -> None:
        for row, values in self._waiting:
            self._read(row, values, form)
        self._waiting.clear()

    def _read(self, row: Row, values: Mapping[str, Any], form: RowFormat) -> None:
        row_form = form_of(values, form, self._forms, needs_answer=self._needs_answer)
        conversation, faults = read_row(values, row_form, self._join, needs_answer=self._needs_answer)
        self._content.faults += [RowFault(f"{row.source}: {fault}", row.source, row.values) for fault in faults]
        if faults or row.source in self._faulty:
            return
        has_input = "input" in row_form.optional and bool(read_optional_text(values, "input").strip())
        self._content.add(row, conversation, is_joined=has_input)
        if row_form is not form:
            self._others[row_form.name] = None
        self._left |= values.keys() - row_form.known
        if row_form.is_chat:
            self._left |= unread_in_messages(values, row_form.columns[0])
