"""Without these, the page could train with other settings than were typed, or lose what a stopped run had learnt."""

import shlex
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from glmtune.config.reading import load_config
from glmtune.errors import TrainingError
from glmtune.ui.jobs import Job, Jobs, command_of, folder_of, setting, train_arguments


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


def test_what_is_filled_in_is_trained_with() -> None:
    more = "train.save_steps=50\n\n train.num_train_epochs = 2 \nlora.r=4\n"
    arguments = train_arguments("a b.json", "base: 1", " run ", 3, 1e-4, 16, 128, " 你是客服。 ", more)
    config = load_config(None, arguments)
    assert (config.model.path, config.data.path) == ("base: 1", "a b.json")
    assert (config.data.max_length, config.prompt.system, config.lora["r"]) == (128, "你是客服。", 4)
    own = {"output_dir": "run", "num_train_epochs": 2, "learning_rate": 1e-4, "save_steps": 50}
    assert {key: config.train[key] for key in own} == own
    assert folder_of(arguments) == Path("run")
    assert shlex.split(command_of(arguments)) == ["glmtune", "train", *arguments]


def test_an_empty_form_trains_the_demo() -> None:
    nothing: Any = None
    arguments = train_arguments(None, nothing, "", nothing, nothing, nothing, nothing, nothing, nothing)
    assert arguments[0] == "demo"
    assert load_config(None, arguments[1:]).train["num_train_epochs"] == 1
    assert folder_of(arguments) == Path("output/page")


def test_a_folder_below_home_is_found() -> None:
    assert folder_of(["demo", "train.output_dir=~/run"]) == Path("~/run").expanduser()


class Running:
    """A process that does not end until it is told to.

    Attributes:
        signals: What it was told.
        obeys: Which of these ends it.
    """

    obeys = signal.SIGINT

    def __init__(self, *_: Any, **__: Any) -> None:
        self.signals: list[int] = []

    def poll(self) -> int | None:
        return 130 if self.obeys in self.signals else None

    def wait(self, timeout: float | None = None) -> int:
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired("train", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        self.signals.append(number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Saving(Running):
    """As one that saves its checkpoint for ever."""

    obeys = signal.SIGKILL


def test_a_run_that_saves_its_checkpoint_is_not_aborted_by_another_click(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", Saving)
    jobs = Jobs()
    process: Any = jobs.start(["demo"], Path("run"), "en").process
    jobs.stop()
    jobs.stop()
    assert process.signals == [signal.SIGINT]
    assert jobs.current is not None
    assert jobs.current.state == "stopping"


def test_a_run_that_was_stopped_before_it_saved_anything_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """However it ended: at first, Ctrl-C is still Python's own."""
    monkeypatch.setattr(subprocess, "Popen", Running)
    jobs = Jobs()
    for code in (130, 1):
        job = jobs.start(["demo"], tmp_path / "run", "en")
        jobs.stop()
        monkeypatch.setattr(job.process, "poll", lambda code=code: code)
        assert job.state == "unsaved"
    (tmp_path / "run" / "checkpoint-1").mkdir(parents=True)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "run" / file).write_text("{}")
    assert job.state == "stopped"


def test_the_end_of_the_server_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", Saving)
    jobs = Jobs()
    process: Any = jobs.start(["demo"], Path("run"), "en").process
    assert not jobs.close(0, 0)
    assert process.signals == [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]


def test_the_end_of_the_server_leaves_a_checkpoint_but_no_files_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", Running)
    jobs = Jobs()
    job = jobs.start(["demo"], Path("run"), "en")
    assert job.log.is_file()
    process: Any = job.process
    assert jobs.close()
    assert process.signals == [signal.SIGINT]
    assert not job.log.parent.exists()
    assert job.last_lines() == ""


def test_two_pages_cannot_start_a_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    both_start = threading.Barrier(2)

    class Starting(Running):
        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__()
            with suppress(threading.BrokenBarrierError):
                both_start.wait(0.5)

    monkeypatch.setattr(subprocess, "Popen", Starting)
    jobs = Jobs()
    with ThreadPoolExecutor(2) as pool:
        started = [pool.submit(jobs.start, ["demo"], Path("run"), "en") for _ in range(2)]
    errors = [each.exception() for each in started]
    assert sorted(type(error) for error in errors if error is not None) == [TrainingError]
    jobs.close()


def test_of_a_long_log_the_end_is_shown(tmp_path: Path) -> None:
    process: Any = Running()
    (tmp_path / "log").write_text("你好\n" * 10_000 + "\n" + "".join(f"{n}\r" for n in range(20)))
    shown = Job([], tmp_path, tmp_path / "log", process).last_lines().splitlines()
    assert shown == [str(n) for n in range(8, 20)]
