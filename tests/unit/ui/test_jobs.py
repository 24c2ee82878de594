"""Without these, the page could train with other settings than were typed, or lose what a stopped run had learnt."""

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from glmtune.config.reading import load_config
from glmtune.ui.jobs import Job, Jobs, folder_of, setting


@pytest.mark.parametrize(
    "text",
    [
        *("你是客服。", "规则: 一\n第二行 # 不是注释", "- 一", "[x]", "{x}", "null", "'引号'", '"', "@x"),
        *("123", "yes", "*x", "😀", "a\tb", "C:\\data", "a, b"),
    ],
)
def test_a_system_prompt_is_the_one_that_was_typed(text: str) -> None:
    assert load_config(None, [setting("prompt.system", text)]).prompt.system == text


@pytest.mark.parametrize("name", ["output/page", "a: b", "a #1", "2024-01-01", "123"])
def test_the_page_looks_into_the_folder_that_is_trained_in(name: str) -> None:
    arguments = [setting("train.output_dir", name)]
    assert folder_of(arguments) == Path(name)
    assert str(load_config(None, arguments).train["output_dir"]) == name


def test_a_folder_below_home_is_found() -> None:
    assert folder_of(["demo", "train.output_dir=~/run"]) == Path("~/run").expanduser()


class Running:
    """A process that does not end."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.signals: list[int] = []

    def poll(self) -> None:
        return None

    def wait(self) -> None:
        return None

    def send_signal(self, number: int) -> None:
        self.signals.append(number)


def test_a_run_that_saves_its_checkpoint_is_not_aborted_by_another_click(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", Running)
    jobs = Jobs()
    process: Any = jobs.start(["demo"], Path("run"), "en").process
    jobs.stop()
    jobs.stop()
    jobs.close()
    assert process.signals == [signal.SIGINT]


def test_a_loss_that_is_no_number_is_no_point_of_the_curve(tmp_path: Path) -> None:
    (tmp_path / "trainer_log.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": null}\n{"step": 3')
    process: Any = Running()
    assert Job([], tmp_path, tmp_path / "log", process).progress() == [{"step": 1, "loss": 2.5}]
