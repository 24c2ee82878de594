"""Without these, a run could leave an unusable folder, overwrite an earlier one, or go on with NaN."""

import itertools
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import Trainer
from transformers.trainer_callback import CallbackHandler

from glmtune.adapters.run_folder import RunManifest
from glmtune.errors import ConfigError, DataError, TrainingError
from glmtune.loading.bases import load_base
from glmtune.loading.runs import load
from glmtune.training import interruption, lora_trainer
from glmtune.training.lora_trainer import LoraTrainer
from glmtune.training.run import TrainingInterrupted, TrainResult

Run = Callable[..., TrainResult]
EarlierRun = Callable[..., Path]


def losses(run: Path) -> dict[int, float]:
    entries = [json.loads(line) for line in (run / "trainer_log.jsonl").read_text().splitlines()]
    return {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}


def speeds(run: Path) -> list[float]:
    entries = [json.loads(line) for line in (run / "trainer_log.jsonl").read_text().splitlines()]
    return [entry["tokens_per_second"] for entry in entries if "tokens_per_second" in entry]


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the gradient of the given steps NaN."""
    original = LoraTrainer.training_step

    def step_and_poison(self: LoraTrainer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, model, inputs, *args, **kwargs)
        if self.state.global_step + 1 in bad_steps:
            next(p for p in model.parameters() if p.grad is not None).grad.fill_(float("nan"))
        return loss

    bad_steps: set[int] = set()
    monkeypatch.setattr(LoraTrainer, "training_step", step_and_poison)
    return lambda *steps: bad_steps.update(steps)


def test_a_run_leaves_what_people_look_for(run: Run, tmp_path: Path, console: Console) -> None:
    result = run("prompt.system=你是甄嬛", "data.max_length=64")
    folder = tmp_path / "run"
    expected = {
        "adapter_config.json",
        "adapter_model.safetensors",
        "all_results.json",
        "checkpoint-3",
        "glmtune.json",
        "trainer_log.jsonl",
        "trainer_state.json",
        "training_loss.png",
    }
    assert expected <= {entry.name for entry in folder.iterdir()}
    assert (folder / "training_loss.png").read_bytes().startswith(b"\x89PNG")
    entry = json.loads((folder / "trainer_log.jsonl").read_text().splitlines()[0])
    assert {"step", "loss", "grad_norm", "learning_rate", "epoch", "tokens_per_second"} <= entry.keys()
    results = json.loads((folder / "all_results.json").read_text())
    assert results["num_steps"] == result.num_steps == 6
    assert results["last_loss"] == result.last_loss < result.first_loss
    manifest = RunManifest.read(folder)
    assert manifest is not None
    assert manifest.system == "你是甄嬛"
    assert manifest.config["data"]["max_length"] == 64
    assert manifest.config["lora"]["target_modules"] == ["query_key_value"]  # what `auto` stood for
    assert RunManifest.read(folder / "checkpoint-3") == manifest
    text = console.export_text()
    trained, total = (result.metrics[name] for name in ("num_trainable_parameters", "num_parameters"))
    assert f"trainable parameters: {trained:,} of {total:,} ({trained / total:.4%})" in text
    assert re.search(r"step 6/6 \(100%\)  loss [\d.]+  lr [\d.e-]+  [\d,]+ tokens/s  [\d.]+ GiB  0:00 left", text)


def test_a_run_and_its_checkpoints_load(run: Run, tmp_path: Path, tiny_base: Path) -> None:
    run()
    ids = torch.arange(20)[None]
    base, _ = load_base(tiny_base, device_map="cpu")
    stock = PeftModel.from_pretrained(base, str(tmp_path / "run")).eval()
    with torch.no_grad():
        ours = load(tmp_path / "run", device_map="cpu").model(input_ids=ids).logits
        halfway = load(tmp_path / "run" / "checkpoint-3", device_map="cpu").model(input_ids=ids).logits
        torch.testing.assert_close(ours, stock(input_ids=ids).logits)
    assert (ours - halfway).abs().max() > 1e-4


@pytest.mark.parametrize("init", ["true", "pissa", "olora"])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(run: Run, at_step: Any, tmp_path: Path, init: str) -> None:
    settings = [f"lora.init_lora_weights={init}", "train.save_steps=100"]
    run(*settings, name="whole")
    at_step(4, press_ctrl_c)
    with pytest.raises(TrainingInterrupted) as caught:
        run(*settings)
    assert "interrupted at step 4 of 6" in str(caught.value)
    assert "checkpoint-4" in str(caught.value)
    assert str(caught.value).endswith("train.resume_from_checkpoint=true")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not (tmp_path / "run" / "adapter_model.safetensors").exists()
    result = run(*settings, "train.resume_from_checkpoint=true")
    assert result.num_steps == 6
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    whole, resumed = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_run_is_never_overwritten(run: Run, earlier_run: EarlierRun, tmp_path: Path) -> None:
    earlier_run("train.max_steps=1")
    before = (tmp_path / "run" / "glmtune.json").read_bytes()
    with pytest.raises(ConfigError, match="holds a run already"):
        run("train.max_steps=2")
    assert (tmp_path / "run" / "glmtune.json").read_bytes() == before


def test_a_run_without_overlong_samples_records_how_many(
    run: Run, data_file: Path, tmp_path: Path, console: Console
) -> None:
    rows = json.loads(data_file.read_text(encoding="utf-8"))
    rows[0]["output"] *= 100
    data_file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    run("data.overlong=drop", "train.max_steps=3")
    manifest = RunManifest.read(tmp_path / "run")
    assert manifest is not None
    assert manifest.num_overlong == 1
    assert "1 more samples are left out" in console.export_text()
    with pytest.raises(TrainingError, match=r"data\.overlong was 'drop' and is 'cut' now"):
        run("data.overlong=cut", "train.max_steps=6", "train.resume_from_checkpoint=true")


def test_resuming_what_is_finished_or_changed_or_not_there(run: Run, earlier_run: EarlierRun, data_file: Path) -> None:
    with pytest.raises(TrainingError, match="no complete checkpoint"):
        run("train.resume_from_checkpoint=true")
    earlier_run("train.max_steps=3")
    with pytest.raises(TrainingError, match=r"is finished \(3 of 3 steps\)"):
        run("train.max_steps=3", "train.resume_from_checkpoint=true")
    run("train.max_steps=3", "train.optim=sgd", name="other")
    with pytest.raises(TrainingError, match=r"train\.optim was 'sgd' and is 'adamw_torch_fused' now"):
        run("train.max_steps=6", "train.resume_from_checkpoint=true", name="other")
    with pytest.raises(TrainingError, match=r"2 errors(.|\n)*prompt\.system was None(.|\n)*lora\.r was 8 and is 4 now"):
        run("train.max_steps=6", "train.resume_from_checkpoint=true", "lora.r=4", "prompt.system=x")
    data_file.write_text(data_file.read_text(encoding="utf-8").replace("没有别的", "还有别的"), encoding="utf-8")
    with pytest.raises(TrainingError, match="the data have changed"):
        run("train.max_steps=6", "train.resume_from_checkpoint=true")


def test_a_run_does_not_go_on_with_another_base_in_the_old_place(run: Run, tiny_base: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    run("train.max_steps=3", f"model.path={base}")
    weights = load_file(base / "model.safetensors")
    save_file({name: weight * 1.01 for name, weight in weights.items()}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(TrainingError, match="the base's weights are not those"):
        run("train.max_steps=6", f"model.path={base}", "train.resume_from_checkpoint=true")


def test_a_finished_run_can_be_made_longer(run: Run, earlier_run: EarlierRun, tmp_path: Path) -> None:
    earlier_run("train.max_steps=3")
    assert run("train.max_steps=5", "train.resume_from_checkpoint=true").num_steps == 5
    assert sorted(losses(tmp_path / "run")) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("optimizer", ["adamw_torch_fused", "adamw_torch", "adafactor"])
def test_a_step_that_is_not_finite_changes_nothing_and_stops_the_run(
    run: Run, poison: Callable[..., None], tmp_path: Path, optimizer: str
) -> None:
    settings = [f"train.optim={optimizer}", "train.lr_scheduler_type=constant", "lora.lora_dropout=0"]
    run(*settings, "train.max_steps=4", "train.save_steps=1", name="good")
    poison(5)
    with pytest.raises(TrainingError) as caught:
        # The host looks at step 6 only: steps 5 and 6 have run by then.
        run(*settings, "train.logging_steps=2", "train.save_steps=4")
    message = str(caught.value)
    assert "the gradient is not finite (from step 5 on)" in message
    assert "Probable cause" in message
    assert f"The last good checkpoint is {tmp_path / 'run' / 'checkpoint-4'}" in message
    good, kept = (load_file(tmp_path / n / "checkpoint-4/adapter_model.safetensors") for n in ("good", "run"))
    assert all(torch.equal(good[name], kept[name]) for name in good)


@pytest.mark.parametrize("optimizer", ["adamw_torch_fused", "adamw_torch"])
def test_weights_and_optimiser_are_left_alone(
    run: Run, poison: Callable[..., None], monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    poison(3)
    seen = []

    original = CallbackHandler.on_step_end

    def watched(self: CallbackHandler, args: Any, state: Any, control: Any) -> Any:
        weights = [p.detach().clone() for p in self.model.parameters() if p.requires_grad]
        moments = [v.clone() for s in self.optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
        seen.append(weights + moments)
        return original(self, args, state, control)

    monkeypatch.setattr(CallbackHandler, "on_step_end", watched)
    with pytest.raises(TrainingError):
        run(f"train.optim={optimizer}", "train.weight_decay=0.1", "train.logging_steps=100", "train.save_steps=3")
    assert all(torch.equal(before, after) for before, after in zip(seen[1], seen[2], strict=True))
    assert not all(torch.equal(before, after) for before, after in zip(seen[0], seen[1], strict=True))


def test_no_checkpoint_is_written_after_a_step_that_is_not_finite(
    run: Run, poison: Callable[..., None], tmp_path: Path
) -> None:
    poison(2)
    with pytest.raises(TrainingError, match="No checkpoint had been saved yet"):
        run("train.logging_steps=100", "train.save_steps=3")
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_a_loss_that_is_not_finite(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    original = LoraTrainer.training_step
    monkeypatch.setattr(LoraTrainer, "training_step", lambda *a, **k: original(*a, **k) + float("inf"))
    with pytest.raises(TrainingError, match="loss is inf at step 1"):
        run()


def test_evaluation_early_stopping_and_the_best_checkpoint(run: Run, tmp_path: Path) -> None:
    result = run(
        "data.eval_fraction=0.25",
        "train.save_steps=1",
        "train.num_train_epochs=10",
        "train.learning_rate=1",
        "train.max_grad_norm=0",
        "train.early_stopping_patience=2",
    )
    entries = [json.loads(line) for line in (tmp_path / "run" / "trainer_log.jsonl").read_text().splitlines()]
    evaluated = {entry["step"]: entry["eval_loss"] for entry in entries if "eval_loss" in entry}
    best = min(evaluated, key=lambda step: evaluated[step])
    assert result.num_steps == best + 2 < 40
    assert result.best_checkpoint == tmp_path / "run" / f"checkpoint-{best}"
    final, kept = (load_file(f / "adapter_model.safetensors") for f in (tmp_path / "run", result.best_checkpoint))
    assert all(torch.equal(final[name], kept[name]) for name in final)


def test_evaluation_on_a_file_of_its_own(run: Run, data_file: Path) -> None:
    result = run(f"data.eval_path={data_file}", "train.max_steps=3")
    assert result.metrics["eval_loss"] > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.eval_strategy=steps"], r"train\.eval_strategy needs data"),
        (["train.early_stopping_patience=2"], "early_stopping_patience needs data"),
        (["train.report_to=nothing"], "unknown tracker 'nothing'"),
        (["train.report_to=[clearml]"], "pip install clearml"),
        (["train.lr_scheduler_type=zigzag"], "expected one of constant, .* found 'zigzag'"),
        (["model.dtype=float16"], "float16 needs a GPU"),
        (["data.eval_fraction=0.999"], "leaves nothing to train on"),
    ],
)
def test_settings_that_cannot_work(run: Run, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(*overrides)


def test_bfloat16_with_whole_modules_trained_along(run: Run) -> None:
    result = run("model.dtype=bfloat16", "lora.modules_to_save=[output_layer]", "train.max_steps=2")
    assert result.num_steps == 2


def test_a_second_ctrl_c_aborts_at_once(run: Run, at_step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    minutes = SimpleNamespace(monotonic=itertools.count(0, 60).__next__)  # long enough for two presses
    monkeypatch.setattr(interruption, "time", minutes)

    def press_twice() -> None:
        press_ctrl_c()
        press_ctrl_c()

    at_step(2, press_twice)
    with pytest.raises(KeyboardInterrupt):
        run()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_scheduler_or_a_closed_terminal_stops_a_run_with_a_checkpoint(
    run: Run, at_step: Any, tmp_path: Path, name: str
) -> None:
    at_step(2, lambda: os.kill(os.getpid(), signal.Signals[name]))
    with pytest.raises(TrainingInterrupted, match="interrupted at step 2 of 6"):
        run()
    assert (tmp_path / "run" / "checkpoint-2" / "adapter_model.safetensors").is_file()


def test_a_checkpoint_from_elsewhere_overwrites_no_run(run: Run, earlier_run: EarlierRun, tmp_path: Path) -> None:
    earlier_run("train.max_steps=3", name="one")
    earlier_run("train.max_steps=3", name="two")
    elsewhere = f"train.resume_from_checkpoint={tmp_path / 'one' / 'checkpoint-3'}"
    with pytest.raises(ConfigError, match="holds a run already"):
        run("train.max_steps=4", elsewhere, name="two")
    assert run("train.max_steps=4", elsewhere, name="three").num_steps == 4


def test_checkpoints_that_cannot_be_gone_on_from(run: Run, earlier_run: EarlierRun, tmp_path: Path) -> None:
    earlier_run("train.max_steps=3")
    again = ("train.max_steps=6", "train.resume_from_checkpoint=true")
    checkpoint = tmp_path / "run" / "checkpoint-3"
    state = checkpoint / "trainer_state.json"
    text = state.read_text()
    state.write_text(text[:50])
    with pytest.raises(TrainingError, match=r"trainer_state\.json is damaged"):
        run(*again)
    state.write_text(text)
    (checkpoint / "optimizer.pt").unlink()
    (checkpoint / "rng_state.pth").unlink()
    with pytest.raises(TrainingError, match=r"it has no optimizer\.pt, rng_state\.pth"):
        run(*again)


@pytest.mark.parametrize("slow", ["evaluating", "saving"])
def test_speed_leaves_evaluating_and_saving_out(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    """By a clock of its own, on which a step takes a second, and what is slow a thousand."""
    now_s = [0.0]
    monkeypatch.setattr(lora_trainer, "time", SimpleNamespace(perf_counter=lambda: now_s[0]))

    def taking(seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        def slowly(*args: Any, **kwargs: Any) -> Any:
            now_s[0] += seconds
            return function(*args, **kwargs)

        return slowly

    monkeypatch.setattr(LoraTrainer, "training_step", taking(1, LoraTrainer.training_step))
    settings = ("data.eval_fraction=0.25", "train.save_steps=1", "train.max_steps=3")
    run(*settings, name="quick")
    if slow == "evaluating":
        monkeypatch.setattr(Trainer, "evaluate", taking(1000, Trainer.evaluate))
    else:
        monkeypatch.setattr(lora_trainer, "publish", taking(1000, lora_trainer.publish))
    run(*settings, name="slow")
    assert now_s[0] > 2000
    quick, slowed = (speeds(tmp_path / name) for name in ("quick", "slow"))
    assert quick == slowed
    assert min(quick) > 1


def test_a_run_without_faulty_rows_says_where_they_are(
    run: Run, data_file: Path, tmp_path: Path, console: Console
) -> None:
    rows = json.loads(data_file.read_text(encoding="utf-8"))
    rows[1]["output"] = ""
    data_file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    with pytest.raises(DataError, match='row 2: "output" is empty'):
        run("train.max_steps=1")
    run("data.faulty=skip", "train.max_steps=1")
    (skipped,) = (tmp_path / "run" / "skipped_rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(skipped)["values"] == rows[1]
    assert "1 more rows are left out, being faulty" in console.export_text()
