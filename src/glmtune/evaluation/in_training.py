"""Answers of the model in training to a few evaluation questions, at each evaluation (`train.eval_generate`)."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glmtune.adapters.run_folder import SAMPLES_NAME
from glmtune.errors import GlmtuneError
from glmtune.evaluation.answers import answer_rows, enough_new_tokens
from glmtune.evaluation.rows import EvaluationRow
from glmtune.evaluation.text_metrics import Answer, answer_measures, diversity
from glmtune.files import storage_faults
from glmtune.inference.answering import release
from glmtune.models.families import shape_of
from glmtune.models.tokenizer import Tokenizer
from glmtune.prompts import Conversation, Template

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationQuestions:
    """The questions that are asked before the first step and at each evaluation.

    Attributes:
        rows: The rows, with their reference answers.
        tokenizer: The tokenizer.
        template: The prompt template.
        system: The system prompt.
        folder: The run folder.
        process: The number of this process.
        num_processes: How many there are.
    """

    rows: Sequence[EvaluationRow]
    tokenizer: Tokenizer
    template: Template
    system: str | None
    folder: Path
    process: int = 0
    num_processes: int = 1

    @classmethod
    def of(
        cls,
        conversations: Sequence[Conversation],
        tokenizer: Tokenizer,
        template: Template,
        system: str | None,
        **place: Any,
    ) -> "EvaluationQuestions":
        """The questions of conversations that end with the assistant's turn; `place` has the other attributes."""
        rows = [
            EvaluationRow.of(each, f"evaluation sample {number}") for number, each in enumerate(conversations, start=1)
        ]
        return cls(rows, tokenizer, template, system, **place)

    def ask(
        self, model: Any, step: int, gather: Callable[[list[Any]], list[Any]]
    ) -> tuple[dict[str, float], list[Answer]]:
        """Answers the questions, each process its share, and adds them to `eval_samples.jsonl`.

        Args:
            model: The model in training.
            step: Optimiser steps that it has taken.
            gather: Joins the lists of all processes.

        Returns:
            All answers, and their metrics; none if the model could not be asked; a warning says so.

        Raises:
            StorageError: The answers cannot be written.
        """
        own = range(self.process, len(self.rows), self.num_processes)
        try:
            answers = self._answer(model, [self.rows[index] for index in own]) if own else []
        except (GlmtuneError, torch.OutOfMemoryError) as error:
            _logger.warning("the evaluation questions could not be answered: %s", error)
            answers = []
        finally:
            release(model)  # training needs the memory
        found = gather(list(zip(own, answers, strict=False)))
        if len(found) < len(self.rows):
            return {}, []
        answers = [answer for _, answer in sorted(found, key=lambda each: each[0])]
        if self.process == 0:
            self._write(answers, step)
        metrics = {name: measure.value for name, measure in answer_measures(answers).items()}
        return metrics | diversity(answers), answers

    def _write(self, answers: Sequence[Answer], step: int) -> None:
        """Adds the answers to the file, each with its step and number; those before the first step begin it."""
        file = self.folder / SAMPLES_NAME
        rows = [
            {"step": step, "index": index, "prompt": each.prompt, "label": each.label, "predict": each.predict}
            for index, each in enumerate(answers)
        ]
        mode = "a" if step else "w"
        with storage_faults(file), file.open(mode, encoding="utf-8", errors="backslashreplace") as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def _answer(self, model: Any, rows: Sequence[EvaluationRow]) -> list[Answer]:
        limit = enough_new_tokens(self.rows, self.tokenizer, shape_of(model).context_length)
        return answer_rows(
            model, self.tokenizer, rows, template=self.template, system=self.system, max_new_tokens=limit
        )
