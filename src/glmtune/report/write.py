"""Writes reports: `report.html` and `report.md`."""

from collections.abc import Sequence
from pathlib import Path

from glmtune.errors import ConfigError
from glmtune.files import storage_faults, write_text
from glmtune.report.blocks import Report
from glmtune.report.comparing import comparison_report
from glmtune.report.facts import RunFacts
from glmtune.report.html import to_html
from glmtune.report.markdown import to_markdown
from glmtune.report.sections import run_report

PAGE_NAME, TEXT_NAME = "report.html", "report.md"


def write_report(runs: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Writes the report of a run, or the comparison of several.

    Args:
        runs: Run folders.
        output: The folder for both files; None for the run folder itself, or for several runs the current folder.

    Returns:
        The page.

    Raises:
        ConfigError: There is no run, or one of them is no run folder.
        StorageError: The files cannot be written.
    """
    if not runs:
        raise ConfigError("there is nothing to report on: name a run folder")
    short = [Path(run).expanduser().absolute().name for run in runs]
    names = short if len(set(short)) == len(short) else [str(run) for run in runs]
    facts = [RunFacts.read(run, name) for run, name in zip(runs, names, strict=True)]
    report = run_report(facts[0]) if len(facts) == 1 else comparison_report(facts)
    default = facts[0].folder if len(facts) == 1 else Path()
    folder = default if output is None else Path(output).expanduser()
    return _write(report, folder)


def _write(report: Report, folder: Path) -> Path:
    with storage_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / TEXT_NAME, to_markdown(report))
        write_text(folder / PAGE_NAME, to_html(report))
    return folder / PAGE_NAME
