"""A short run with a few rows set aside, which tests share and must not change."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from rich.console import Console

from glmtune.config import load_config
from glmtune.training.run import TrainResult, train


class Trained(NamedTuple):
    run: Path
    data: Path
    eval_data: Path
    result: TrainResult


@pytest.fixture(scope="session")
def trained(
    tiny_base: Path, write_questions: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    """Two steps on the tiny base, evaluated on eight rows in a file of their own, of which three are answered."""
    folder = tmp_path_factory.mktemp("trained")
    data, eval_data = write_questions(folder), folder / "eval.json"
    rows = json.loads(data.read_text(encoding="utf-8"))[:8]
    eval_data.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    settings = [
        f"model.path={tiny_base}",
        f"data.path={data}",
        f"data.eval_path={eval_data}",
        "data.loss_weight=sample",
        "prompt.system=你是小满。",
        f"train.output_dir={folder / 'run'}",
        "train.use_cpu=true",
        "train.max_steps=2",
        "train.logging_steps=1",
        "train.save_steps=2",
        "train.learning_rate=0.01",
        "train.eval_generate=3",
    ]
    result = train(load_config(None, settings), Console(quiet=True))
    return Trained(folder / "run", data, eval_data, result)
