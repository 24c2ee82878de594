"""Answers of the model in training to a few evaluation questions, at each evaluation (`train.eval_generate`)."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glmtune.errors import GlmtuneError
from glmtune.evaluation.answers import answer_rows, enough_new_tokens
from glmtune.evaluation.rows import EvaluationRow
from glmtune.evaluation.text_metrics import Answer, answer_measures, diversity
from glmtune.files import storage_faults
from glmtune.inference.answering import release
from glmtune.models.families import shape_of
from glmtune.models.tokenizer import Tokenizer
from glmtune.prompts import Conversation, Template

SAMPLES_NAME = "eval_samples.jsonl"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationQuestions:
    """The questions that are asked at each evaluation.

    Attributes:
        rows: The rows, with their reference answers.
        tokenizer: The tokenizer.
        template: The prompt template.
        system: The system prompt.
    """

    rows: Sequence[EvaluationRow]
    tokenizer: Tokenizer
    template: Template
    system: str | None

    @classmethod
    def of(
        cls, conversations: Sequence[Conversation], tokenizer: Tokenizer, template: Template, system: str | None
    ) -> "EvaluationQuestions":
        """The questions of conversations that end with the assistant's turn."""
        rows = [
            EvaluationRow.of(each, f"evaluation sample {number}") for number, each in enumerate(conversations, start=1)
        ]
        return cls(rows, tokenizer, template, system)

    def ask(
        self, model: Any, process: int, num_processes: int, gather: Callable[[list[Any]], list[Any]]
    ) -> tuple[list[Answer], dict[str, float]]:
        """Answers the questions, each process its share.

        Args:
            model: The model in training.
            process: The number of this process.
            num_processes: How many there are.
            gather: Joins the lists of all processes.

        Returns:
            All answers, and their metrics; nothing if the model could not be asked, of which a warning tells.
        """
        own = range(process, len(self.rows), num_processes)
        try:
            answers = self._answer(model, [self.rows[index] for index in own]) if own else []
        except (GlmtuneError, torch.OutOfMemoryError) as error:
            _logger.warning("the evaluation questions could not be answered: %s", error)
            answers = []
        finally:
            release(model)  # training needs the memory
        found = gather(list(zip(own, answers, strict=False)))
        if len(found) < len(self.rows):
            return [], {}
        answers = [answer for _, answer in sorted(found, key=lambda each: each[0])]
        values = {name: measure.value for name, measure in answer_measures(answers).items()}
        return answers, values | diversity(answers)

    def _answer(self, model: Any, rows: Sequence[EvaluationRow]) -> list[Answer]:
        limit = enough_new_tokens(self.rows, self.tokenizer, shape_of(model).context_length)
        return answer_rows(
            model, self.tokenizer, rows, template=self.template, system=self.system, max_new_tokens=limit
        )


def append_samples(answers: Sequence[Answer], step: int, run: str | Path) -> None:
    """Adds answers to `eval_samples.jsonl` in a run folder, each with the step that it was given at.

    Raises:
        StorageError: It cannot be written.
    """
    file = Path(run) / SAMPLES_NAME
    rows = [{"step": step, "prompt": each.prompt, "label": each.label, "predict": each.predict} for each in answers]
    with storage_faults(file), file.open("a", encoding="utf-8", errors="backslashreplace") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
