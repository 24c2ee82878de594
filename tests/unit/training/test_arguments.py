"""Without these, settings that contradict each other would end a run after hours, or hide a NaN loss."""

from typing import Any

import pytest
import torch

from glmtune.config import TRAIN_DEFAULTS, load_config
from glmtune.errors import ConfigError
from glmtune.training.arguments import make_arguments

TRAIN = {**TRAIN_DEFAULTS, "use_cpu": True}


def test_the_nan_filter_is_off_and_nothing_is_reported() -> None:
    arguments = make_arguments(TRAIN, has_eval=False, dtype=torch.float32)
    assert arguments.logging_nan_inf_filter is False
    assert arguments.report_to == []
    assert (arguments.fp16, arguments.bf16) == (False, False)


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("setting", [True, False, 2, "auto"])
def test_trainer_does_not_checkpoint_layers_beside_the_plan(setting: Any) -> None:
    train = {**TRAIN, "gradient_checkpointing": setting, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    arguments = make_arguments(train, has_eval=False, dtype=torch.float32)
    assert arguments.gradient_checkpointing is False
    assert arguments.gradient_checkpointing_kwargs is None


def test_evaluation_goes_along_with_saving() -> None:
    train = {**TRAIN, "save_steps": 7, "early_stopping_patience": 3}
    arguments = make_arguments(train, has_eval=True, dtype=torch.float32)
    assert (arguments.eval_strategy, arguments.eval_steps) == ("steps", 7)
    assert arguments.load_best_model_at_end
    assert arguments.per_device_eval_batch_size == 4
    by_epoch = make_arguments({**TRAIN, "save_strategy": "epoch"}, has_eval=True, dtype=torch.float32)
    assert by_epoch.eval_strategy == "epoch"
    assert not by_epoch.load_best_model_at_end


def test_a_bfloat16_base_needs_autocast_only_beside_whole_modules() -> None:
    assert not make_arguments(TRAIN, has_eval=False, dtype=torch.bfloat16).bf16
    assert make_arguments(TRAIN, has_eval=False, dtype=torch.bfloat16, trains_base_modules=True).bf16


def test_all_contradictions_at_once() -> None:
    train = {**TRAIN, "eval_strategy": "steps", "load_best_model_at_end": True, "report_to": "nothing"}
    with pytest.raises(ConfigError, match="3 errors"):
        make_arguments(train, has_eval=False, dtype=torch.float32)


def arguments(*overrides: str, has_eval: bool = False) -> Any:
    train = load_config(None, ["train.use_cpu=true", *overrides]).train
    return make_arguments(train, has_eval=has_eval, dtype=torch.float32)


@pytest.mark.parametrize("more", ["train.early_stopping_patience=3", "train.load_best_model_at_end=true"])
def test_the_best_adapter_is_evaluated_where_it_is_saved(more: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.save_steps=100 is not a multiple .*; set train\.save_steps=3$"):
        arguments("train.eval_steps=3", more, has_eval=True)
    assert arguments("train.eval_steps=3", "train.save_steps=6", more, has_eval=True).save_steps == 6


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.lr_scheduler_type=warmup_stable_decay"],
            "does not go with .*num_decay_steps",
        ),
        (["train.lr_scheduler_type=cosine_with_min_lr"], "does not go with .*min_lr"),
        (["train.lr_scheduler_kwargs={x: 1}"], "does not go with train.lr_scheduler_kwargs={'x': 1}"),
        (["train.save_strategy=best"], "train.save_strategy=best needs data to evaluate on"),
        (["train.eval_on_start=true"], "train.eval_on_start needs data to evaluate on"),
        (["train.optim=foo"], "train.optim: expected one of"),
    ],
)
def test_settings_that_would_end_in_the_middle(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        arguments(*overrides)


@pytest.mark.parametrize(
    ("schedule", "settings"),
    [("warmup_stable_decay", {"num_decay_steps": 2}), ("cosine_with_min_lr", {"min_lr": 1e-6})],
)
def test_schedules_that_take_settings_of_their_own_get_them(schedule: str, settings: dict[str, Any]) -> None:
    made = arguments(f"train.lr_scheduler_type={schedule}", f"train.lr_scheduler_kwargs={settings}")
    assert (made.lr_scheduler_type, made.lr_scheduler_kwargs) == (schedule, settings)


def test_saving_the_best_goes_by_the_loss() -> None:
    made = arguments("train.save_strategy=best", has_eval=True)
    assert made.metric_for_best_model == "loss"
