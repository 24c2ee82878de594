"""Canaries: what typer prints around the help can be translated where it is kept, and its texts wrapped."""

from typing import Annotated

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


def test_a_help_text_without_spaces_is_wrapped_and_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hasattr(rich_utils, "_make_rich_text"), changed(TYPER, "typer.rich_utils._make_rich_text is gone")
    monkeypatch.setattr(rich_utils, "_make_rich_text", rich_utils._make_rich_text)  # as it was, afterwards
    compat.wrap_help_anywhere()
    compat.wrap_help_anywhere()  # at every help text
    app, text = typer.Typer(), "最多同时回答多少个问题默认由设备决定" * 6 + "完"

    @app.command()
    def command(chosen: Annotated[int, typer.Option(help=text)] = 3) -> None: ...

    printed = CliRunner(env={"COLUMNS": "80", "TERM": "xterm"}).invoke(app, ["--help"]).output
    assert "…" not in printed, changed(TYPER, "help is cut off")
    assert "完" in printed
