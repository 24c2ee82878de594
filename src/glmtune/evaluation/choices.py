"""Multiple-choice files, answered by log-likelihood as lm-evaluation-harness does it.

    question,A,B,C,D,answer     C-Eval: with a heading, and perhaps other columns, which are not read
    What is ...?,1,2,3,4,C      MMLU: the same columns without a heading

The question and its choices are plain text, without the roles of a chat; each letter is scored as its continuation,
and the likeliest one is the answer. With the model's prefix of special tokens, this is lm-evaluation-harness's
`add_bos_token=True`, without it, its default; in both cases without examples (0-shot).

Source: lm-evaluation-harness 0.4.13, tasks ceval and mmlu, without their line about the subject.
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from glmtune.data.packing import TokenizedSample
from glmtune.data.readers import csv_records, encoding_fault, expand_path
from glmtune.errors import DataError, show_names, show_text, summarise_faults
from glmtune.evaluation.losses import sample_losses
from glmtune.files import say_os_error
from glmtune.models.families import shape_of
from glmtune.models.tokenizer import Tokenizer
from glmtune.prompts import IGNORED_LABEL

_LETTERS = "ABCDEFGHIJ"
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_PLAIN_COLUMNS = ("question", "A", "B", "C", "D", "answer")


@dataclass(frozen=True)
class ChoiceQuestion:
    """A multiple-choice question.

    Attributes:
        prompt: Question and choices, up to where the letter follows.
        letters: The letters of its choices.
        answer: The letter of the right one.
    """

    prompt: str
    letters: str
    answer: str


def read_choices(path: str | Path) -> list[ChoiceQuestion]:
    """Reads a multiple-choice file.

    Args:
        path: A CSV file in UTF-8, in one of the layouts above.

    Returns:
        At least one question.

    Raises:
        DataError: It cannot be read, or rows are wrong; all of them are named.
    """
    name = show_text(str(path))
    records = _read_records(path, name)
    columns = [cell.strip() for cell in records[0]]
    first = 2
    if "question" not in columns:
        if len(columns) != len(_PLAIN_COLUMNS) or columns[-1] not in _LETTERS[:4]:
            raise DataError(
                f"{name}: expected a heading with the columns question, A, B, C, D and answer, or six columns without "
                f"a heading, the last of them the letter; found: {show_names(columns)}"
            )
        columns, records, first = list(_PLAIN_COLUMNS), [columns, *records], 1
    letters = "".join(letter for letter in _LETTERS if letter in columns)
    if missing := [column for column in (*_PLAIN_COLUMNS[:3], "answer") if column not in columns]:
        raise DataError(f"{name}: there is no column {show_names(missing)}; found: {show_names(columns)}")
    questions, faults = [], []
    rows = [dict(zip(columns, cells, strict=False)) for cells in records[1:]]
    is_chinese = sum(bool(_CHINESE.search(row.get("question", ""))) for row in rows) * 2 >= len(rows)
    for number, row in enumerate(rows, start=first):
        own = "".join(letter for letter in letters if row.get(letter, "").strip())
        right = row.get("answer", "").strip()
        if len(right) != 1 or right not in own:
            faults.append(f"{name}, row {number}: the answer has to be one of {own or letters}; found {right!r:.40}")
            continue
        questions.append(ChoiceQuestion(_prompt(row, own, is_chinese), own, right))
    if faults:
        raise DataError(summarise_faults("the questions cannot be answered", faults))
    if not questions:
        raise DataError(f"{name}: the file holds no rows; expected at least one")
    return questions


def _read_records(path: str | Path, name: str) -> list[list[str]]:
    try:
        data = expand_path(path).read_bytes()
        text = data.decode("utf-8-sig")
        records = [cells for _, cells in csv_records(io.StringIO(text, newline=""), name)]
    except OSError as error:
        raise DataError(f"{name}: the file cannot be read: {say_os_error(error)}") from error
    except UnicodeDecodeError as error:
        raise DataError(encoding_fault(data, name)) from error
    if not records:
        raise DataError(f"{name}: the file is empty; expected at least one row")
    return records


def _prompt(row: dict[str, str], letters: str, is_chinese: bool) -> str:
    choices = "".join(f"{letter}. {row[letter]}\n" for letter in letters)
    return f"{row['question'].strip()}\n{choices}{'答案：' if is_chinese else 'Answer:'}"


def choice_log_likelihoods(
    model: Any,
    tokenizer: Tokenizer,
    questions: Sequence[ChoiceQuestion],
    *,
    adds_prefix: bool = True,
    on_done: Callable[[int], None] = lambda _: None,
) -> list[NDArray[numpy.float64]]:
    """The log-likelihood of each letter of each question, in nats.

    Args:
        model: The model, bare or within PEFT.
        tokenizer: Its tokenizer.
        questions: The questions.
        adds_prefix: Whether the special tokens that every sequence of the model begins with come first.
        on_done: Called after each pass with the number of letters in it.
    """
    prefix = tokenizer.prefix_token_ids if adds_prefix else []
    samples = []
    for question in questions:
        context = [*prefix, *tokenizer.encode_text(question.prompt)]
        for letter in question.letters:
            # Encoded as one text, and split where the context alone would end, as lm-evaluation-harness does.
            ids = [*prefix, *tokenizer.encode_text(f"{question.prompt} {letter}")]
            labels = [IGNORED_LABEL] * len(context) + ids[len(context) :]
            limit = shape_of(model).context_length
            samples.append(TokenizedSample.of(ids[-limit:], labels[-limit:]))
    likelihoods = -sample_losses(model, samples, on_done)[:, 0]
    ends = numpy.cumsum([len(question.letters) for question in questions])
    return numpy.split(likelihoods, ends[:-1])


def right_answers(
    questions: Sequence[ChoiceQuestion], likelihoods: Sequence[NDArray[numpy.float64]]
) -> NDArray[numpy.bool_]:
    """Whether the likeliest letter of each question is the right one."""
    chosen = [
        question.letters[int(numpy.argmax(of_letters))]
        for question, of_letters in zip(questions, likelihoods, strict=True)
    ]
    return numpy.asarray([letter == question.answer for letter, question in zip(chosen, questions, strict=True)])
