"""Files of questions: the rows that training data have, with or without the answers, or a plain text file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.data.readers import Row, Source, read_rows
from glmtune.errors import DataError, summarise_faults
from glmtune.fields import read_list, read_optional_text, read_text, shorten
from glmtune.messages import read_chat
from glmtune.prompts import Conversation, check_turns

_CHAT_COLUMNS = ("messages", "conversations")
_QUESTION_COLUMNS = ("instruction", "question", "query", "prompt")


@dataclass(frozen=True)
class Question:
    """A row to be answered.

    Attributes:
        source: Where it stands.
        values: The row as it is in the file, its reference answer included.
        conversation: What the model is shown; ends with the user's turn or an observation.
    """

    source: Source
    values: dict[str, Any]
    conversation: Conversation


def read_questions(path: str | Path, fields: Mapping[str, str] | None = None, join: str = "\n") -> list[Question]:
    """Reads the questions of a file.

    Args:
        path: A file or hub data set as `data.readers.read_rows` takes it, or a `.txt` file with a question a line. A
            row has `messages` or `conversations` (answers that they end with are not shown to the model), or one of
            `instruction` (with `input`), `question`, `query` and `prompt`, where `history`, `system` and `tools` may
            stand beside it.
        fields: Other column names: the standard name to the column that stands for it, {"question": "prompt_zh"}.
        join: What to put between `instruction` and `input`; use what the model was trained with.

    Returns:
        The questions, in the order of rows.

    Raises:
        DataError: The file cannot be read, or rows are wrong; all of them are named.
    """
    is_text = Path(path).suffix.lower() == ".txt"
    rows, faults = (_read_text_lines(Path(path).expanduser()), []) if is_text else read_rows(path)
    questions = []
    for row in rows:
        try:
            questions.append(Question(row.source, row.values, _read_conversation(row.values, fields or {}, join)))
        except DataError as error:
            faults.append(f"{row.source}: {error}")
    if faults:
        raise DataError(summarise_faults(f"{path} cannot be answered", faults))
    return questions


def _read_text_lines(path: Path) -> list[Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected UTF-8, found byte 0x{error.object[error.start]:02x} at offset {error.start}; "
            f"convert the file: iconv -f GB18030 -t UTF-8 {path} > questions.txt"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read: {error.strerror or error}") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise DataError(f"{path}: the file holds no questions; expected one a line")
    return [
        Row(Source(str(path), row, line_number), {"question": line})
        for row, (line_number, line) in enumerate(lines, start=1)
    ]


def _read_conversation(values: Mapping[str, Any], fields: Mapping[str, str], join: str) -> Conversation:
    values = {**values, **{name: values[column] for name, column in fields.items() if column in values}}
    key = next((key for key in _CHAT_COLUMNS if key in values), None)
    if key is None:
        key, values = "messages", {**values, "messages": _as_messages(values, join)}
    conversation, faults = read_chat(values, key)
    if not conversation.messages:
        raise DataError("; ".join(faults) or f'"{key}" is empty')
    messages = list(conversation.messages)
    while messages and messages[-1].role == "assistant":
        messages.pop()
    conversation = Conversation(tuple(messages))
    if faults := check_turns(conversation, for_training=False):
        raise DataError("; ".join(faults))
    return conversation


def _as_messages(values: Mapping[str, Any], join: str) -> list[dict[str, str]]:
    """A row with a question of its own, as the list of messages that it stands for."""
    column = next((column for column in _QUESTION_COLUMNS if column in values), None)
    if column is None:
        raise DataError(
            f"no known column; found: {', '.join(values) or 'nothing'}; expected one of "
            f"{', '.join((*_CHAT_COLUMNS, *_QUESTION_COLUMNS))}. Rename the column, or map it as data.fields does"
        )
    question = read_text(values, column)
    if column == "instruction" and (extra := read_optional_text(values, "input")).strip():
        question = f"{question}{join}{extra}"
    messages = []
    for number, pair in enumerate(read_list(values, "history"), start=1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f'"history" {number} has to be [question, answer], found {shorten(pair)}')
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return [*messages, {"role": "user", "content": question}]
