"""A run that has ended, which tests share and must not change."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from glmtune.config import load_config
from glmtune.training.run import TrainResult, train
from settings import changed


def settings(base: Path, folder: Path, data: Path, eval_data: Path) -> list[str]:
    """Two steps on the tiny base, which is evaluated on eight rows and answers three of them."""
    return [
        f"model.path={base}",
        f"data.path={data}",
        f"data.eval_path={eval_data}",
        "prompt.system=你是小满。",
        f"train.output_dir={folder / 'run'}",
        "train.use_cpu=true",
        "train.max_steps=2",
        "train.logging_steps=1",
        "train.save_steps=2",
        "train.eval_generate=3",
    ]


@pytest.fixture(scope="session")
def data(write_questions: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="session")
def eval_data(data: Path) -> Path:
    rows = json.loads(data.read_text(encoding="utf-8"))[:8]
    file = data.with_name("eval.json")
    file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def finished(tiny_base: Path, data: Path, eval_data: Path) -> Path:
    """The run folder."""
    train(load_config(None, settings(tiny_base, data.parent, data, eval_data)), Console(quiet=True))
    return data.parent / "run"


@pytest.fixture
def start_run(tiny_base: Path, data: Path, eval_data: Path, tmp_path: Path) -> Callable[..., TrainResult]:
    """Trains once more, elsewhere."""

    def start(*overrides: str) -> TrainResult:
        own = changed(settings(tiny_base, tmp_path, data, eval_data), *overrides)
        return train(load_config(None, own), Console(quiet=True))

    return start
