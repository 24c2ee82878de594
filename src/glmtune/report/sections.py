"""The report of one run: its facts as sections, in the user's language."""

import shlex
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from glmtune.data.stats import DataStats
from glmtune.language import localise
from glmtune.report.blocks import Block, Chart, Commands, Figures, Lines, Report, Section, Series, Table
from glmtune.report.curves import averaged
from glmtune.report.evaluations import evaluation_blocks, exchanges
from glmtune.report.facts import RunFacts
from glmtune.report.settings import settings_in_words

_LEAST_AVERAGED = 8  # of fewer points, an average says nothing more


def run_report(facts: RunFacts) -> Report:
    """The report of a run."""
    sections = [
        Section(localise("Result"), _result(facts)),
        Section(localise("Evaluation"), _evaluation(facts)),
        Section(localise("Curves"), charts([facts])),
        Section(localise("Questions and answers"), exchanges([facts])),
        Section(localise("Settings"), [Table([localise("setting"), localise("value")], settings_in_words(facts))]),
        Section(localise("Data"), _data(facts)),
        Section(localise("Memory"), _memory(facts)),
        Section(localise("Versions"), [Lines(["  ".join(f"{k} {v}" for k, v in facts.manifest.versions.items())])]),
        Section(localise("How to go on"), [Commands(_commands(facts))]),
    ]
    return Report(
        localise(f"Report of {facts.name}"),
        str(facts.folder),
        [section for section in sections if section.blocks],
    )


def _result(facts: RunFacts) -> list[Block]:
    losses, evaluated = facts.points("loss"), facts.points("eval_loss")
    rates = facts.points("tokens_per_second")
    values = []
    if losses:
        values.append((localise("training loss"), f"{losses[0][1]:.4f} → {losses[-1][1]:.4f}"))
    if evaluated:
        values.append((localise("best evaluation loss"), f"{min(value for _, value in evaluated):.4f}"))
    if steps := facts.results.get("num_steps"):
        values.append((localise("optimiser steps"), f"{steps:,}"))
    if seconds := facts.results.get("train_runtime"):
        values.append((localise("time"), str(timedelta(seconds=round(seconds)))))
    if rates:
        middle = sorted(value for _, value in rates)[len(rates) // 2]
        values.append((localise("tokens/s"), f"{middle:,.0f}"))
    if peak := facts.results.get("memory", {}).get("peak_gib"):
        values.append((localise("most memory"), f"{peak:.1f} GiB"))
    blocks: list[Block] = [Figures(values)] if values else []
    if not facts.results:
        blocks.append(Lines([localise("The run has not ended; this is what there is of it so far.")]))
    return blocks


def _evaluation(facts: RunFacts) -> list[Block]:
    if facts.evaluation:
        return evaluation_blocks(facts.evaluation)
    return [Lines([localise("Not evaluated yet. To compare base and adapter:")]), Commands([_eval_command(facts)])]


def charts(runs: Sequence[RunFacts]) -> list[Block]:
    """The curves of one run, or of several in the same charts."""
    several = len(runs) > 1
    titles = (
        ("loss", "loss (mean cross entropy of a token, nats)", "{:.3f}"),
        ("learning_rate", "learning rate", "{:.2g}"),
        ("grad_norm", "norm of the gradient", "{:.3g}"),
        ("tokens_per_second", "tokens/s", "{:,.0f}"),
    )
    blocks: list[Block] = []
    for key, title, form in titles:
        series = []
        for run in runs:
            points = run.points(key)
            name = run.name if several else localise("training" if key == "loss" else title)
            series += _with_average(name, points, is_averaged=key == "loss", alone=not several)
            if key == "loss" and (evaluated := run.points("eval_loss")):
                label = f"{run.name}: {localise('evaluation')}" if several else localise("evaluation")
                series.append(Series(label, evaluated, has_dots=True))
        if series:
            blocks.append(Chart(localise(title), series, form))
    return blocks


def _with_average(name: str, points: Sequence[tuple[float, float]], *, is_averaged: bool, alone: bool) -> list[Series]:
    """A line, and where it is a noisy one its average; of several runs, the average alone."""
    if not points:
        return []
    if not is_averaged or len(points) < _LEAST_AVERAGED:
        return [Series(name, points)]
    if not alone:
        return [Series(name, averaged(points))]
    return [Series(name, points, is_faint=True), Series(localise("training, smoothed"), averaged(points))]


def _data(facts: RunFacts) -> list[Block]:
    data: dict[str, Any] = dict(facts.results.get("data", {}))
    findings, unchecked = data.pop("findings", None), data.pop("unchecked", None) or []
    try:
        blocks: list[Block] = [Lines([localise(line) for line in DataStats(**data).lines()])]
        rows = [[*map(localise, finding["lines"])] for finding in findings or ()]
        found = [["\n".join(lines), mend] for *lines, mend in rows]
    except (TypeError, AttributeError, LookupError, ValueError, ZeroDivisionError):
        return []  # of a run that has not ended, or of another version
    if found:
        columns = [localise("what was found"), localise("what to do")]
        blocks.append(Table(columns, found))
    notes = [localise(f"not looked for: {text}") for text in unchecked]
    if findings == []:
        notes.insert(0, localise("nothing else to note"))
    return [*blocks, *([Lines(notes)] if notes else [])]


def _memory(facts: RunFacts) -> list[Block]:
    memory = facts.results.get("memory", {})
    names = (
        ("planned_gib", "planned"),
        ("peak_gib", "measured"),
        ("free_gib", "free at the start"),
    )
    values = [(localise(name), f"{memory[key]:.2f} GiB") for key, name in names if memory.get(key) is not None]
    return [Figures(values)] if values else []


def _eval_command(facts: RunFacts) -> str:
    path = facts.section("data").get("eval_path")
    return f"glmtune eval {_quoted(facts)} --data {shlex.quote(path) if isinstance(path, str) else 'test.json'}"


def _commands(facts: RunFacts) -> list[str]:
    name = _quoted(facts)
    if not facts.results:
        return []
    return [
        f"glmtune chat {name}",
        f"glmtune generate {name} --input questions.json --output replies.jsonl",
        _eval_command(facts),
        f"glmtune report {name}",
        f"glmtune merge {name} --output {shlex.quote(f'{facts.folder}-merged')}",
    ]


def _quoted(facts: RunFacts) -> str:
    return shlex.quote(str(facts.folder))
