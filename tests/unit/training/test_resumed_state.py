"""Without these, a resumed run could silently lose its patience, its schedule or its optimiser's memory."""

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer

from glmtune.adapters.checkpoints import CHECKSUMS_NAME, publish
from glmtune.adapters.run_folder import RunManifest
from glmtune.errors import ConfigError, TrainingError
from glmtune.planning.resume import find_checkpoint
from glmtune.training.resumed_state import set_schedule
from glmtune.training.run import TrainResult
from settings import changed

Run = Callable[..., TrainResult]
EarlierRun = Callable[..., Path]
AGAIN = "train.resume_from_checkpoint=true"


def entries(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()]


def change_state(checkpoint: Path, **values: Any) -> None:
    """Writes other values into a checkpoint's state, as no run of ours would."""
    file = checkpoint / "trainer_state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    (checkpoint / CHECKSUMS_NAME).unlink(missing_ok=True)


def test_changed_intervals_are_applied(run: Run, earlier_run: EarlierRun, tmp_path: Path) -> None:
    earlier_run("train.max_steps=3")
    changed = ("train.logging_steps=2", "train.save_steps=4", "train.eval_steps=5", "train.save_total_limit=null")
    run("train.max_steps=7", *changed, AGAIN)
    folder = tmp_path / "run"
    assert [entry["step"] for entry in entries(folder) if "loss" in entry] == [1, 2, 3, 4, 6]
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4", "checkpoint-7"]


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("has_record", [True, False], ids=["recorded", "of an older run"])
def test_the_mean_loss_of_a_resumed_run_is_that_of_all_its_steps(
    run: Run, earlier_run: EarlierRun, train_once: Callable[..., Path], tmp_path: Path, has_record: bool
) -> None:
    """Rates that fall show it: the mean of the last steps alone is far below that of all."""
    folder = earlier_run("train.max_steps=3")
    if not has_record:
        saved = json.loads((folder / "checkpoint-3/trainer_state.json").read_text())["stateful_callbacks"]
        del saved["MeanLoss"]
        change_state(folder / "checkpoint-3", stateful_callbacks=saved)
    run("train.max_steps=6", AGAIN)
    losses = [entry["loss"] for entry in entries(folder) if "loss" in entry]
    assert len(losses) == 6
    assert results(folder)["train_loss"] == pytest.approx(sum(losses) / 6, rel=1e-3)
    assert abs(sum(losses[3:]) / 3 - sum(losses) / 6) > 0.01
    (folder / "all_results.json").unlink()  # as if it had ended right before its results
    run("train.max_steps=6", AGAIN)
    assert results(folder)["train_loss"] == pytest.approx(sum(losses) / 6, rel=1e-3)


@pytest.fixture
def never_better(run: Run, earlier_run: EarlierRun, tmp_path: Path) -> tuple[str, ...]:
    """Settings of a run whose evaluation loss never changes: at a rate of 0 nothing is learnt."""
    earlier_run("train.max_steps=1", name="adapter")
    settings = ("data.eval_fraction=0.25", "train.save_steps=1", "train.max_steps=8", "train.learning_rate=0")
    return (*settings, f"model.adapter_path={tmp_path / 'adapter'}")


def test_early_stopping_can_be_added(run: Run, never_better: tuple[str, ...]) -> None:
    run(*changed([*never_better], "train.max_steps=1"))
    # Counted from where it was added: what was evaluated before was not looked at for this.
    assert run(*never_better, "train.early_stopping_patience=2", AGAIN).num_steps == 2 + 2


def test_patience_is_counted_on_after_an_interruption(run: Run, tmp_path: Path, never_better: tuple[str, ...]) -> None:
    settings = (*never_better, "train.early_stopping_patience=3", "train.save_total_limit=null")
    assert run(*settings, name="whole").num_steps == 1 + 3
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "run" / "checkpoint-3")
    assert run(*settings, AGAIN).num_steps == 1 + 3


def test_a_run_that_had_stopped_early_is_finished_without_another_step(
    run: Run, tmp_path: Path, never_better: tuple[str, ...]
) -> None:
    settings = (*never_better, "train.early_stopping_patience=1")
    before = run(*settings)
    assert before.num_steps == 1 + 1
    for name in ("adapter_model.safetensors", "all_results.json"):
        (tmp_path / "run" / name).unlink()
    after = run(*settings, AGAIN)
    assert (after.num_steps, after.best_checkpoint) == (before.num_steps, before.best_checkpoint)
    assert (tmp_path / "run" / "all_results.json").is_file()


def test_an_evaluation_after_the_last_checkpoint_is_made_up_for(run: Run, tmp_path: Path) -> None:
    settings = ("data.eval_fraction=0.25", "train.eval_strategy=epoch", "train.save_steps=1", "train.max_steps=2")
    before = run(*settings)
    assert "eval_loss" not in (tmp_path / "run" / "checkpoint-2" / "trainer_state.json").read_text()
    (tmp_path / "run" / "all_results.json").unlink()
    assert run(*settings, AGAIN).metrics["eval_loss"] == before.metrics["eval_loss"]


def test_steps_that_loss_scaling_left_out_are_none_of_the_schedules(
    run: Run, earlier_run: EarlierRun, tmp_path: Path
) -> None:
    earlier_run("train.max_steps=3")
    checkpoint = tmp_path / "run" / "checkpoint-3"
    state = torch.load(checkpoint / "scheduler.pt", weights_only=True)
    torch.save({**state, "last_epoch": 2}, checkpoint / "scheduler.pt")
    (checkpoint / CHECKSUMS_NAME).unlink()
    run("train.max_steps=4", AGAIN)
    assert entries(tmp_path / "run")[-2]["learning_rate"] == pytest.approx(0.01 * 2 / 4)


def test_a_learning_rate_that_is_a_tensor_stays_one() -> None:
    rate = torch.tensor(0.1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    held = optimizer.param_groups[0]["lr"]
    set_schedule(scheduler, scheduler.state_dict(), 4)
    assert optimizer.param_groups[0]["lr"] is held
    assert held.item() == pytest.approx(0.02)


def test_what_is_uploaded_has_its_place_already(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: list[Path] = []

    def upload(self: HfApi, *, folder_path: str, **options: Any) -> Future[None]:
        assert Path(folder_path).is_dir()
        uploaded.append(Path(folder_path))
        done: Future[None] = Future()
        done.set_result(None)
        return done

    monkeypatch.setattr(HfApi, "whoami", lambda self, *args, **kwargs: {"name": "someone"})
    monkeypatch.setattr(HfApi, "create_repo", lambda self, *args, **kwargs: SimpleNamespace(repo_id="someone/run"))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    monkeypatch.setattr(Trainer, "push_to_hub", lambda self, *args, **kwargs: None)  # what comes at the end
    run("train.max_steps=3", "train.push_to_hub=true", "train.hub_strategy=all_checkpoints")
    assert uploaded == [tmp_path / "run", tmp_path / "run" / "checkpoint-3"]


def test_a_checkpoint_of_float16_goes_on_in_float32(run: Run, earlier_run: EarlierRun, tmp_path: Path) -> None:
    earlier_run("train.max_steps=3")
    checkpoint = tmp_path / "run" / "checkpoint-3"
    torch.save({"scale": 65536.0}, checkpoint / "scaler.pt")
    (checkpoint / CHECKSUMS_NAME).unlink()
    assert run("train.max_steps=4", AGAIN).num_steps == 4


def test_another_number_of_processes_is_refused(run: Run, earlier_run: EarlierRun, tmp_path: Path) -> None:
    earlier_run("train.max_steps=3")
    checkpoint = tmp_path / "run" / "checkpoint-3"
    (checkpoint / CHECKSUMS_NAME).unlink()
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    shutil.copyfile(checkpoint / "rng_state_0.pth", checkpoint / "rng_state_1.pth")
    with pytest.raises(TrainingError, match="with 2 processes, and continues with 1"):
        run("train.max_steps=4", AGAIN)


def test_results_that_were_cut_short_are_written_again(run: Run, earlier_run: EarlierRun, tmp_path: Path) -> None:
    earlier_run("train.max_steps=2")
    results = tmp_path / "run" / "all_results.json"
    whole = json.loads(results.read_text())
    results.write_bytes(results.read_bytes()[:40])
    run("train.max_steps=2", AGAIN)
    assert json.loads(results.read_text())["last_loss"] == whole["last_loss"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train_batch_size", None),
        ("stateful_callbacks", []),
        ("best_model_checkpoint", 5),
        ("best_metric", "low"),
        ("total_flos", "many"),
        ("log_history", [{"step": 1, "loss": "low"}]),
        ("of_another_version", 1),
    ],
)
def test_values_of_other_types_in_a_state_are_named(
    run: Run, earlier_run: EarlierRun, tmp_path: Path, key: str, value: Any
) -> None:
    earlier_run("train.max_steps=3")
    change_state(tmp_path / "run" / "checkpoint-3", **{key: value})
    with pytest.raises(TrainingError, match=rf"trainer_state\.json.*{key}"):
        run("train.max_steps=4", AGAIN)


def test_values_of_other_types_in_a_runs_settings_are_named(run: Run, earlier_run: EarlierRun, tmp_path: Path) -> None:
    earlier_run("train.max_steps=3")
    manifest = RunManifest.read(tmp_path / "run" / "checkpoint-3")
    assert manifest is not None
    manifest.config["train"]["max_tokens_per_device"] = "many"
    manifest.write(tmp_path / "run" / "checkpoint-3")
    (tmp_path / "run" / "checkpoint-3" / CHECKSUMS_NAME).unlink()
    with pytest.raises(TrainingError, match=r"glmtune\.json.*train\.max_tokens_per_device.*'many'"):
        run("train.max_steps=4", AGAIN)


def test_a_run_that_has_more_steps_than_asked_for_is_refused(run: Run, earlier_run: EarlierRun) -> None:
    earlier_run("train.max_steps=3")
    with pytest.raises(TrainingError, match=r"checkpoint-3 has 3 steps already, and 2 were requested"):
        run("train.max_steps=2", AGAIN)


def test_the_best_is_not_looked_for_by_two_metrics(run: Run) -> None:
    settings = ("data.eval_fraction=0.25", "train.load_best_model_at_end=true")
    run(*settings, "train.max_steps=3", "train.metric_for_best_model=loss")
    with pytest.raises(TrainingError, match=r"train\.greater_is_better"):
        run(*settings, "train.metric_for_best_model=loss", "train.greater_is_better=true", "train.max_steps=4", AGAIN)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_file_of_another_kind_is_seen_in_a_checkpoint_without_checksums(
    earlier_run: EarlierRun, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    folder = earlier_run("train.max_steps=4", "train.save_steps=2")
    for checkpoint in folder.glob("checkpoint-*"):
        (checkpoint / CHECKSUMS_NAME).unlink()
    torch.save({"weight": torch.zeros(3)}, folder / "checkpoint-4" / name)
    assert find_checkpoint(folder, True) == folder / "checkpoint-2"
    assert name in caplog.text


def test_a_checkpoint_without_its_state_is_named(earlier_run: EarlierRun, caplog: pytest.LogCaptureFixture) -> None:
    folder = earlier_run("train.max_steps=4", "train.save_steps=2")
    (folder / "checkpoint-4" / "trainer_state.json").unlink()
    assert find_checkpoint(folder, True) == folder / "checkpoint-2"
    assert "checkpoint-4" in caplog.text
    assert "trainer_state.json" in caplog.text


def test_all_of_a_checkpoint_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut may leave a whole-looking checkpoint of empty files, and none before it."""
    written = tmp_path / ".unfinished" / "checkpoint-3"
    written.mkdir(parents=True)
    for name in ("optimizer.pt", "rng_state.pth"):
        (written / name).write_bytes(name.encode())
    flushed = []
    original = os.fsync

    def fsync(descriptor: int) -> None:
        original(descriptor)
        flushed.append(os.stat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", fsync)
    files = [*written.iterdir(), written, tmp_path]
    inodes = {path.stat().st_ino for path in files}
    publish(tmp_path, "checkpoint-3")
    assert inodes <= set(flushed)


def test_a_run_from_an_adapter_goes_on_when_that_adapter_is_gone(run: Run, tmp_path: Path) -> None:
    run("train.max_steps=1", "lora.r=3", "prompt.template=tutorial", "prompt.system=你是甄嬛", name="first")
    adapter = f"model.adapter_path={tmp_path / 'first'}"
    run(adapter, "lora.target_modules=auto", "train.max_steps=3")
    shutil.rmtree(tmp_path / "first")
    assert run(adapter, "train.max_steps=4", AGAIN).num_steps == 4


def test_a_rank_that_was_asked_for_is_not_replaced_silently(run: Run, tmp_path: Path) -> None:
    run("train.max_steps=1", "lora.r=3", name="first")
    with pytest.raises(ConfigError, match=r"lora\.r=8 was requested, but the adapter in .* has 3"):
        run(f"model.adapter_path={tmp_path / 'first'}", "lora.r=8", "train.max_steps=1")


def test_the_best_is_not_looked_for_on_two_sets_of_data(run: Run, tmp_path: Path) -> None:
    def evaluated_on(name: str) -> tuple[str, ...]:
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps([{"instruction": name, "output": name}]), encoding="utf-8")
        return (f"data.eval_path={file}", "train.load_best_model_at_end=true")

    run(*evaluated_on("one"), "train.max_steps=3")
    with pytest.raises(TrainingError, match="the evaluation data are not those that the best"):
        run(*evaluated_on("two"), "train.max_steps=4", AGAIN)
    run("train.max_steps=4", AGAIN)
    with pytest.raises(TrainingError, match="the evaluation data are not those that the best"):
        run(*evaluated_on("two"), "train.max_steps=5", AGAIN)
    assert run(*evaluated_on("one"), "train.max_steps=5", AGAIN).num_steps == 5


def test_evaluation_data_by_which_nothing_was_chosen_may_change(run: Run, tmp_path: Path) -> None:
    for name, num_steps in (("one", 3), ("two", 4)):
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps([{"instruction": name, "output": name}]), encoding="utf-8")
        again = [AGAIN] if name == "two" else []
        assert run(f"data.eval_path={file}", f"train.max_steps={num_steps}", *again).num_steps == num_steps
