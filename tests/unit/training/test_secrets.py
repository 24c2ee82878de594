"""Without these, whoever gets a run or a merged model could get its owner's token for the model hub too."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from glmtune.adapters.run_folder import MANIFEST_NAME, RunManifest
from glmtune.config import load_config
from glmtune.errors import ConfigError
from glmtune.export.merge import merge
from glmtune.training.run import TrainingInterrupted, TrainResult

SECRET = "hf_TheSecret"
WITH_SECRET = f"train.hub_token={SECRET}"


def files_with_the_secret(folder: Path) -> list[str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    return [str(file) for file in files if SECRET.encode() in file.read_bytes()]


def test_nothing_that_a_run_leaves_or_shows_has_the_hub_token(
    run: Callable[..., TrainResult], tmp_path: Path, console: Console
) -> None:
    run(WITH_SECRET, "train.max_steps=2", "train.save_steps=1")
    merge(tmp_path / "run", tmp_path / "merged")
    assert (tmp_path / "run" / "report.html").is_file()
    assert files_with_the_secret(tmp_path / "run") == []
    assert files_with_the_secret(tmp_path / "merged") == []
    assert SECRET not in console.export_text()


def test_an_interrupted_run_recommends_a_command_without_the_hub_token(
    run: Callable[..., TrainResult], at_step: Any, tmp_path: Path
) -> None:
    at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(TrainingInterrupted) as stopped:
        run(WITH_SECRET)
    assert "train.resume_from_checkpoint=true" in str(stopped.value)
    assert SECRET not in str(stopped.value)
    assert files_with_the_secret(tmp_path / "run") == []


def test_only_secrets_are_left_out_of_a_command(tmp_path: Path) -> None:
    file = tmp_path / "my_token"  # a configuration file may have any name
    file.write_text("train: {max_steps: 3}\n", encoding="utf-8")
    config = load_config(file, [WITH_SECRET, "train.seed=1"])
    assert config.command() == f"glmtune train {file} train.seed=1"
    assert config.train["hub_token"] == SECRET


def test_a_token_in_the_record_of_an_older_run_is_not_passed_on(tmp_path: Path) -> None:
    RunManifest(None, config={"train": {"seed": 1}}).write(tmp_path)
    file = tmp_path / MANIFEST_NAME
    values = json.loads(file.read_text(encoding="utf-8"))
    values["config"]["train"]["hub_token"] = SECRET
    file.write_text(json.dumps(values), encoding="utf-8")
    manifest = RunManifest.read(tmp_path)
    assert manifest is not None
    assert manifest.config == {"train": {"seed": 1}}


def test_an_error_about_a_token_that_is_given_twice_does_not_show_it() -> None:
    with pytest.raises(ConfigError, match="both set the same key") as error:
        load_config(None, [WITH_SECRET, WITH_SECRET])
    assert SECRET not in str(error.value)
