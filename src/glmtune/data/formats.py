"""Turns rows of every supported format into conversations or questions; the format is detected from the rows.

    instruction   instruction, input (optional), output
    pairs         question/answer, query/response or prompt/response
    chat          messages or conversations: see `glmtune/prompts/messages.py`

Rows of the first two formats may also have `history` ([[question, answer], ...]), `system` and `tools`; rows of the
last may have `system` and `tools`. Questions are read in the same way as training data, except that the answer may be
missing; if it is present, it is not shown to the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from glmtune.data.readers import Row, RowFault, Source, read_rows
from glmtune.data.row_formats import (
    ANSWERS,
    FORMATS,
    STANDARD_NAMES,
    check_columns,
    describe,
    find_format,
    form_of,
    read_row,
    rename,
    unread_in_messages,
)
from glmtune.data.weights import Paths, drawn_rows, weighted_files
from glmtune.errors import DataError, show_names, show_text, summarise_faults
from glmtune.json_values import read_optional_text
from glmtune.language.plurals import count
from glmtune.prompts import Conversation

Faulty = Literal["stop", "skip"]


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

    items: list[Conversation] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    formats: dict[str, str] = field(default_factory=dict)
    join: str = "\n"
    num_joined: int = 0
    skipped: list[RowFault] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.items)

    def format_lines(self) -> list[str]:
        """How each file is read, a line a file."""
        return [f"{show_text(path)}: {form}" for path, form in self.formats.items()]


@dataclass(frozen=True, slots=True)
class Example:
    """A row, as it is in the file and as it is understood.

    Attributes:
        source: Its file and row.
        values: The row as it is in the file.
        conversation: What it says.
    """

    source: Source
    values: dict[str, Any]
    conversation: Conversation


@dataclass(frozen=True)
class Question:
    """A row to be answered.

    Attributes:
        source: Its file and row.
        values: The row as it is in the file, its reference answer included.
        conversation: The prompt for the model; ends with the user's turn or an observation.
    """

    source: Source
    values: dict[str, Any]
    conversation: Conversation


@dataclass
class _FileContent:
    """The contents of a file: its valid rows, the conversation of each, and the faults of the others."""

    rows: list[Row] = field(default_factory=list)
    items: list[Conversation] = field(default_factory=list)
    is_joined: list[bool] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    form: str = ""

    def draw(self, weight: float, seed: str) -> None:
        """Keeps the rows that a weight stands for."""
        drawn = drawn_rows(len(self.rows), weight, seed)
        self.rows = [self.rows[index] for index in drawn]
        self.items = [self.items[index] for index in drawn]
        self.is_joined = [self.is_joined[index] for index in drawn]


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
) -> tuple[list[Example], list[RowFault]]:
    """Reads all rows of one or several files, and keeps them as they are, too.

    Args:
        paths: As for `read_conversations`, as are the others.

    Returns:
        The rows, and the faults of those that were left out.

    Raises:
        DataError: As `read_conversations` does.
    """
    examples: list[Example] = []
    _, faults = scan(paths, fields, join, seed=seed, examples=examples)
    return examples, _allowed(faults, faulty, len(examples))


def _allowed(faults: Sequence[str], faulty: Faulty, num_valid: int) -> list[RowFault]:
    """The faults, if they are of rows that may be left out.

    Raises:
        DataError: They may not.
    """
    of_rows = [fault for fault in faults if isinstance(fault, RowFault)]
    if faults and (faulty == "stop" or len(of_rows) < len(faults) or not num_valid):
        raise DataError(summarise_faults("the data cannot be used", faults))
    return of_rows


def read_questions(paths: Paths, fields: Mapping[str, str] | None = None, join: str = "\n") -> list[Question]:
    """Reads the questions of one or several files.

    Args:
        paths: Files as for `read_conversations`, with rows of any training format, with or without the answers; or
            `.txt` files with one question per line.
        fields: As for `read_conversations`.
        join: As for `read_conversations`; use the value that the model was trained with.

    Returns:
        The questions, in the order of files and rows.

    Raises:
        DataError: Anything is wrong in any file; all faults, with their row numbers.
    """
    _check_names(fields or {})
    files, faults = weighted_files(paths)
    contents = [_read_file(file, fields or {}, join, needs_answer=False) for file, _ in files]
    faults += [fault for content in contents for fault in content.faults]
    if faults:
        raise DataError(summarise_faults("the questions cannot be answered", faults))
    return [
        Question(row.source, row.values, item)
        for content in contents
        for row, item in zip(content.rows, content.items, strict=True)
    ]


def scan(
    paths: Paths,
    fields: Mapping[str, str] | None = None,
    join: str = "\n",
    *,
    seed: int | None = 42,
    examples: list[Example] | None = None,
) -> tuple[Conversations, list[str]]:
    """Like `read_conversations`, but returns the faults, one sentence each, along with the valid rows.

    Args:
        paths: As for `read_conversations`, as are `fields` and `join`.
        seed: Decides which rows are drawn from files with weights; None for all rows once, whatever the weights.
        examples: A list to which the rows as they are in the files are added.
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
        content = _read_file(path, fields or {}, join, needs_answer=True)
        faults += content.faults
        if content.form:
            found.formats[path] = content.form
        if seed is not None and weight != 1 and content.items:
            # By its place among the files, so that the draw stays the same when they are moved.
            content.draw(weight, f"{seed}/{number}")
            found.formats[path] += f"; weight {weight:g}, {count(len(content.items), 'rows')}"
        found.items += content.items
        found.sources += [row.source for row in content.rows]
        found.num_joined += sum(content.is_joined)
        if examples is not None:
            pairs = zip(content.rows, content.items, strict=True)
            examples += [Example(row.source, row.values, item) for row, item in pairs]
    return found, faults


def _read_file(path: str | Path, fields: Mapping[str, str], join: str, *, needs_answer: bool) -> _FileContent:
    content = _FileContent()
    try:
        rows, faults = read_rows(path, needs_answer=needs_answer)
        content.faults += faults
        if rows:
            _read_file_rows(show_text(str(path)), rows, fields, join, content, needs_answer=needs_answer)
    except DataError as error:
        content.faults.append(str(error))
    # Some faults are found as a file is read, others in its rows afterwards; what is not about a row comes first.
    content.faults.sort(key=lambda fault: fault.source.row if isinstance(fault, RowFault) else 0)
    return content


def _check_names(fields: Mapping[str, str]) -> None:
    unknown = [f"data.fields.{name}" for name in fields if name not in STANDARD_NAMES]
    if unknown:
        raise DataError(f"{show_names(unknown)} is not a known column; expected one of {', '.join(STANDARD_NAMES)}")


def _read_file_rows(
    name: str,
    rows: Sequence[Row],
    fields: Mapping[str, str],
    join: str,
    content: _FileContent,
    *,
    needs_answer: bool,
) -> None:
    """Adds the conversations of one file's rows, and the faults, to the content."""
    check_columns(name, rows, {key: fields[key] for key in fields if needs_answer or key not in ANSWERS})
    renamed = [rename(row.values, fields) for row in rows]
    # If several formats match, the one with columns named by the user wins.
    forms = sorted(FORMATS, key=lambda form: not any(column in fields for column in form.columns))
    form = find_format(name, renamed, forms, needs_answer=needs_answer)
    if unused := [key for key in fields if key not in form.known]:
        raise DataError(
            f"{name}: data.fields.{unused[0]} has no effect: these rows are read as {form.name}, which has no "
            f'"{unused[0]}". Map all columns of one format'
        )
    others, left = dict[str, None](), set[str]()
    faulty = {fault.source for fault in content.faults if isinstance(fault, RowFault)}
    for row, values in zip(rows, renamed, strict=True):
        row_form = form_of(values, form, forms, needs_answer=needs_answer)
        conversation, faults = read_row(values, row_form, join, needs_answer=needs_answer)
        content.faults += [RowFault(f"{row.source}: {fault}", row.source, row.values) for fault in faults]
        if not faults and row.source not in faulty:
            content.rows.append(row)
            content.items.append(conversation)
            has_input = "input" in row_form.optional and bool(read_optional_text(values, "input").strip())
            content.is_joined.append(has_input)
            others |= {row_form.name: None} if row_form is not form else {}
            left |= values.keys() - row_form.known
            left |= unread_in_messages(values, row_form.columns[0]) if row_form.is_chat else set()
    content.form = describe(form, renamed[0], list(others), left)
