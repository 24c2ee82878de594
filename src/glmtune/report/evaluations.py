"""The evaluations of runs as tables, and answers to the same questions beside each other."""

from collections.abc import Mapping, Sequence
from typing import Any

from glmtune.evaluation.measures import Difference
from glmtune.evaluation.results import DATA_SECTION, GENERAL_SECTION
from glmtune.evaluation.text_metrics import METRICS
from glmtune.language import localise
from glmtune.report.blocks import Block, Exchange, Lines, Table
from glmtune.report.facts import RunFacts

MOST_QUESTIONS = 10
_LONGEST_ANSWER = 1500


def evaluation_blocks(evaluation: Mapping[str, Any]) -> list[Block]:
    """A table for each section of an evaluation, with a line on what it is about."""
    candidates = [each for each in evaluation.get("candidates", []) if isinstance(each, dict)]
    blocks: list[Block] = []
    for section, number in evaluation.get("num_rows", {}).items():
        there = [each for each in candidates if section in each.get("metrics", {})]
        if there:
            blocks += [Lines([localise(_title(evaluation, section, number))]), _table(there, section)]
    if any(any(each.get("differences", {}).values()) for each in candidates):
        blocks.append(
            Lines(
                [
                    localise(
                        "Differences from the base, with their 95% interval (paired bootstrap); ~ is within the noise."
                    )
                ]
            )
        )
    notes = [localise(str(line)) for line in evaluation.get("notes", [])]
    return [*blocks, *([Lines(notes)] if notes else [])]


def _title(evaluation: Mapping[str, Any], section: str, number: int) -> str:
    if section == GENERAL_SECTION:
        return f"General questions: {number:,}"
    if section == DATA_SECTION:
        return f"{', '.join(evaluation.get('files', []))}: {number:,} of {evaluation.get('num_rows_in_files'):,} rows"
    return f"{section}: {number:,} multiple-choice questions"


def _table(candidates: Sequence[Mapping[str, Any]], section: str) -> Table:
    columns = [localise("metric")]
    for candidate in candidates:
        columns.append(localise(str(candidate["name"])))
        if candidate.get("differences", {}).get(section):
            columns.append(localise("difference"))
    rows = []
    for name, label, form in METRICS:
        if any(name in candidate["metrics"][section] for candidate in candidates):
            cells = [cell for candidate in candidates for cell in _cells(candidate, section, name, form)]
            rows.append([localise(label), *cells])
    return Table(columns, rows, frozenset(range(1, len(columns))))


def _cells(candidate: Mapping[str, Any], section: str, name: str, form: str) -> list[str]:
    value = candidate["metrics"][section].get(name)
    cells = ["" if value is None else form.format(value)]
    if differences := candidate.get("differences", {}).get(section):
        found = differences.get(name)
        is_whole = found is not None and None not in found.values()
        # The interval on a line of its own, so that the column is narrow.
        cells.append(Difference(**found).say(form).replace(" [", "\n[") if is_whole else "")
    return cells


def exchanges(runs: Sequence[RunFacts]) -> list[Exchange]:
    """Up to ten questions that all runs have answered, with the reference, the base's answer and theirs.

    They come from the evaluation, or where a run has none, from the last evaluation in training.
    """
    first, *others = runs
    rows = first.predictions or first.samples
    found = []
    for index, row in list(enumerate(rows))[:: max(len(rows) // MOST_QUESTIONS, 1)][:MOST_QUESTIONS]:
        answers = [(localise("reference"), _short(row.get("label")))]
        if len(first.base_predictions) == len(rows):
            answers.append((localise("base"), _short(first.base_predictions[index].get("predict"))))
        elif before := _answer(first.first_samples, row) if not first.predictions else None:
            answers.append((localise("before training"), before))
        answers.append((first.name if others else localise("adapter"), _short(row.get("predict"))))
        for other in others:
            answers.append((other.name, _answer(other.predictions or other.samples, row) or "—"))
        found.append(Exchange(_short(row.get("prompt")), answers))
    return found


def _answer(rows: Sequence[Mapping[str, Any]], asked: Mapping[str, Any]) -> str | None:
    """The answer of other rows to the same question; None if it was not asked there."""
    same = [each for each in rows if each.get("prompt") == asked.get("prompt")]
    return _short(same[0].get("predict")) if same else None


def _short(text: Any) -> str:
    text = str(text or "")
    return text if len(text) <= _LONGEST_ANSWER else f"{text[:_LONGEST_ANSWER]} ..."
