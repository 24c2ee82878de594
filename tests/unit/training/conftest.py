"""Short runs on the tiny base, and what happens to them on the way."""

import io
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers.trainer_callback import CallbackHandler

from glmtune.config import load_config
from glmtune.training.run import TrainResult, train
from settings import changed

Run = Callable[..., TrainResult]
AddAction = Callable[[int, Callable[[], None]], None]


@pytest.fixture
def console() -> Console:
    """Collects what is shown, as on no terminal."""
    return Console(record=True, force_terminal=False, width=160, file=io.StringIO())


def settings(base: Path, data: Path, output_dir: Path) -> list[str]:
    """6 steps of 4 samples on the CPU, checkpoints after 3 and 6."""
    return [
        f"model.path={base}",
        f"data.path={data}",
        f"train.output_dir={output_dir}",
        "train.use_cpu=true",
        "train.num_train_epochs=1",
        "train.per_device_train_batch_size=2",
        "train.logging_steps=1",
        "train.save_steps=3",
        "train.learning_rate=0.01",
    ]


@pytest.fixture
def run(tiny_base: Path, data_file: Path, tmp_path: Path, console: Console) -> Run:
    """Trains the tiny base on the CPU: 6 steps of 4 samples, checkpoints after 3 and 6."""

    def run(*overrides: str, name: str = "run") -> TrainResult:
        return train(load_config(None, changed(settings(tiny_base, data_file, tmp_path / name), *overrides)), console)

    return run


@pytest.fixture(scope="session")
def train_once(
    tiny_base: Path, write_questions: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """The folder of a run with these overrides, which is made when it is first asked for. Tests must not change it."""
    data = write_questions(tmp_path_factory.mktemp("questions"))

    @cache
    def train_once(*overrides: str) -> Path:
        folder = tmp_path_factory.mktemp("once") / "run"
        train(load_config(None, [*settings(tiny_base, data, folder), *overrides]), Console(quiet=True))
        return folder

    return train_once


@pytest.fixture
def earlier_run(train_once: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """What `run` leaves, for what is done with it afterwards: a copy of one that tests share."""
    return lambda *overrides, name="run": shutil.copytree(train_once(*overrides), tmp_path / name)


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> AddAction:
    """Adds an action to the next runs: what happens when a step (numbered from 1) begins."""
    original = CallbackHandler.on_step_begin

    def add(step: int, action: Callable[[], None]) -> None:
        def on_step_begin(self: Any, args: Any, state: Any, control: Any) -> Any:
            if state.global_step + 1 == step:
                action()
            return original(self, args, state, control)

        monkeypatch.setattr(CallbackHandler, "on_step_begin", on_step_begin)

    return add


@pytest.fixture
def after_step(monkeypatch: pytest.MonkeyPatch) -> AddAction:
    """The same for when a step has ended, before what it logs and saves."""
    original = CallbackHandler.on_step_end

    def add(step: int, action: Callable[[], None]) -> None:
        def on_step_end(self: Any, args: Any, state: Any, control: Any) -> Any:
            if state.global_step == step:
                action()
            return original(self, args, state, control)

        monkeypatch.setattr(CallbackHandler, "on_step_end", on_step_end)

    return add
