"""Canary: what typer prints around the help can be translated where it is kept."""

import pytest
import typer
from typer import rich_utils
from typer.testing import CliRunner

from canary import changed
from glmtune import compat

TYPER = "typer 0.29"


def test_what_typer_prints_around_help_can_be_translated(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("ARGUMENTS_PANEL_TITLE", "OPTIONS_PANEL_TITLE", "COMMANDS_PANEL_TITLE", "DEFAULT_STRING")
    for name in (*names, "REQUIRED_LONG_STRING"):
        assert hasattr(rich_utils, name), changed(TYPER, f"typer.rich_utils.{name} is gone")
        monkeypatch.setattr(rich_utils, name, getattr(rich_utils, name))  # as it was, afterwards
    compat.translate_help(lambda text: f"<{text}>")
    app = typer.Typer()

    @app.command()
    def command(given: str, chosen: int = 3) -> None: ...

    printed = CliRunner(env={"COLUMNS": "100"}).invoke(app, ["--help"]).output
    for text in ("<Arguments>", "<Options>", "<[required]>", "<[default: 3]>"):
        assert text in printed, changed(TYPER, f"help has no {text}")
