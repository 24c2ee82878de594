"""Progress and tables of an evaluation on the terminal."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from glmtune.errors import show_text
from glmtune.evaluation.results import DATA_SECTION, GENERAL_SECTION, Candidate, Evaluation
from glmtune.evaluation.stages import Stages
from glmtune.evaluation.text_metrics import METRICS
from glmtune.language import localise


def stages_on(console: Console) -> Stages:
    """Shows each stage of an evaluation as a progress bar; without a terminal, not at all.

    Args:
        console: Where to.
    """

    @contextmanager
    def stage(description: str, total: int) -> Iterator[Callable[[int], None]]:
        if not console.is_terminal:
            yield lambda number: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(show_text(localise(description)), total=total)
            yield lambda number: progress.advance(task, number)

    return stage


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Prints a table for each section, and what to know about it.

    Args:
        evaluation: The result.
        console: Where to.
    """
    for section in evaluation.num_rows:
        console.print(section_table(evaluation, section))
        console.print()
    lines = list(evaluation.notes)
    if any(any(candidate.differences.values()) for candidate in evaluation.candidates):
        lines.append("Differences from the base, with their 95% interval (paired bootstrap); ~ is within the noise.")
    lines += [f"results: {show_text(str(folder))}" for folder in evaluation.folders]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def section_title(evaluation: Evaluation, section: str) -> str:
    """What was evaluated, in words."""
    number = evaluation.num_rows[section]
    if section == GENERAL_SECTION:
        return f"General questions: {number:,}"
    if section == DATA_SECTION:
        files = ", ".join(show_text(file, 60) for file in evaluation.files)
        return f"{files}: {number:,} of {evaluation.num_rows_in_files:,} rows"
    return f"{show_text(section, 60)}: {number:,} multiple-choice questions"


def section_table(evaluation: Evaluation, section: str) -> Table:
    """The metrics of all models in one section."""
    table = Table(title=localise(section_title(evaluation, section)), title_justify="left")
    table.add_column(localise("metric"), overflow="fold")
    candidates = [each for each in evaluation.candidates if section in each.metrics]
    for candidate in candidates:
        table.add_column(show_text(localise(candidate.name)), justify="right", overflow="fold")
        if candidate.differences.get(section):
            table.add_column(localise("difference"), justify="right", overflow="fold")
    for name, label, form in METRICS:
        if any(name in candidate.metrics[section] for candidate in candidates):
            table.add_row(localise(label), *_cells(candidates, section, name, form))
    return table


def _cells(candidates: Sequence[Candidate], section: str, name: str, form: str) -> Iterator[str]:
    for candidate in candidates:
        value = candidate.metrics[section].get(name)
        yield "" if value is None else form.format(value)
        if candidate.differences.get(section):
            found = candidate.differences[section].get(name)
            yield "" if found is None else found.say(form)
