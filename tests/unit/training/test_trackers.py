"""Without these, TensorBoard or SwanLab would not say what a run was, or not show how its answers change."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers.integrations import SwanLabCallback, TensorBoardCallback, integration_utils

from glmtune.evaluation.text_metrics import Answer
from glmtune.training import arguments
from glmtune.training.trackers import RunArguments, show_answers, start_swanlab

from .conftest import Run


class Writer:
    """Stands for TensorBoard's."""

    def __init__(self) -> None:
        self.texts: dict[tuple[str, int | None], str] = {}
        self.scalars: set[str] = set()

    def add_text(self, name: str, text: str, step: int | None = None) -> None:
        self.texts[name, step] = text

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.add(name)

    def flush(self) -> None:
        pass

    close = flush


def test_tensorboard_gets_all_settings_and_the_answers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer()

    class Recorder(TensorBoardCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.tb_writer, self.logging_dir = writer, "unused"

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Recorder)
    monkeypatch.setattr(arguments, "get_available_reporting_integrations", lambda: ["tensorboard"])
    settings = ["prompt.system=你是小满。", "lora.r=4", "data.eval_fraction=0.2", "train.eval_generate=2"]
    run(*settings, "train.report_to=tensorboard", "train.hub_token=secret")
    shown = json.loads(writer.texts["args", None])
    assert shown["prompt.system"] == "你是小满。"
    assert (shown["lora.r"], shown["data.eval_fraction"], shown["train.eval_generate"]) == (4, 0.2, 2)
    assert shown["learning_rate"] == 0.01
    assert "shown_settings" not in shown
    assert "secret" not in writer.texts["args", None]
    assert "eval/exact_match" in writer.scalars
    assert writer.texts["eval/answers", 3].count("**") == 4


def test_swanlab_gets_the_answers_in_the_form_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[Any, int]] = []
    fake = SimpleNamespace(Text=lambda text: ["text", text], log=lambda values, step: logged.append((values, step)))
    monkeypatch.setitem(sys.modules, "swanlab", fake)
    show_answers([SwanLabCallback.__new__(SwanLabCallback)], [Answer("问", "答", "回", True, 2)], 7)
    assert logged == [({"eval/answers": ["text", "**问**\n\n回\n\n(答)"]}, 7)]


def test_swanlab_is_started_where_it_refuses_to_say_that_it_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[dict[str, Any]] = []

    def get_run() -> object:
        if not started:
            raise RuntimeError("No active Run. Call swanlab.init() first.")
        return started[0]

    fake = SimpleNamespace(get_run=get_run, init=lambda **values: started.append(values))
    monkeypatch.setitem(sys.modules, "swanlab", fake)
    settings = RunArguments(str(tmp_path), use_cpu=True, report_to="none", run_name="mine")
    start_swanlab(settings)
    assert not started
    settings.report_to = ["swanlab"]
    for _ in range(2):
        start_swanlab(settings)
    assert [values["experiment_name"] for values in started] == ["mine"]
