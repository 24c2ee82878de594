"""Without these, batch size, memory limits or checkpointing could change what a step learns."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from glmtune.adapters.lora import attach_lora
from glmtune.config import LORA_DEFAULTS, load_config
from glmtune.data.dataset import load_dataset
from glmtune.data.packed_batch import PackedBatch
from glmtune.errors import ConfigError
from glmtune.loading.bases import load_base
from glmtune.loading.runs import load
from glmtune.planning.steps import num_optimizer_steps
from glmtune.training.lora_trainer import LoraTrainer
from glmtune.training.run import TrainResult

Run = Callable[..., TrainResult]


@pytest.fixture
def micro_batches(monkeypatch: pytest.MonkeyPatch) -> list[list[PackedBatch]]:
    """Collects what each step is computed in; tests empty it between runs."""
    original = LoraTrainer.training_step
    seen: list[list[PackedBatch]] = []

    def watched(self: LoraTrainer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(inputs["micro_batches"])
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(LoraTrainer, "training_step", watched)
    return seen


@pytest.fixture
def uneven_file(tmp_path: Path) -> Path:
    """Answers of very different lengths."""
    rows = [{"instruction": f"第{n}个问题？", "output": "这是回答。" * (1 + n * n)} for n in range(6)]
    file = tmp_path / "uneven.json"
    file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return file


def logged(folder: Path, name: str = "loss") -> list[float]:
    entries = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text().splitlines()]
    return [entry[name] for entry in entries if name in entry]


def losses_by_sample(model: Any, samples: Any) -> list[Tensor]:
    """The losses of each sample's tokens, in the plainest way."""
    by_sample = []
    for sample in samples:
        logits, labels = model(torch.tensor([sample["input_ids"]])).logits[0, :-1], torch.tensor(sample["labels"][1:])
        by_sample.append(F.cross_entropy(logits[labels != -100], labels[labels != -100], reduction="none"))
    return by_sample


def assert_same_steps(folder: Path, other: Path) -> None:
    """Gradient norms are compared too: AdamW alone would hide a gradient of the wrong size."""
    assert len(logged(folder)) > 0
    assert logged(folder) == pytest.approx(logged(other), abs=1e-5)
    assert logged(folder, "grad_norm") == pytest.approx(logged(other, "grad_norm"), rel=1e-4)


def test_the_limit_of_tokens_changes_no_step(run: Run, tmp_path: Path, micro_batches: list[Any]) -> None:
    for max_tokens, num_passes in ((10_000, 1), (60, 2), (1, 4)):
        micro_batches.clear()
        run("lora.lora_dropout=0", f"train.max_tokens_per_device={max_tokens}", name=f"run-{max_tokens}")
        assert [len(step) for step in micro_batches] == [num_passes] * 6
        assert_same_steps(tmp_path / f"run-{max_tokens}", tmp_path / "run-10000")
    assert len(set(logged(tmp_path / "run-1"))) == 6


def test_batches_and_accumulation_multiply(run: Run, tmp_path: Path, micro_batches: list[Any]) -> None:
    for batch_size in (4, 2, 1):
        micro_batches.clear()
        run(
            "lora.lora_dropout=0",
            f"train.per_device_train_batch_size={batch_size}",
            f"train.gradient_accumulation_steps={4 // batch_size}",
            name=f"run-{batch_size}",
        )
        assert [sum(packed.num_samples for packed in step) for step in micro_batches] == [4] * 6
        assert {len(step) for step in micro_batches} == {4 // batch_size}
        assert_same_steps(tmp_path / f"run-{batch_size}", tmp_path / "run-4")


def test_a_shared_prefix_changes_no_step(run: Run, tmp_path: Path, micro_batches: list[Any]) -> None:
    num_rows = {}
    for word in ("false", "true"):
        micro_batches.clear()
        settings = ["lora.lora_dropout=0", "prompt.system=你是甄嬛，雍正的妃子。", f"train.shared_prefix={word}"]
        run(*settings, "train.max_tokens_per_device=10000", name=f"run-{word}")
        num_rows[word] = sum(len(packed.input_ids) for step in micro_batches for packed in step)
    assert num_rows["true"] < 0.8 * num_rows["false"]
    assert_same_steps(tmp_path / "run-true", tmp_path / "run-false")


@pytest.mark.parametrize(("dropout", "is_shared"), [("0", True), ("0.1", False)])
def test_prefixes_are_shared_where_there_is_no_dropout(
    run: Run, micro_batches: list[Any], console: Console, dropout: str, is_shared: bool
) -> None:
    run(f"lora.lora_dropout={dropout}", "train.max_steps=1", "train.max_tokens_per_device=10000")
    (packed,) = micro_batches[0]
    assert (len(packed.input_ids) < packed.num_tokens) == is_shared
    assert ("since lora_dropout=0.1" in console.export_text()) == (not is_shared)


@pytest.mark.parametrize("weight", ["token", "sample"])
def test_a_step_is_the_mean_over_tokens_or_over_samples(
    run: Run, uneven_file: Path, tiny_base: Path, tmp_path: Path, weight: str
) -> None:
    run(
        f"data.path={uneven_file}",
        f"data.loss_weight={weight}",
        "lora.lora_dropout=0",
        "train.max_steps=1",
        "train.per_device_train_batch_size=6",
        "train.gradient_accumulation_steps=1",
        "train.max_tokens_per_device=50",
    )
    base, tokenizer = load_base(tiny_base, device_map="cpu")
    torch.manual_seed(42)
    model = attach_lora(base, {**LORA_DEFAULTS, "target_modules": ["query_key_value"], "lora_dropout": 0.0})
    by_sample = losses_by_sample(model, load_dataset(str(uneven_file), tokenizer)[0])
    means = {"token": torch.cat(by_sample).mean(), "sample": torch.stack([each.mean() for each in by_sample]).mean()}
    assert abs(means["token"] - means["sample"]) > 1e-3
    means[weight].backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]).norm()
    assert logged(tmp_path / "run") == [pytest.approx(means[weight].item(), abs=1e-5)]
    assert logged(tmp_path / "run", "grad_norm") == [pytest.approx(norm.item(), rel=1e-4)]


def test_the_limit_of_tokens_changes_no_eval_loss(run: Run, tmp_path: Path, uneven_file: Path) -> None:
    settings = ["lora.lora_dropout=0", "train.max_steps=2", "train.save_steps=1", f"data.eval_path={uneven_file}"]
    for max_tokens in (10_000, 60, 1):
        run(*settings, f"train.max_tokens_per_device={max_tokens}", name=f"run-{max_tokens}")
    expected = logged(tmp_path / "run-10000", "eval_loss")
    assert len(set(expected)) == 2
    for max_tokens in (60, 1):
        assert logged(tmp_path / f"run-{max_tokens}", "eval_loss") == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("weight", ["token", "sample"])
def test_the_evaluation_loss_is_the_mean_over_the_whole_set_whatever_the_batch(
    run: Run, tmp_path: Path, uneven_file: Path, weight: str
) -> None:
    settings = [f"data.loss_weight={weight}", f"data.eval_path={uneven_file}", "train.dataloader_drop_last=true"]
    for batch_size in (1, 4, 6):
        steps = ["train.max_steps=2", "train.save_steps=2", f"train.per_device_eval_batch_size={batch_size}"]
        run(*settings, *steps, name=f"run-{batch_size}")
    trained = load(tmp_path / "run-1", device_map="cpu", dtype="float32")
    by_sample = losses_by_sample(trained.model, load_dataset(str(uneven_file), trained.tokenizer)[0])
    means = {"token": torch.cat(by_sample).mean(), "sample": torch.stack([each.mean() for each in by_sample]).mean()}
    assert abs(means["token"] - means["sample"]) > 1e-3
    for batch_size in (1, 4, 6):
        assert logged(tmp_path / f"run-{batch_size}", "eval_loss") == [pytest.approx(means[weight].item(), abs=1e-5)]


def test_layers_that_cannot_be_fused_are_told_of_and_train(run: Run, console: Console) -> None:
    result = run("lora.use_dora=true")
    lines = [line for line in console.export_text().splitlines() if "layers cannot be fused" in line]
    assert len(lines) == 1
    assert "lora.use_dora" in lines[0]
    assert result.num_steps == 6
    assert result.last_loss < result.first_loss


def test_layers_that_can_be_fused_are_not_told_of(run: Run, console: Console) -> None:
    run("train.max_steps=1")
    assert "layers cannot be fused" not in console.export_text()


def test_checkpointing_changes_no_step(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = LoraTrainer.training_step
    flags: list[list[bool]] = []

    def watched(self: LoraTrainer, model: Any, *args: Any, **kwargs: Any) -> Any:
        flags.append([layer.gradient_checkpointing for layer in model.get_base_model().transformer.encoder.layers])
        return original(self, model, *args, **kwargs)

    monkeypatch.setattr(LoraTrainer, "training_step", watched)
    for word in ("false", "true", "auto"):
        run(f"train.gradient_checkpointing={word}", "train.max_steps=2", name=f"run-{word}")
    assert flags == [[False] * 3] * 2 + [[True] * 3] * 2 + [[False] * 3] * 2  # the CPU has memory enough
    for word in ("true", "auto"):
        assert_same_steps(tmp_path / f"run-{word}", tmp_path / "run-false")


@pytest.mark.parametrize(
    "override", ["train.gradient_checkpointing=some", "train.gradient_checkpointing=Auto", "data.loss_weight=word"]
)
def test_words_that_are_not_known(run: Run, override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        run(override)


def test_every_part_of_the_model_is_in_training_mode(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base comes from `from_pretrained` in evaluation mode; dropout and checkpointing would silently be off."""
    original = LoraTrainer.training_step
    modes = []

    def watched(self: LoraTrainer, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, model, *args, **kwargs)
        modes.append(all(module.training for module in model.modules()))
        return loss

    monkeypatch.setattr(LoraTrainer, "training_step", watched)
    run("train.max_steps=4", "data.eval_fraction=0.25", "train.eval_strategy=steps", "train.eval_steps=2")
    assert modes == [True] * 4


@pytest.mark.parametrize("use_dora", ["false", "true"])
def test_dropout_makes_a_difference(run: Run, tmp_path: Path, use_dora: str) -> None:
    curves = []
    for dropout in ("0", "0.9"):
        run(f"lora.lora_dropout={dropout}", f"lora.use_dora={use_dora}", "train.max_steps=3", name=f"p{dropout}")
        lines = (tmp_path / f"p{dropout}" / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
        curves.append([entry["loss"] for entry in map(json.loads, lines) if "loss" in entry])
    assert curves[0][0] == pytest.approx(curves[1][0], abs=1e-6)  # B is zero yet
    assert abs(curves[0][2] - curves[1][2]) > 1e-4


def test_checkpointed_layers_are_computed_twice(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["glmtune.ops.fused_layer"]  # the package has a function of that name
    original = module.attention_forward
    calls: list[str] = []

    def watched(*arguments: Any) -> Any:
        calls.append(checkpointing)
        return original(*arguments)

    monkeypatch.setattr(module, "attention_forward", watched)
    for checkpointing in ("true", "false", "auto"):
        run("train.max_steps=1", f"train.gradient_checkpointing={checkpointing}", name=checkpointing)
    assert calls.count("true") == 2 * calls.count("false") == 2 * calls.count("auto") > 0


@pytest.mark.parametrize(
    "setting", ["use_dora=true", "modules_to_save=[output_layer]", "bias=all", "init_lora_weights=pissa"]
)
def test_what_a_quantised_base_cannot_be_trained_with(run: Run, setting: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be used with model\.quantize=fp8"):
        run("model.quantize=fp8", f"lora.{setting}")


def test_a_missing_optimiser_is_one_clear_error(run: Run) -> None:
    with pytest.raises(ConfigError, match=r"train\.optim=grokadamw: .*pip install"):
        run("train.optim=grokadamw")


@pytest.mark.parametrize(("drops_last", "num_steps"), [("true", 8), ("false", 10)])
def test_steps_are_planned_as_they_are_taken(run: Run, drops_last: str, num_steps: int) -> None:
    settings = ["train.per_device_train_batch_size=5", "train.gradient_accumulation_steps=1"]
    settings += [f"train.dataloader_drop_last={drops_last}", "train.num_train_epochs=2"]
    assert run(*settings).num_steps == num_steps
    assert num_optimizer_steps(load_config(None, settings).train, 24, 1) == num_steps


@pytest.mark.parametrize("length", ["train.num_train_epochs=1", "train.max_steps=2"])
def test_fewer_samples_than_a_step_takes_are_not_all_dropped_in_silence(run: Run, length: str) -> None:
    with pytest.raises(ConfigError, match=r"a step takes 26 samples .* and there are 24"):
        run("train.per_device_train_batch_size=13", "train.dataloader_drop_last=true", length)
