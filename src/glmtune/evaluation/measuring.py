"""Measures one model on everything that was asked for."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from glmtune.evaluation.answers import answer_rows, enough_new_tokens
from glmtune.evaluation.choices import ChoiceQuestion, choice_log_likelihoods, right_answers
from glmtune.evaluation.losses import Rendering, loss_measures, render_rows, sample_losses
from glmtune.evaluation.measures import Measure, mean
from glmtune.evaluation.results import DATA_SECTION, GENERAL_SECTION
from glmtune.evaluation.rows import EvaluationRow
from glmtune.evaluation.stages import Stages
from glmtune.evaluation.text_metrics import Answer, answer_measures, diversity
from glmtune.models.families import shape_of
from glmtune.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class Tasks:
    """What a model is measured on.

    Attributes:
        rows: The rows of the data; none where there are no data.
        general: The general questions; none where they are not asked for.
        choices: By the name of its file, the multiple-choice questions.
        generates: Whether rows are answered too.
        max_new_tokens: The most tokens of an answer; None for what the references need.
        batch_size: The most questions at once; None for a number that suits the device.
    """

    rows: Sequence[EvaluationRow] = ()
    general: Sequence[EvaluationRow] = ()
    choices: Mapping[str, Sequence[ChoiceQuestion]] = field(default_factory=dict)
    generates: bool = True
    max_new_tokens: int | None = None
    batch_size: int | None = None

    def num_rows(self) -> dict[str, int]:
        """How many rows each section has."""
        counts = {DATA_SECTION: len(self.rows), GENERAL_SECTION: len(self.general)}
        return {name: number for name, number in counts.items() if number} | {
            name: len(questions) for name, questions in self.choices.items()
        }


@dataclass
class Measured:
    """The measures of one model.

    Attributes:
        measures: By section, the metrics of which differences can be drawn.
        plain: By section, the others.
        answers: By section, the answers.
        max_new_tokens: The most tokens of an answer.
    """

    measures: dict[str, dict[str, Measure]] = field(default_factory=dict)
    plain: dict[str, dict[str, float]] = field(default_factory=dict)
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    max_new_tokens: int | None = None

    def metrics(self) -> dict[str, dict[str, float]]:
        """All values."""
        return {
            section: {name: measure.value for name, measure in measures.items()} | self.plain.get(section, {})
            for section, measures in self.measures.items()
        }


def measure(
    model: Any, tokenizer: Tokenizer, tasks: Tasks, rendering: Rendering, name: str, stages: Stages
) -> Measured:
    """Measures a model.

    Args:
        model: The model, bare or within PEFT, with its adapter switched on or off.
        tokenizer: Its tokenizer.
        tasks: What on.
        rendering: How its rows are rendered.
        name: Its name, for the progress.
        stages: Shows the progress.
    """
    measured = Measured()
    for section, rows in ((DATA_SECTION, tasks.rows), (GENERAL_SECTION, tasks.general)):
        if rows:
            _measure_rows(measured, section, rows, model, tokenizer, tasks, rendering, name, stages)
    for file, questions in tasks.choices.items():
        num_letters = sum(len(question.letters) for question in questions)
        with stages(f"{name}: multiple choice", num_letters) as on_done:
            likelihoods = choice_log_likelihoods(model, tokenizer, questions, on_done=on_done)
        right = right_answers(questions, likelihoods)
        measured.measures[file] = {"accuracy": mean([100.0 * is_right for is_right in right])}
    return measured


def _measure_rows(
    measured: Measured,
    section: str,
    rows: Sequence[EvaluationRow],
    model: Any,
    tokenizer: Tokenizer,
    tasks: Tasks,
    rendering: Rendering,
    name: str,
    stages: Stages,
) -> None:
    """Adds the losses of rows, and the metrics of the answers."""
    context = shape_of(model).context_length
    samples = render_rows(rows, tokenizer, rendering, context)
    with stages(f"{name}: losses", len(rows)) as on_done:
        losses = sample_losses(model, samples, on_done)
    is_data = section == DATA_SECTION
    measures = loss_measures(losses, rendering.loss_weight if is_data else "token")
    measured.measures[section] = measures
    if not tasks.generates:
        return
    limit = tasks.max_new_tokens or enough_new_tokens(rows, tokenizer, context)
    with stages(f"{name}: answers", len(rows)) as on_done:
        answers = answer_rows(
            model,
            tokenizer,
            rows,
            template=rendering.template,
            system=rendering.system,
            max_new_tokens=limit,
            batch_size=tasks.batch_size,
            on_done=on_done,
        )
    measured.answers[section] = answers
    if is_data:
        measured.max_new_tokens = limit
        measures |= answer_measures(answers)
        measured.plain[section] = diversity(answers)
    else:
        measures["hits"] = mean([100.0 * _holds(answer) for answer in answers])
        measures["ended"] = mean([100.0 * answer.has_ended for answer in answers])


def _holds(answer: Answer) -> bool:
    """Whether an answer holds its short reference, in letters of any case; a number only as a whole."""
    label = re.escape(answer.label.strip())
    pattern = rf"(?<!\d){label}(?!\d)" if answer.label.strip().isdigit() else label
    return re.search(pattern, answer.predict, re.IGNORECASE) is not None
