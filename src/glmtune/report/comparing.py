"""The comparison of several runs: the settings that differ, their figures, curves, evaluations and answers."""

from collections.abc import Sequence
from datetime import timedelta

from glmtune.language import localise
from glmtune.report.blocks import Block, Lines, Report, Section, Table
from glmtune.report.evaluations import evaluation_blocks, exchanges
from glmtune.report.facts import RunFacts
from glmtune.report.sections import charts
from glmtune.report.settings import differing_settings


def comparison_report(runs: Sequence[RunFacts]) -> Report:
    """The comparison of at least two runs."""
    names = [run.name for run in runs]
    sections = [
        Section(localise("Settings that differ"), _settings(runs)),
        Section(localise("Result"), [_figures(runs)]),
        Section(localise("Evaluation"), _evaluations(runs)),
        Section(localise("Curves"), charts(runs)),
        Section(localise("Questions and answers"), exchanges(runs)),
    ]
    return Report(
        localise("Comparison of runs"),
        ", ".join(names),
        [section for section in sections if section.blocks],
    )


def _settings(runs: Sequence[RunFacts]) -> list[Block]:
    rows = [[localise(key), *values] for key, values in differing_settings(runs)]
    if not rows:
        return [Lines([localise("All settings are the same.")])]
    return [Table([localise("setting"), *(run.name for run in runs)], rows)]


def _figures(runs: Sequence[RunFacts]) -> Table:
    def last(run: RunFacts) -> str:
        points = run.points("loss")
        return f"{points[-1][1]:.4f}" if points else "—"

    def best(run: RunFacts) -> str:
        points = run.points("eval_loss")
        return f"{min(value for _, value in points):.4f}" if points else "—"

    def time(run: RunFacts) -> str:
        seconds = run.results.get("train_runtime")
        return str(timedelta(seconds=round(seconds))) if seconds else "—"

    rows = [
        [localise("training loss"), *(last(run) for run in runs)],
        [localise("best evaluation loss"), *(best(run) for run in runs)],
        [localise("optimiser steps"), *(f"{run.results.get('num_steps', '—')}" for run in runs)],
        [localise("time"), *(time(run) for run in runs)],
    ]
    return Table(["", *(run.name for run in runs)], rows, frozenset(range(1, len(runs) + 1)))


def _evaluations(runs: Sequence[RunFacts]) -> list[Block]:
    """The evaluations in one table where they are of the same rows, else one after the other."""
    there = [run for run in runs if run.evaluation]
    if not there:
        return []
    first = there[0].evaluation
    rows = ("files", "num_rows", "num_rows_in_files", "seed")
    is_same = all(run.evaluation.get(key) == first.get(key) for run in there for key in rows)
    if not is_same:
        return [block for run in there for block in (Lines([f"{run.name}:"]), *evaluation_blocks(run.evaluation))]
    candidates = [each for each in first.get("candidates", []) if not each.get("compared_with")]
    for run in there:
        own = [each for each in run.evaluation.get("candidates", []) if each.get("compared_with")]
        candidates += [{**each, "name": run.name} for each in own]
    return evaluation_blocks({**first, "candidates": candidates})
