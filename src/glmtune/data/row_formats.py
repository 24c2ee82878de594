"""The formats of rows, which one a row has, and its conversation."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from glmtune.errors import DataError, show_names, show_text
from glmtune.json_values import read_list, read_optional_text, read_text, shorten
from glmtune.prompts import Conversation, Message, check_supervision
from glmtune.prompts.messages import add_system, read_chat, read_tools, unread_keys


@dataclass(frozen=True)
class RowFormat:
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
        """Whether its rows are lists of messages."""
        return len(self.columns) == 1

    @property
    def known(self) -> set[str]:
        """All columns that are read."""
        return {*self.columns, *self.optional}


# In the order in which they are tried.
FORMATS = (
    RowFormat("messages", ("messages",), ("system", "tools")),
    RowFormat("conversations", ("conversations",), ("system", "tools")),
    RowFormat("instruction/output", ("instruction", "output"), ("input", "history", "system", "tools")),
    RowFormat("question/answer", ("question", "answer")),
    RowFormat("query/response", ("query", "response")),
    RowFormat("prompt/response", ("prompt", "response")),
    RowFormat("问题/回答", ("问题", "回答")),
    RowFormat("问题/答案", ("问题", "答案")),
)
PAIR_COLUMNS = tuple((form.columns[0], form.columns[1]) for form in FORMATS if not form.is_chat)
CHAT_COLUMNS = tuple(form.columns[0] for form in FORMATS if form.is_chat)
ANSWERS = {form.columns[1] for form in FORMATS if not form.is_chat}
_OPTIONAL_COLUMNS = ("input", "history", "system", "tools")
STANDARD_NAMES = tuple(dict.fromkeys([name for form in FORMATS for name in form.columns] + [*_OPTIONAL_COLUMNS]))


def form_of(values: Mapping[str, Any], form: RowFormat, forms: Sequence[RowFormat], *, needs_answer: bool) -> RowFormat:
    """The format of a row: the file's, unless the row lacks a column of that and is complete in another."""
    needed = form.columns if needs_answer else form.columns[:1]
    if all(column in values for column in needed):
        return form
    return complete_format(values, forms, needs_answer=needs_answer) or form


def check_columns(name: str, columns: Collection[str], fields: Mapping[str, str]) -> None:
    """Refuses names of columns that do not exist."""
    missing = [
        f'"{show_text(column, 60)}" (data.fields.{key})' for key, column in fields.items() if column not in columns
    ]
    if missing:
        raise DataError(f"{name}: no row has {', '.join(missing)}; found: {show_names(columns)}")


def rename(values: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    """A row under standard names. A column that `fields` names is found under its standard name only."""
    if not fields:
        return dict(values)
    mapped = {*fields, *fields.values()}
    kept = {key: value for key, value in values.items() if key not in mapped}
    return kept | {name: values[column] for name, column in fields.items() if column in values}


def complete_format(values: Mapping[str, Any], forms: Sequence[RowFormat], *, needs_answer: bool) -> RowFormat | None:
    """The first format with all its columns present; otherwise the first with its question, if no answer is needed."""
    complete = (form for form in forms if all(values.get(column) is not None for column in form.columns))
    asking = (form for form in forms if not needs_answer and values.get(form.columns[0]) is not None)
    return next(complete, None) or next(asking, None)


def partial_format(name: str, rows: Sequence[Mapping[str, Any]], forms: Sequence[RowFormat]) -> RowFormat:
    """The format of the first row that matches one in part, where none does as a whole.

    Raises:
        DataError: No row has any column of a format.
    """
    for values in rows:
        for form in forms:
            if any(column in values for column in form.columns):
                return form
    known = "; ".join(" + ".join(form.columns) for form in FORMATS)
    raise DataError(
        f"{name}: no known columns; found: {show_names(rows[0]) or 'none'}; expected: {known}. "
        "Name both columns: data.fields.instruction=COLUMN data.fields.output=COLUMN (train, plan) "
        "or --field instruction=COLUMN --field output=COLUMN (data, eval, generate)"
    )


def unread_in_messages(values: Mapping[str, Any], column: str) -> set[str]:
    """The keys of a row's messages that have a value but are not read."""
    return {f"{column}[].{key}" for entry in read_list(values, column) for key in unread_keys(entry)}


def describe(form: RowFormat, values: Mapping[str, Any], others: Sequence[str], left: set[str]) -> str:
    """How a file is read: its format, those of single rows, and the columns that are left."""
    name = form.name
    messages = values.get(form.columns[0])
    if form.is_chat and isinstance(messages, list) and messages and isinstance(messages[0], dict):
        name += f" ({'from/value' if 'from' in messages[0] else 'role/content'})"
    name = ", ".join([name, *others])
    return f"{name}; not read: {show_names(sorted(left))}" if left else name


def read_row(
    values: Mapping[str, Any], form: RowFormat, join: str, *, needs_answer: bool
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
    values: Mapping[str, Any], form: RowFormat, join: str, *, needs_answer: bool
) -> tuple[Conversation, list[str]]:
    """A row with a question, and an answer if it is needed."""
    texts: list[str] = []
    faults: list[str] = []
    for column in form.columns if needs_answer else form.columns[:1]:
        try:
            advice = (
                f"Add it, or name its column: data.fields.{column}=COLUMN (train, plan) or "
                f"--field {column}=COLUMN (data, eval, generate)"
            )
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
