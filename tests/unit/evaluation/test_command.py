"""Without these, `glmtune eval` and `glmtune report` could break though what they call works."""

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from glmtune.cli.app import app
from glmtune.errors import GlmtuneError
from glmtune.evaluation import libraries

from .conftest import Trained


def call(*arguments: str, columns: str = "120") -> str:
    result = CliRunner(env={"COLUMNS": columns, "TERM": "xterm"}).invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return re.sub(r"\x1b\[[0-9;]*m", "", result.output)


@pytest.fixture
def run(trained: Trained, tmp_path: Path) -> Path:
    return shutil.copytree(trained.run, tmp_path / "run")


def test_base_and_run_stand_side_by_side_in_the_users_language(
    trained: Trained, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLMTUNE_LANG", "zh")
    printed = call("eval", str(run), "--data", str(trained.eval_data), "--count", "6", "--max-new-tokens", "2")
    assert "8 条中的 6 条" in printed
    assert re.search(r"指标 .* 基座 .* run .* 差值", printed)
    assert re.search(r"损失 .*\[-", printed)
    assert str(run / "evaluation") in printed.replace("\n", "")
    assert "报告：" in call("report", str(run))
    assert "困惑度" in (run / "report.md").read_text(encoding="utf-8")


def test_few_rows_have_no_differences_and_that_is_said(trained: Trained, run: Path) -> None:
    printed = call("eval", str(run), "--data", str(trained.eval_data), "--count", "3", "--no-generate")
    assert "With fewer than 5 rows, no differences from the base are shown" in printed
    assert "95% interval" not in printed
    call("report", str(run))
    assert "95% interval" not in (run / "report.md").read_text(encoding="utf-8")


def test_without_the_packages_it_says_what_to_install(
    trained: Trained, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libraries, "find_spec", lambda name: None)
    printed = call("eval", str(run), "--data", str(trained.eval_data), "--max-new-tokens", "2", "--no-base")
    assert "pip install 'glmtune[eval]'" in printed
    assert "exact match" in printed
    assert "ROUGE-L" not in printed
    (candidate,) = json.loads((run / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))["candidates"]
    assert "rouge-l" not in candidate["metrics"]["data"]


def test_only_losses_are_computed_where_no_answers_are_wanted(trained: Trained, run: Path) -> None:
    printed = call("eval", str(run), "--data", str(trained.eval_data), "--no-generate", "--output", str(run / "x"))
    assert "perplexity" in printed
    assert "exact match" not in printed
    assert [file.name for file in (run / "x").iterdir()] == ["evaluation.json"]


def test_a_file_without_answers_is_refused(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "questions.json"
    file.write_text('[{"instruction": "问"}]', encoding="utf-8")
    with pytest.raises(GlmtuneError, match="output"):
        call("eval", str(run), "--data", str(file))
