"""Without these, two runs could write into one folder, and a full disk end a run in a traceback."""

import errno
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from glmtune.errors import DataError, StorageError
from glmtune.files import held
from glmtune.training.run import TrainResult
from glmtune.training.storage import ending_where_it_cannot_write

Run = Callable[..., TrainResult]


def test_a_folder_that_is_trained_into_is_held_and_another_run_is_refused(
    run: Run, after_step: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    refused = []

    def look() -> None:
        with pytest.raises(StorageError), held(folder, "is wanted"):
            pass
        refused.append(True)

    after_step(2, look)
    run("train.max_steps=2")
    assert refused == [True]
    other = ("train.max_steps=4", "train.resume_from_checkpoint=true", "data.path=nowhere.json")
    with (
        held(folder, "is being used for training"),
        pytest.raises(StorageError, match=r"train\.output_dir: .*run is being used for training by another process"),
    ):
        run(*other)  # before the data are looked at
    with pytest.raises(DataError):
        run(*other)
    assert not (folder / ".lock").exists()


def test_a_run_that_cannot_begin_leaves_no_folder(run: Run, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        run("data.path=nowhere.json", f"train.output_dir={tmp_path / 'new' / 'deep'}")
    assert not (tmp_path / "new").exists()


def test_a_file_in_the_place_of_the_folder_is_named_before_anything_is_read(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("file", "file/run"):
        with pytest.raises(StorageError, match=rf"train\.output_dir: {tmp_path / place}: .*is a file, not a folder"):
            run("data.path=nowhere.json", f"train.output_dir={tmp_path / place}")


def test_a_full_disk_is_named_before_anything_is_read(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=r"train\.output_dir: .*run: the disk is full"):
        run("data.path=nowhere.json")
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fills_up_stops_the_run_and_names_the_last_good_checkpoint(
    run: Run, after_step: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit of a file's size stands for the disk's: the adapter is too large for it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    after_step(3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1])))
    try:
        with pytest.raises(StorageError) as caught:
            run("train.save_steps=2", "train.max_steps=4", "train.logging_steps=4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    first, second, *command = str(caught.value).splitlines()
    folder = tmp_path / "run"
    assert first.startswith(
        f"training stopped: {folder / '.unfinished' / 'checkpoint-4'}: a file of this size is not allowed here"
    )
    assert second.startswith(f"The last good checkpoint is {folder / 'checkpoint-2'}.")
    assert command[0].endswith("train.resume_from_checkpoint=true")
    monkeypatch.undo()
    assert run("train.save_steps=2", "train.max_steps=4", "train.resume_from_checkpoint=true").num_steps == 4


def test_a_folder_that_vanishes_stops_the_run(run: Run, after_step: Any, tmp_path: Path) -> None:
    after_step(1, lambda: shutil.rmtree(tmp_path / "run"))
    with pytest.raises(StorageError, match=r"training stopped: .*trainer_log\.jsonl: it, or the folder.*not exist"):
        run()


@pytest.mark.parametrize(
    "write",
    [
        lambda file: save_file({"weight": torch.zeros(4000)}, file),
        lambda file: torch.save({"weight": torch.zeros(4000)}, file),
        lambda file: torch.save({"numbers": list(range(900))}, file),
        lambda file: file.write_bytes(bytes(16_000)),
    ],
    ids=["safetensors", "torch", "small torch", "plain"],
)
def test_whoever_writes_a_full_disk_ends_in_a_sentence(tmp_path: Path, write: Callable[[Path], None]) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with (
            pytest.raises(StorageError, match=r"training stopped: .*\.\nThere is no checkpoint to continue from\."),
            ending_where_it_cannot_write(tmp_path, "glmtune train"),
        ):
            write(tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    for error in (RuntimeError("shapes differ"), FileNotFoundError(errno.ENOENT, "", "gcc"), ConnectionError("down")):
        with pytest.raises(type(error)) as caught, ending_where_it_cannot_write(tmp_path, "glmtune train"):
            raise error
        assert caught.value is error


def test_a_run_folder_in_the_home_folder_is_the_one_that_is_held(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    folder = tmp_path / "home" / "run"
    folder.mkdir()
    with held(folder, "is wanted"), pytest.raises(StorageError, match="is being used for training by another process"):
        run("train.output_dir=~/run", "train.max_steps=1")
    assert run("train.output_dir=~/run", "train.max_steps=1").output_dir == folder
    assert not list((tmp_path / "here").iterdir())
