"""What the command line says of itself, without doing anything."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

import glmtune
import processes
from glmtune.cli.app import app
from glmtune.cli.options import (
    ComparedName,
    DtypeName,
    FaultyName,
    OverlongName,
    QuantizeName,
    TargetName,
    WeightTypeName,
    parse_fields,
    parse_options,
)
from glmtune.config import embedded_base, embedded_data
from glmtune.data.conversion.rows import Direction
from glmtune.data.dataset import Overlong
from glmtune.data.formats import Faulty
from glmtune.data.selection.dedupe import Compared
from glmtune.data.shapes import Shape
from glmtune.errors import ConfigError
from glmtune.export.gguf_file import WeightType
from glmtune.loading.devices import Dtype
from glmtune.loading.formats import Quantize

COMMANDS = [
    "",
    "train",
    "plan",
    "chat",
    "generate",
    "merge",
    "eval",
    "report",
    "env",
    "demo",
    "data",
    "data check",
    "data show",
    "data split",
]


def invoke(*arguments: str) -> tuple[int, str]:
    # No dumb terminal: rich takes that for 80 columns wide where colours have once been forced in this process.
    result = CliRunner(env={"COLUMNS": "120", "LINES": "50", "TERM": "xterm"}).invoke(app, arguments)
    return result.exit_code, re.sub(r"\x1b\[[0-9;]*m", "", result.output)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps_by_the_short_option_too(command: str) -> None:
    code, short = invoke(*command.split(), "-h")
    assert code == 0
    assert "Usage:" in short
    assert invoke(*command.split(), "--help") == (0, short)


def test_an_option_of_a_name_given_twice_is_refused() -> None:
    for parse, name in ((parse_options, "top_p"), (parse_fields, "output")):
        with pytest.raises(ConfigError, match=f"{name} is given twice, as 1 and as 2"):
            parse([f"{name}=1", f"{name}=2"])


def test_the_version_is_the_packages() -> None:
    assert invoke("--version") == (0, f"glmtune {glmtune.__version__}\n")


@pytest.mark.parametrize(
    ("command", "values"),
    [
        ("chat", "<auto|float32|bfloat16|float16>"),
        ("chat", "<auto|none|int8|nf4|fp8>"),
        ("generate", "<chatglm3|chatglm2|tutorial>"),
        ("merge", "<auto|float32|bfloat16|float16>"),
        ("data show", "<chatglm3|chatglm2|tutorial>"),
        ("data stats", "<chatglm3|chatglm2|tutorial>"),
    ],
)
def test_help_lists_the_values_that_an_option_takes(command: str, values: str) -> None:
    """In a process of its own: typer settles on a width when it is first imported."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    printed = subprocess.run(
        [sys.executable, "-m", "glmtune.cli", *command.split(), "--help"],
        env={**environment, "COLUMNS": "120", "GLMTUNE_LANG": "en", "PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
        check=True,
    ).stdout
    assert values.strip("<>") in printed


@pytest.mark.parametrize("option", ["--dtype", "--quantize", "--template"])
def test_another_value_is_refused_with_those_that_there_are(option: str) -> None:
    code, output = invoke("chat", "no-such-run", option, "zigzag")
    assert code == 2
    assert option in output
    assert "'zigzag' is not one of" in " ".join(output.split())


def test_the_values_are_those_of_the_functions_that_they_go_to() -> None:
    assert set(get_args(DtypeName)) == set(get_args(Dtype))
    assert set(get_args(QuantizeName)) == {"auto", *get_args(Quantize)}
    assert set(get_args(OverlongName)) == set(get_args(Overlong))
    assert set(get_args(WeightTypeName)) == set(get_args(WeightType))
    assert set(get_args(FaultyName)) == set(get_args(Faulty))
    assert set(get_args(ComparedName)) == set(get_args(Compared))
    assert set(get_args(TargetName)) == {*get_args(Shape), *get_args(Direction)}


@pytest.mark.posix  # presses Ctrl-C by a signal
@pytest.mark.parametrize(("language", "said"), [("en", "Interrupted.\n"), ("zh", "已中断。\n")])
def test_ctrl_c_while_the_command_line_is_imported_is_one_line(language: str, said: str) -> None:
    code = """
import os, signal, sys
class PressesCtrlC:
    def find_spec(self, name, path, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, PressesCtrlC())
from glmtune.__main__ import main
main()
"""
    done = processes.run(sys.executable, "-c", code, env={**os.environ, "GLMTUNE_LANG": language, "PYTHONUTF8": "1"})
    assert (done.returncode, done.stderr, done.stdout) == (130, said, "")


def test_the_package_runs_as_a_module(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["glmtune", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("glmtune.cli", run_name="__main__")
    assert not ended.value.code
    assert capsys.readouterr().out == f"glmtune {glmtune.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["generate", "--batch-size", "0"], "batch_size: expected a whole number of at least 1, found 0"),
        (["generate", "temperatur=1"], "did you mean temperature?"),
        (["generate", "max_new_tokens=0"], "max_new_tokens: expected a whole number of at least 1, found 0"),
        (["chat", "top_p=2", "do_sample=true"], "top_p: expected a number above 0 and at most 1, found 2"),
        (["chat", "top_p"], "'top_p' is not a sampling option"),
    ],
)
def test_wrong_options_are_found_before_a_model_is_loaded(
    arguments: list[str], fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("glmtune.loading.runs.load", lambda *_, **__: pytest.fail("a model is loaded"))
    command, *options = arguments
    files = ["--input", str(embedded_data()), "--output", str(tmp_path / "a.jsonl")] if command == "generate" else []
    with pytest.raises(ConfigError, match=re.escape(fault)):
        CliRunner().invoke(app, [command, str(embedded_base()), *files, *options], catch_exceptions=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", ""),
        ("eval", "run", "--data", " "),
        ("eval", "run", "--choices", ""),
        ("eval", ""),
        ("data", "check", ""),
        ("data", "check", "a.json", "--eval", ""),
        ("data", "merge", "a.json", "", "--output", "out.json"),
        ("serve", ""),
    ],
)
def test_an_unset_variable_is_not_taken_for_the_current_folder(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ConfigError)
    assert "an argument is empty" in str(result.exception)
