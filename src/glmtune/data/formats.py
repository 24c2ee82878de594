"""Turns rows of every supported format into conversations or questions; the format is detected from the rows.

    instruction   instruction, input (optional), output
    pairs         question/answer, query/response or prompt/response
    chat          messages or conversations: see `glmtune/prompts/messages.py`

Rows of the first two formats may also have `history` ([[question, answer], ...]), `system` and `tools`; rows of the
last may have `system` and `tools`. Questions are read in the same way as training data, except that the answer may be
missing; if it is present, it is not shown to the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from glmtune.data.readers import Row, Source, find_files, read_rows
from glmtune.errors import DataError, show_names, show_text, summarise_faults
from glmtune.json_values import read_list, read_optional_text, read_text, shorten
from glmtune.prompts import Conversation, Message, check_supervision
from glmtune.prompts.messages import add_system, read_chat, read_tools, unread_keys

Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class _Format:
    """A format of rows.

    Attributes:
        name: Its name.
        columns: The columns that every row must have: the messages, or a question and its answer.
        optional: The columns that they may have.
    """

    name: str
    columns: tuple[str, ...]
    optional: tuple[str, ...] = ("history", "system", "tools")

    @property
    def is_chat(self) -> bool:
        return len(self.columns) == 1

    @property
    def known(self) -> set[str]:
        """All columns that are read."""
        return {*self.columns, *self.optional}


# In the order in which they are tried.
_FORMATS = (
    _Format("messages", ("messages",), ("system", "tools")),
    _Format("conversations", ("conversations",), ("system", "tools")),
    _Format("instruction/output", ("instruction", "output"), ("input", "history", "system", "tools")),
    _Format("question/answer", ("question", "answer")),
    _Format("query/response", ("query", "response")),
    _Format("prompt/response", ("prompt", "response")),
)
PAIR_COLUMNS = tuple((form.columns[0], form.columns[1]) for form in _FORMATS if not form.is_chat)
CHAT_COLUMNS = tuple(form.columns[0] for form in _FORMATS if form.is_chat)
_ANSWERS = {form.columns[1] for form in _FORMATS if not form.is_chat}
_OPTIONAL_COLUMNS = ("input", "history", "system", "tools")
STANDARD_NAMES = tuple(dict.fromkeys([name for form in _FORMATS for name in form.columns] + [*_OPTIONAL_COLUMNS]))


@dataclass
class Conversations:
    """The contents of the data files.

    Attributes:
        items: The conversations, in the order of files and rows.
        sources: The file and row of each conversation.
        formats: By the path of each file, the format of its rows and the columns that are not read.
        join: The separator between `instruction` and `input`.
        num_joined: Rows that have both.
    """

    items: list[Conversation] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    formats: dict[str, str] = field(default_factory=dict)
    join: str = "\n"
    num_joined: int = 0

    def __len__(self) -> int:
        return len(self.items)

    def format_lines(self) -> list[str]:
        """How each file is read, a line a file."""
        return [f"{show_text(path)}: {form}" for path, form in self.formats.items()]


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
    faults: list[str] = field(default_factory=list)
    form: str = ""
    num_joined: int = 0


def read_conversations(paths: Paths, fields: Mapping[str, str] | None = None, join: str = "\n") -> Conversations:
    """Reads all rows of one or several files.

    Args:
        paths: Files, folders, patterns or names of hub data sets; see `readers.find_files` and `readers.read_rows`.
        fields: Other column names: maps the standard name to the column used instead, {"output": "reply"}.
        join: The separator between `instruction` and `input`; the tutorial uses none. Where `input` is empty or blank,
            the instruction is used alone.

    Returns:
        The conversations; the turns of each are in a valid order and end with the assistant's.

    Raises:
        DataError: Anything is wrong in any file; all faults, with their row numbers.
    """
    found, faults = scan(paths, fields, join)
    if faults:
        raise DataError(summarise_faults("the data cannot be used", faults))
    return found


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
    files, faults = _find_all(paths)
    contents = [_read_file(file, fields or {}, join, needs_answer=False) for file in files]
    faults += [fault for content in contents for fault in content.faults]
    if faults:
        raise DataError(summarise_faults("the questions cannot be answered", faults))
    return [
        Question(row.source, row.values, item)
        for content in contents
        for row, item in zip(content.rows, content.items, strict=True)
    ]


def _find_all(paths: Paths) -> tuple[list[str], list[str]]:
    """The files that names stand for, in order, and the faults of those that stand for none."""
    files: list[str] = []
    faults: list[str] = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        try:
            files += find_files(path)
        except DataError as error:
            faults.append(str(error))
    return files, faults


def scan(paths: Paths, fields: Mapping[str, str] | None = None, join: str = "\n") -> tuple[Conversations, list[str]]:
    """Like `read_conversations`, but returns the faults, one sentence each, along with the valid rows."""
    found = Conversations(join=join)
    try:
        _check_names(fields or {})
    except DataError as error:
        return found, [str(error)]
    files, faults = _find_all(paths)
    if not files and not faults:
        faults.append("no data file is given. Set data.path")
    for path in files:
        content = _read_file(path, fields or {}, join, needs_answer=True)
        faults += content.faults
        if content.form:
            found.formats[path] = content.form
        found.items += content.items
        found.sources += [row.source for row in content.rows]
        found.num_joined += content.num_joined
    return found, faults


def _read_file(path: str | Path, fields: Mapping[str, str], join: str, *, needs_answer: bool) -> _FileContent:
    content = _FileContent()
    try:
        rows, content.faults = read_rows(path, needs_answer=needs_answer)
        if rows:
            _read_file_rows(show_text(str(path)), rows, fields, join, content, needs_answer=needs_answer)
    except DataError as error:
        content.faults.append(str(error))
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
    _check_columns(name, rows, {key: fields[key] for key in fields if needs_answer or key not in _ANSWERS})
    renamed = [_rename(row.values, fields) for row in rows]
    # If several formats match, the one with columns named by the user wins.
    forms = sorted(_FORMATS, key=lambda form: not any(column in fields for column in form.columns))
    form = _find_format(name, renamed, forms, needs_answer=needs_answer)
    if unused := [key for key in fields if key not in form.known]:
        raise DataError(
            f"{name}: data.fields.{unused[0]} has no effect: these rows are read as {form.name}, which has no "
            f'"{unused[0]}". Map all columns of one format'
        )
    others, left = dict[str, None](), set[str]()
    for row, values in zip(rows, renamed, strict=True):
        row_form = _form_of(values, form, forms, needs_answer=needs_answer)
        conversation, faults = _read_row(values, row_form, join, needs_answer=needs_answer)
        content.faults += [f"{row.source}: {fault}" for fault in faults]
        if not faults:
            content.rows.append(row)
            content.items.append(conversation)
            content.num_joined += "input" in row_form.optional and bool(read_optional_text(values, "input").strip())
            others |= {row_form.name: None} if row_form is not form else {}
            left |= values.keys() - row_form.known
            left |= _unread_in_messages(values, row_form.columns[0]) if row_form.is_chat else set()
    content.form = _describe(form, renamed[0], list(others), left)


def _form_of(values: Mapping[str, Any], form: _Format, forms: Sequence[_Format], *, needs_answer: bool) -> _Format:
    """The format of a row: the file's, unless the row lacks a column of that and is complete in another."""
    needed = form.columns if needs_answer else form.columns[:1]
    if all(column in values for column in needed):
        return form
    return _row_format(values, forms, needs_answer=needs_answer) or form


def _check_columns(name: str, rows: Sequence[Row], fields: Mapping[str, str]) -> None:
    """Refuses names of columns that do not exist."""
    columns = dict.fromkeys(column for row in rows for column in row.values)
    missing = [
        f'"{show_text(column, 60)}" (data.fields.{key})' for key, column in fields.items() if column not in columns
    ]
    if missing:
        raise DataError(f"{name}: no row has {', '.join(missing)}; found: {show_names(columns)}")


def _rename(values: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    """A row under standard names. A column that `fields` names is found under its standard name only."""
    if not fields:
        return dict(values)
    mapped = {*fields, *fields.values()}
    kept = {key: value for key, value in values.items() if key not in mapped}
    return kept | {name: values[column] for name, column in fields.items() if column in values}


def _row_format(values: Mapping[str, Any], forms: Sequence[_Format], *, needs_answer: bool) -> _Format | None:
    """The first format with all its columns present; otherwise the first with its question, if no answer is needed."""
    complete = (form for form in forms if all(values.get(column) is not None for column in form.columns))
    asking = (form for form in forms if not needs_answer and values.get(form.columns[0]) is not None)
    return next(complete, None) or next(asking, None)


def _find_format(
    name: str, rows: Sequence[Mapping[str, Any]], forms: Sequence[_Format], *, needs_answer: bool
) -> _Format:
    """The format of the first row that matches one; otherwise of the first row that matches one in part."""
    for values in rows:
        if form := _row_format(values, forms, needs_answer=needs_answer):
            return form
    for values in rows:
        for form in forms:
            if any(column in values for column in form.columns):
                return form
    known = "; ".join(" and ".join(form.columns) for form in _FORMATS)
    raise DataError(
        f"{name}: no known columns; found: {show_names(rows[0]) or 'none'}; expected: {known}. "
        "Map other names with data.fields (or --field), for example data.fields.output=COLUMN"
    )


def _unread_in_messages(values: Mapping[str, Any], column: str) -> set[str]:
    return {f"{column}[].{key}" for entry in read_list(values, column) for key in unread_keys(entry)}


def _describe(form: _Format, values: Mapping[str, Any], others: Sequence[str], left: set[str]) -> str:
    name = form.name
    messages = values.get(form.columns[0])
    if form.is_chat and isinstance(messages, list) and messages and isinstance(messages[0], dict):
        name += f" ({'from/value' if 'from' in messages[0] else 'role/content'})"
    name = ", ".join([name, *others])
    return f"{name}; not read: {show_names(sorted(left))}" if left else name


def _read_row(
    values: Mapping[str, Any], form: _Format, join: str, *, needs_answer: bool
) -> tuple[Conversation, list[str]]:
    """The conversation of a row, and its faults, one sentence each."""
    if form.is_chat:
        conversation, faults = read_chat(values, form.columns[0], for_training=needs_answer)
        if not needs_answer and not faults:
            conversation = _without_answer(conversation)
            if conversation.messages[-1].role == "user" and not conversation.messages[-1].content.strip():
                faults = ["the question is empty. Fill it in or remove the row"]
    else:
        conversation, faults = _read_pair(values, form, join, needs_answer=needs_answer)
    if needs_answer and not faults:
        faults = check_supervision(conversation)
    return conversation, faults


def _without_answer(conversation: Conversation) -> Conversation:
    messages = list(conversation.messages)
    while messages and messages[-1].role == "assistant":
        messages.pop()
    return replace(conversation, messages=tuple(messages))


def _read_pair(
    values: Mapping[str, Any], form: _Format, join: str, *, needs_answer: bool
) -> tuple[Conversation, list[str]]:
    """A row with a question, and an answer if it is needed."""
    texts: list[str] = []
    faults: list[str] = []
    for column in form.columns if needs_answer else form.columns[:1]:
        try:
            advice = f"Add it, or map another field with data.fields.{column}"
            texts.append(read_text(values, column, advice=advice))
        except DataError as error:
            faults.append(str(error))
    try:
        extra = read_optional_text(values, "input") if "input" in form.optional else ""
        turns = _read_history(values)
        system, tools = read_optional_text(values, "system"), read_tools(values)
    except DataError as error:
        return Conversation(()), [*faults, str(error)]
    if faults:
        return Conversation(()), faults
    question, *answers = texts
    turns.append(Message("user", question + join + extra if extra.strip() else question))
    turns += [Message("assistant", answer) for answer in answers]
    return Conversation(tuple(add_system(turns, system, tools))), []


def _read_history(values: Mapping[str, Any]) -> list[Message]:
    """Earlier exchanges; their answers are supervised too."""
    messages = []
    for number, pair in enumerate(read_list(values, "history"), start=1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f'"history" {number} has to be [question, answer], found {shorten(pair)}')
        texts = {f"history {number} {part}": text for part, text in zip(("question", "answer"), pair, strict=True)}
        question, answer = (read_text(texts, name) for name in texts)
        messages += [Message("user", question), Message("assistant", answer)]
    return messages
