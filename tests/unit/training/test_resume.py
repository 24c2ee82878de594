"""Without these, a run could go on from a damaged checkpoint, with yesterday's settings, or never be finished."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainingArguments

from glmtune.adapters.checkpoints import CHECKSUMS_NAME
from glmtune.config import OWN_TRAIN_KEYS, embedded_base
from glmtune.errors import ConfigError, TrainingError
from glmtune.planning.resume import APPLIED_TRAIN_KEYS, LASTING_TRAIN_KEYS, find_checkpoint, find_earlier_run
from glmtune.training import finish, lora_trainer
from glmtune.training.run import TrainResult

Run = Callable[..., TrainResult]
EarlierRun = Callable[..., Path]
AGAIN = "train.resume_from_checkpoint=true"


def rates(run: Path) -> dict[int, float]:
    """The learning rate of each step."""
    entries = [json.loads(line) for line in (run / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()]
    return {entry["step"]: entry["learning_rate"] for entry in entries if "loss" in entry}


def cut_off_the_end(run: Path) -> None:
    """Leaves what a run leaves that is killed after its last checkpoint."""
    for name in ("adapter_config.json", "adapter_model.safetensors", "all_results.json", "training_loss.png"):
        (run / name).unlink()


def test_every_key_is_either_applied_or_refused() -> None:
    keys = {*TrainingArguments.__dataclass_fields__, *OWN_TRAIN_KEYS}
    assert keys - LASTING_TRAIN_KEYS - APPLIED_TRAIN_KEYS == set()
    assert not LASTING_TRAIN_KEYS & APPLIED_TRAIN_KEYS


def test_a_checkpoint_that_says_nothing_of_its_run_is_refused(earlier_run: EarlierRun) -> None:
    folder = earlier_run("train.max_steps=3")
    for place in (folder, folder / "checkpoint-3"):
        (place / "glmtune.json").unlink()
    with pytest.raises(TrainingError, match=r"checkpoint-3 has no glmtune\.json"):
        find_earlier_run({"output_dir": folder, "resume_from_checkpoint": True})


def test_a_lengthened_run_follows_the_schedule_of_its_new_length(
    run: Run, earlier_run: EarlierRun, tmp_path: Path
) -> None:
    earlier_run("train.max_steps=4", "train.save_steps=2")
    run("train.max_steps=8", "train.save_steps=2", AGAIN)
    assert [rates(tmp_path / "run")[step] for step in (5, 6, 7, 8)] == pytest.approx(
        [0.01 * (8 - step) / 8 for step in (4, 5, 6, 7)]
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["train.learning_rate=0.002"], [0.002 * left / 6 for left in (3, 2, 1)]),
        (["train.lr_scheduler_type=constant"], [0.01] * 3),
        (["train.warmup_steps=4"], [0.01 * 3 / 4, 0.01, 0.01 * 1 / 2]),
    ],
)
def test_a_changed_schedule_is_followed(
    run: Run, earlier_run: EarlierRun, tmp_path: Path, changes: list[str], expected: list[float]
) -> None:
    earlier_run("train.max_steps=6", name="whole")
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "run" / "checkpoint-3")
    run("train.max_steps=6", AGAIN, *changes)
    assert [rates(tmp_path / "run")[step] for step in (4, 5, 6)] == pytest.approx(expected)


def test_changed_settings_of_the_optimiser_are_applied(run: Run, earlier_run: EarlierRun, tmp_path: Path) -> None:
    earlier_run("train.max_steps=6", name="before")
    changes = {
        "same": [],
        "decay": ["train.weight_decay=0.5"],
        "beta": ["train.adam_beta1=0.5"],
        "epsilon": ["train.adam_epsilon=1"],
    }
    for name, change in changes.items():
        shutil.copytree(tmp_path / "before" / "checkpoint-3", tmp_path / name / "checkpoint-3")
        run("train.max_steps=6", AGAIN, *change, name=name)
    whole = load_file(tmp_path / "before" / "adapter_model.safetensors")
    for name in changes:
        resumed = load_file(tmp_path / name / "adapter_model.safetensors")
        assert all(torch.equal(resumed[key], whole[key]) for key in whole) == (name == "same"), name


@pytest.mark.parametrize("name", ["run", "moved"])
def test_a_run_whose_last_save_is_missing_is_finished(run: Run, tmp_path: Path, name: str) -> None:
    settings = ("data.eval_fraction=0.25", "train.load_best_model_at_end=true", "train.metric_for_best_model=loss")
    # What is called best here is an early checkpoint, not the last.
    settings = (*settings, "train.greater_is_better=true", "train.save_steps=1", "train.max_steps=4")
    before = run(*settings)
    assert before.best_checkpoint is not None
    assert before.best_checkpoint.name != "checkpoint-4"
    adapter = load_file(tmp_path / "run" / "adapter_model.safetensors")
    cut_off_the_end(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / name)
    after = run(*settings, AGAIN, name=name)
    finished = load_file(tmp_path / name / "adapter_model.safetensors")
    assert all(torch.equal(finished[key], adapter[key]) for key in adapter)
    assert (after.num_steps, after.best_checkpoint) == (4, tmp_path / name / before.best_checkpoint.name)
    assert after.metrics["best_eval_loss"] == before.metrics["best_eval_loss"]
    assert (tmp_path / name / "training_loss.png").is_file()
    with pytest.raises(TrainingError, match=r"is finished \(4 of 4 steps\)"):
        run(*settings, AGAIN, name=name)


def test_a_run_that_was_killed_in_its_self_test_is_not_finished(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finish, "run_selftest", die)
        with pytest.raises(KeyboardInterrupt):
            run("train.max_steps=2")
    run("train.max_steps=2", AGAIN)
    assert (tmp_path / "run" / "all_results.json").is_file()


def test_a_picture_that_cannot_be_drawn_costs_nothing_else(
    run: Run, after_step: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    after_step(2, (tmp_path / "run" / "training_loss.png").mkdir)  # so that there is no place for it
    run("train.max_steps=2")
    assert "training_loss.png could not be drawn" in caplog.text
    assert (tmp_path / "run" / "all_results.json").is_file()


@pytest.fixture(scope="module")
def checkpointed(train_once: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with checkpoints after two and four, not finished."""
    whole = train_once("train.max_steps=4", "train.save_steps=2")
    run = shutil.copytree(whole, tmp_path_factory.mktemp("checkpointed") / "run")
    cut_off_the_end(run)
    return run


DAMAGE = {
    "cut": lambda whole: whole[:100],
    "empty": lambda whole: b"",
    "garbage": lambda whole: b"\x00garbage" * 50,
    "one byte": lambda whole: whole[:60] + bytes([whole[60] ^ 1]) + whole[61:],
}


def damage(file: Path, how: str) -> None:
    """Damages a file, or puts a folder in its place."""
    whole = file.read_bytes()
    file.unlink()
    if how == "folder":
        file.mkdir()
    else:
        file.write_bytes(DAMAGE[how](whole))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"])
@pytest.mark.parametrize("how", [*DAMAGE, "folder"])
def test_the_newest_whole_checkpoint_is_taken_and_the_damaged_file_named(
    checkpointed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, how: str
) -> None:
    run = shutil.copytree(checkpointed, tmp_path / "run")
    damage(run / "checkpoint-4" / name, how)
    assert find_checkpoint(run, True) == run / "checkpoint-2"
    if how != "folder" or name != "trainer_state.json":  # without that file it counts as no checkpoint at all
        assert str(run / "checkpoint-4") in caplog.text
        assert name in caplog.text
        assert "Continuing from checkpoint-2" in caplog.text
        with pytest.raises(TrainingError, match=name):
            find_checkpoint(run, str(run / "checkpoint-4"))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"])
@pytest.mark.parametrize("how", ["cut", "empty", "garbage", "folder"])
def test_damage_is_seen_in_checkpoints_that_have_no_checksums(
    checkpointed: Path, tmp_path: Path, name: str, how: str
) -> None:
    run = shutil.copytree(checkpointed, tmp_path / "run")
    for checkpoint in run.glob("checkpoint-*"):
        (checkpoint / CHECKSUMS_NAME).unlink()
    damage(run / "checkpoint-4" / name, how)
    assert find_checkpoint(run, True) == run / "checkpoint-2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected a JSON object"),
        ('{"global_step": "four", "max_steps": 4, "log_history": [], "epoch": 1}', "global_step is 'four'"),
        ('{"global_step": 4, "max_steps": 4, "log_history": [3], "epoch": 1}', "log_history"),
    ],
)
def test_a_state_of_other_types_is_named(checkpointed: Path, tmp_path: Path, text: str, message: str) -> None:
    run = shutil.copytree(checkpointed, tmp_path / "run")
    (run / "checkpoint-4" / CHECKSUMS_NAME).unlink()
    (run / "checkpoint-4" / "trainer_state.json").write_text(text)
    with pytest.raises(TrainingError, match=rf"trainer_state\.json.*{message}"):
        find_checkpoint(run, str(run / "checkpoint-4"))


def test_a_log_with_foreign_bytes_does_not_keep_a_run_from_going_on(
    run: Run, earlier_run: EarlierRun, tmp_path: Path
) -> None:
    earlier_run("train.max_steps=3")
    with (tmp_path / "run" / "trainer_log.jsonl").open("ab") as log:
        log.write(b'\xff\xfe\n[1]\n{"step": "three"}\n{"step": 3, "lo')
    run("train.max_steps=4", AGAIN)
    assert sorted(rates(tmp_path / "run")) == [1, 2, 3, 4]


@pytest.mark.parametrize("optim", ["train.optim=adamw_torch_fused", "train.optim=adafactor"])
def test_the_state_of_another_adapters_optimiser_is_refused(run: Run, tmp_path: Path, optim: str) -> None:
    run("train.max_steps=3", optim)
    run("train.max_steps=3", optim, "lora.r=4", name="other")
    checkpoint = tmp_path / "run" / "checkpoint-3"
    shutil.copyfile(tmp_path / "other" / "checkpoint-3" / "optimizer.pt", checkpoint / "optimizer.pt")
    (checkpoint / CHECKSUMS_NAME).unlink()
    with pytest.raises(TrainingError, match=r"optimizer\.pt belongs to another optimiser or adapter"):
        run("train.max_steps=4", optim, AGAIN)


def test_accidents_cost_no_checkpoint_that_can_be_gone_on_from(
    run: Run, earlier_run: EarlierRun, tmp_path: Path
) -> None:
    folder = earlier_run("train.max_steps=4", "train.save_steps=2")
    (folder / "checkpoint-6").mkdir()  # of a program that was killed
    (folder / ".unfinished" / "checkpoint-2.old").mkdir(parents=True)
    run("train.max_steps=5", "train.save_steps=5", "train.save_total_limit=2", AGAIN)
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]
    assert (folder / "_superseded-1" / "checkpoint-6").is_dir()
    assert not (folder / ".unfinished").exists()


def test_a_checkpoint_has_its_name_only_once_it_is_complete(run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    def die(*args: Any) -> None:
        assert (tmp_path / "run" / ".unfinished" / "checkpoint-3" / "optimizer.pt").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr(lora_trainer, "publish", die)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert not (tmp_path / "run" / "checkpoint-3").exists()


def test_a_refused_run_can_start_afresh_from_its_adapter(run: Run, earlier_run: EarlierRun, tmp_path: Path) -> None:
    earlier_run("train.max_steps=3")
    checkpoint = tmp_path / "run" / "checkpoint-3"
    with pytest.raises(TrainingError) as caught:
        run("train.max_steps=6", "train.seed=1", AGAIN)
    assert f"model.adapter_path={checkpoint}" in str(caught.value)
    fresh = ("train.seed=1", "train.max_steps=1", "train.learning_rate=0", f"model.adapter_path={checkpoint}")
    run(*fresh, name="fresh")
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (checkpoint, tmp_path / "fresh"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(ConfigError, match=r"lora\.r=4 was requested, but the adapter in .* has 8"):
        run(*fresh, "lora.r=4", name="other")
    with pytest.raises(ConfigError, match="is a base model, not an adapter"):
        run(f"model.adapter_path={embedded_base()}", name="other")


def test_a_run_can_start_from_an_adapter_of_stock_peft(run: Run, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(embedded_base(), dtype=torch.float32)
    torch.manual_seed(1)
    stock = get_peft_model(base, LoraConfig(r=3, lora_alpha=5, target_modules=["dense"], task_type="CAUSAL_LM"))
    for name, parameter in stock.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    stock.save_pretrained(tmp_path / "stock")
    settings = (f"model.path={embedded_base()}", f"model.adapter_path={tmp_path / 'stock'}", "train.learning_rate=0")
    run(*settings, "train.max_steps=1")
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("stock", "run"))
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_schedule_that_goes_by_what_it_has_seen_goes_on_as_it_was(run: Run, tmp_path: Path) -> None:
    plateau = ("train.lr_scheduler_type=reduce_lr_on_plateau", "data.eval_fraction=0.25", "train.max_steps=4")
    run(*plateau, "train.save_steps=2", name="run")
    cut_off_the_end(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    with pytest.raises(TrainingError, match=r"train\.learning_rate was 0\.01 and is 0\.5 now"):
        run(*plateau, "train.learning_rate=0.5", AGAIN)
    run(*plateau, AGAIN)
    assert rates(tmp_path / "run")[4] == rates(tmp_path / "run")[2]
