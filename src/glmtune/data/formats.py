"""Rows of every known form, turned into conversations. The form is found by looking.

    instruction   instruction, input (optional), output
    pairs         question/answer, query/response or prompt/response
    chat          messages or conversations: see `glmtune/messages.py`

Rows of the first two forms may also have `history` ([[question, answer], ...]), `system` and `tools`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmtune.data.readers import Row, Source, read_rows
from glmtune.errors import DataError, summarise_faults
from glmtune.fields import read_list, read_optional_text, read_text, shorten
from glmtune.messages import add_system, read_chat, read_tools
from glmtune.prompts import Conversation, Message

Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class _Format:
    """A form of rows: its name and the columns that every row must have."""

    name: str
    columns: tuple[str, ...]

    @property
    def is_chat(self) -> bool:
        return len(self.columns) == 1


# In the order in which they are tried.
_FORMATS = (
    _Format("messages", ("messages",)),
    _Format("conversations", ("conversations",)),
    _Format("instruction/output", ("instruction", "output")),
    _Format("question/answer", ("question", "answer")),
    _Format("query/response", ("query", "response")),
    _Format("prompt/response", ("prompt", "response")),
)
_OPTIONAL_COLUMNS = ("input", "history", "system", "tools")
STANDARD_NAMES = tuple(dict.fromkeys([name for form in _FORMATS for name in form.columns] + [*_OPTIONAL_COLUMNS]))


@dataclass
class Conversations:
    """What the data files hold.

    Attributes:
        items: The conversations, in the order of files and rows.
        sources: Where each of them stands.
        formats: The form of each file's rows, by its path.
        join: What stands between `instruction` and `input`.
        num_joined: Rows that have both.
    """

    items: list[Conversation] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    formats: dict[str, str] = field(default_factory=dict)
    join: str = "\n"
    num_joined: int = 0

    def __len__(self) -> int:
        return len(self.items)


def read_conversations(paths: Paths, fields: Mapping[str, str] | None = None, join: str = "\n") -> Conversations:
    """Reads all rows of one or several files.

    Args:
        paths: Files or names of hub data sets; see `readers.read_rows`.
        fields: Other column names: the standard name to the column that stands for it, {"output": "reply"}.
        join: What to put between `instruction` and `input`; the tutorial has nothing there. Where `input` is empty
            or blank, the instruction stands alone.

    Returns:
        The conversations; each is in a sound order and ends with the assistant's turn.

    Raises:
        DataError: Anything is wrong in any file; all faults, with their row numbers.
    """
    found, faults = scan(paths, fields, join)
    if faults:
        raise DataError(summarise_faults("the data cannot be used", faults))
    return found


def scan(paths: Paths, fields: Mapping[str, str] | None = None, join: str = "\n") -> tuple[Conversations, list[str]]:
    """Like `read_conversations`, but returns the faults, one sentence each, beside the sound rows."""
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    found = Conversations(join=join)
    fields = fields or {}
    faults = [
        f"data.fields.{name} is no known column; expected one of {', '.join(STANDARD_NAMES)}"
        for name in fields
        if name not in STANDARD_NAMES
    ]
    if faults:
        return found, faults
    if not paths:
        faults.append("no data file is given. Set data.path")
    for path in paths:
        try:
            rows, row_faults = read_rows(path)
            faults += row_faults
            if rows:
                faults += _read_file_rows(str(path), _rename(str(path), rows, fields), found)
        except DataError as error:
            faults.append(str(error))
    return found, faults


def _rename(path: str, rows: Sequence[Row], fields: Mapping[str, str]) -> list[Row]:
    """The rows under standard names. A column that `fields` names is found under its standard name only."""
    columns = dict.fromkeys(column for row in rows for column in row.values)
    missing = [f'"{column}" (data.fields.{name})' for name, column in fields.items() if column not in columns]
    if missing:
        raise DataError(f"{path}: no row has {', '.join(missing)}; found: {', '.join(columns)}")
    mapped = {*fields, *fields.values()}
    return [
        Row(
            row.source,
            {key: value for key, value in row.values.items() if key not in mapped}
            | {name: row.values[column] for name, column in fields.items() if column in row.values},
        )
        for row in rows
    ]


def _read_file_rows(path: str, rows: Sequence[Row], found: Conversations) -> list[str]:
    """Adds the rows of one file to what was found; returns their faults."""
    form = _find_format(path, rows)
    found.formats[path] = _describe(form, rows[0])
    faults: list[str] = []
    for row in rows:
        other = _complete_format(row.values)
        if other is not None and not all(column in row.values for column in form.columns):
            faults.append(
                f"{row.source}: this row has {' and '.join(other.columns)}, the file began with "
                f"{' and '.join(form.columns)}. Put rows of one form into one file"
            )
            continue
        conversation, row_faults = _read_row(row.values, form, found.join)
        faults += [f"{row.source}: {fault}" for fault in row_faults]
        if not row_faults:
            found.items.append(conversation)
            found.sources.append(row.source)
            found.num_joined += form.columns[0] == "instruction" and bool(
                read_optional_text(row.values, "input").strip()
            )
    return faults


def _complete_format(values: Mapping[str, Any]) -> _Format | None:
    """The first form all of whose columns are there."""
    return next((form for form in _FORMATS if all(column in values for column in form.columns)), None)


def _find_format(path: str, rows: Sequence[Row]) -> _Format:
    """The form of the first row that has one; failing that, of the first row that has a part of one."""
    for row in rows:
        if form := _complete_format(row.values):
            return form
    for row in rows:
        for form in _FORMATS:
            if any(column in row.values for column in form.columns):
                return form
    known = "; ".join(" and ".join(form.columns) for form in _FORMATS)
    columns = ", ".join(rows[0].values) or "none"
    raise DataError(
        f"{path}: no known columns; found: {columns}; expected: {known}. "
        "Map other names with data.fields, for example data.fields.output=COLUMN"
    )


def _describe(form: _Format, row: Row) -> str:
    messages = row.values.get(form.columns[0])
    if form.is_chat and isinstance(messages, list) and messages and isinstance(messages[0], dict):
        return f"{form.name} ({'from/value' if 'from' in messages[0] else 'role/content'})"
    return form.name


def _read_row(values: Mapping[str, Any], form: _Format, join: str) -> tuple[Conversation, list[str]]:
    if form.is_chat:
        return read_chat(values, form.columns[0])
    texts: list[str] = []
    faults: list[str] = []
    for column in form.columns:
        try:
            advice = f"Add it, or map another field with data.fields.{column}"
            texts.append(read_text(values, column, advice=advice))
        except DataError as error:
            faults.append(str(error))
    try:
        extra = read_optional_text(values, "input") if form.columns[0] == "instruction" else ""
        turns = _read_history(values)
        system, tools = read_optional_text(values, "system"), read_tools(values)
    except DataError as error:
        return Conversation(()), [*faults, str(error)]
    if faults:
        return Conversation(()), faults
    question, answer = texts
    turns += [Message("user", question + join + extra if extra.strip() else question), Message("assistant", answer)]
    return Conversation(tuple(add_system(turns, system, tools))), []


def _read_history(values: Mapping[str, Any]) -> list[Message]:
    """Earlier exchanges; the answers in them are learnt too."""
    messages = []
    for number, pair in enumerate(read_list(values, "history"), start=1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f'"history" {number} has to be [question, answer], found {shorten(pair)}')
        texts = {f"history {number} {part}": text for part, text in zip(("question", "answer"), pair, strict=True)}
        question, answer = (read_text(texts, name) for name in texts)
        messages += [Message("user", question), Message("assistant", answer)]
    return messages
