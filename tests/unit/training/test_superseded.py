"""Without these, a run resumed from an earlier checkpoint could lose its new steps, or pass off its old ones as new."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glmtune.adapters.run_folder import RunManifest, find_adapter
from glmtune.errors import TrainingError
from glmtune.planning.resume import find_checkpoint
from glmtune.training.run import TrainingInterrupted, TrainResult

Run = Callable[..., TrainResult]
AGAIN = "train.resume_from_checkpoint=true"


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


@pytest.fixture
def unfinished(run: Run, at_step: Any, tmp_path: Path) -> Path:
    """A run of eight steps that was interrupted at the seventh, with checkpoints after two, four and seven."""
    at_step(7, stop)
    with pytest.raises(TrainingInterrupted):
        run("train.max_steps=8", "train.save_steps=2", "train.save_total_limit=3", name="run")
    return tmp_path / "run"


@pytest.mark.parametrize("limit", [1, 2])
def test_steps_after_an_earlier_checkpoint_are_kept_and_gone_on_from(
    run: Run, at_step: Any, unfinished: Path, caplog: pytest.LogCaptureFixture, limit: int
) -> None:
    settings = ("train.max_steps=8", "train.save_steps=4", f"train.save_total_limit={limit}")
    at_step(5, stop)
    with pytest.raises(TrainingInterrupted, match=r"saved \S*checkpoint-5\."):
        run(*settings, f"train.resume_from_checkpoint={unfinished / 'checkpoint-4'}")
    assert names(unfinished) == ["checkpoint-4", "checkpoint-5"][-limit:]
    assert names(unfinished / "_superseded-1") == ["checkpoint-6", "checkpoint-7"]
    assert f"now in {unfinished / '_superseded-1'}: checkpoint-6, checkpoint-7" in caplog.text
    assert find_checkpoint(unfinished, True) == unfinished / "checkpoint-5"
    assert run(*settings, AGAIN).num_steps == 8
    assert not (unfinished / "_superseded-2").exists()


def test_a_resumed_run_that_fails_before_its_first_checkpoint_leaves_all_where_it_was(
    run: Run, at_step: Any, unfinished: Path
) -> None:
    def fail() -> None:
        raise TrainingError("failed")

    at_step(5, fail)
    before = names(unfinished)
    with pytest.raises(TrainingError, match="failed"):
        run("train.max_steps=8", f"train.resume_from_checkpoint={unfinished / 'checkpoint-4'}")
    assert names(unfinished) == before
    assert not (unfinished / "_superseded-1").exists()


def test_a_lengthened_run_that_was_interrupted_is_not_taken_for_the_finished_one(
    run: Run, at_step: Any, tmp_path: Path
) -> None:
    run("train.max_steps=2", "train.save_steps=2")
    folder = tmp_path / "run"
    seen = []
    at_step(3, lambda: seen.append((find_adapter(folder), RunManifest.read(folder))))
    finished = RunManifest.read(folder)
    run("train.max_steps=3", "train.save_steps=2", AGAIN)
    assert seen == [(folder, finished)]  # not before there is something in its place
    at_step(5, stop)
    with pytest.raises(TrainingInterrupted):
        run("train.max_steps=8", "train.save_steps=8", AGAIN)
    assert find_adapter(folder) == folder / "checkpoint-5"
    assert find_adapter(folder / "_superseded-2") == folder / "_superseded-2"
    lengths = [RunManifest.read(place).config["train"]["max_steps"] for place in (folder, folder / "_superseded-2")]  # type: ignore[union-attr]
    assert lengths == [8, 3]
    assert run("train.max_steps=8", "train.save_steps=8", AGAIN).num_steps == 8
    assert find_adapter(folder) == folder


def test_a_finished_run_says_how_to_train_again_from_an_earlier_checkpoint(run: Run, tmp_path: Path) -> None:
    run("train.max_steps=4", "train.save_steps=2")
    settings = ("train.max_steps=4", f"train.resume_from_checkpoint={tmp_path / 'run' / 'checkpoint-2'}")
    with pytest.raises(
        TrainingError, match=r"is finished \(4 of 4 steps\)(.|\n)*from checkpoint-2, set train\.output_dir"
    ):
        run(*settings)
    assert run(*settings, name="again").num_steps == 4
