"""Converts one row: which of its columns are a question, and what becomes of them. Nothing else of a row is touched."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from glmtune.data.conversion.matching import join_parts, split_question
from glmtune.data.row_formats import CHAT_COLUMNS, PAIR_COLUMNS

Direction = Literal["instruction", "qa"]
"""What rows are converted to: instructions with an input, or questions."""

_INSTRUCTION, _INPUT, _OUTPUT = "instruction", "input", "output"
# A question and its answer, by the names that they have in files.
_QUESTION_COLUMNS = tuple(pair for pair in (*PAIR_COLUMNS, ("prompt", "completion")) if pair[0] != _INSTRUCTION)


@dataclass(frozen=True)
class ConvertedRow:
    """A row after conversion.

    Attributes:
        values: The row; the very one that was given if it was left as it is.
        rule: The rule that converted it; "" if it was left.
        reason: Why it was left; "" if it was converted.
        before: The question, or instruction and input, as it was.
        after: What it has become.
    """

    values: Mapping[str, Any]
    rule: str = ""
    reason: str = ""
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


def convert_row(values: Mapping[str, Any], to: Direction, fields: Mapping[str, str] | None = None) -> ConvertedRow:
    """Converts a row, if a rule fits; otherwise it stays exactly as it is.

    Args:
        values: The row. With `instruction` it keeps its columns; a question of other columns becomes `instruction` and
            `input`, its answer `output`.
        to: What to convert to.
        fields: Other column names: maps the standard name to the column used instead.

    Returns:
        The row, and what was done or why nothing was.
    """
    if any(values.get(column) is not None for column in CHAT_COLUMNS):
        return ConvertedRow(values, reason="conversations of several turns")
    name = dict(fields or {}).get
    instruction, more = name(_INSTRUCTION, _INSTRUCTION), name(_INPUT, _INPUT)
    if values.get(instruction) is not None:
        return _convert_instruction(values, to, instruction, more)
    pairs = [(name(question, question), name(answer, answer)) for question, answer in _QUESTION_COLUMNS]
    asking = [pair for pair in pairs if values.get(pair[0]) is not None]
    if not asking:
        return ConvertedRow(values, reason="no known columns")
    question, answer = next((pair for pair in asking if pair[1] in values), asking[0])
    return _convert_question(values, to, question, answer)


def _convert_instruction(values: Mapping[str, Any], to: Direction, instruction: str, more: str) -> ConvertedRow:
    task, object = values[instruction], values.get(more)
    if not isinstance(task, str) or not isinstance(object, str | None):
        return ConvertedRow(values, reason="the question is no text")
    has_input = bool(object and object.strip())
    if has_input == (to == "instruction"):
        return ConvertedRow(values, reason="already instructions with an input" if has_input else "already questions")
    if object and has_input:
        joined = join_parts(task, object)
        if joined is None:
            return ConvertedRow(values, reason="no rule fits")
        rule, question = joined
        converted = {**values, instruction: question, more: ""}
        return ConvertedRow(converted, rule, before=(task, object), after=(question,))
    return _split(values, task, {instruction: (instruction, more)})


def _convert_question(values: Mapping[str, Any], to: Direction, question: str, answer: str) -> ConvertedRow:
    if to == "qa":
        return ConvertedRow(values, reason="already questions")
    if not isinstance(values[question], str):
        return ConvertedRow(values, reason="the question is no text")
    if any(name in values for name in {_INSTRUCTION, _INPUT, _OUTPUT} - {question, answer}):
        return ConvertedRow(values, reason="the row has the columns of both forms")
    return _split(values, values[question], {question: (_INSTRUCTION, _INPUT), answer: (_OUTPUT,)})


def _split(values: Mapping[str, Any], question: str, renamed: Mapping[str, tuple[str, ...]]) -> ConvertedRow:
    """The row with its question split in two; the columns keep their order, under their new names."""
    parts = split_question(question)
    if parts is None:
        return ConvertedRow(values, reason="no rule fits")
    converted: dict[str, Any] = {}
    for name, value in values.items():
        new = renamed.get(name, (name,))
        if len(new) == 2:
            converted |= {new[0]: parts.task, new[1]: parts.object}
        elif name not in converted:  # an empty input that stood before or behind is the new one
            converted[new[0]] = value
    return ConvertedRow(converted, parts.rule, before=(question,), after=(parts.task, parts.object))
