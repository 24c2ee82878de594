"""Short runs on the tiny base, and what happens to them on the way."""

import io
import json
from collections.abc import Callable
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


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    rows = [{"instruction": f"第{n}个问题？", "output": f"这是第{n}个回答，没有别的。"} for n in range(24)]
    file = tmp_path / "data.json"
    file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return file


@pytest.fixture
def console() -> Console:
    """Collects what is shown, as on no terminal."""
    return Console(record=True, force_terminal=False, width=160, file=io.StringIO())


@pytest.fixture
def run(tiny_base: Path, data_file: Path, tmp_path: Path, console: Console) -> Run:
    """Trains the tiny base on the CPU: 6 steps of 4 samples, checkpoints after 3 and 6."""

    def run(*overrides: str, name: str = "run") -> TrainResult:
        defaults = [
            f"model.path={tiny_base}",
            f"data.path={data_file}",
            f"train.output_dir={tmp_path / name}",
            "train.use_cpu=true",
            "train.num_train_epochs=1",
            "train.per_device_train_batch_size=2",
            "train.logging_steps=1",
            "train.save_steps=3",
            "train.learning_rate=0.01",
        ]
        return train(load_config(None, changed(defaults, *overrides)), console)

    return run


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
