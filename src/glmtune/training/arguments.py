"""Turns the `train` section into `TrainingArguments`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import SchedulerType, TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations

from glmtune.compat import known_trackers
from glmtune.config import OWN_TRAIN_KEYS
from glmtune.errors import ConfigError, summarise_faults
from glmtune.training.trackers import RunArguments

_PACKAGES = {"comet_ml": "comet-ml", "azure_ml": "azureml-core mlflow", "flyte": "flytekit"}


def make_arguments(
    train: Mapping[str, Any], *, has_eval: bool, dtype: torch.dtype, trains_base_modules: bool = False
) -> RunArguments:
    """Makes the arguments of transformers' Trainer.

    If there is evaluation data, evaluation follows the schedule of saving unless configured otherwise, so that the best
    checkpoint can be kept. Precision follows the base: a float16 base is trained with loss scaling; a bfloat16 base
    needs no autocast, since PEFT casts at the adapters, unless whole modules are trained in float32 as well.

    Args:
        train: The `train` section of the configuration.
        has_eval: Whether there is evaluation data.
        dtype: The dtype of the base.
        trains_base_modules: Whether biases or whole modules of the base are trained too.

    Returns:
        The arguments.

    Raises:
        ConfigError: The section contradicts itself, or asks for a tracker that is not installed; all faults at once.
    """
    values = {key: value for key, value in train.items() if key not in {*OWN_TRAIN_KEYS, "resume_from_checkpoint"}}
    faults = [*_evaluation_faults(train, has_eval), *_tracker_faults(values.get("report_to"))]
    accelerator = values.get("accelerator_config")
    if isinstance(accelerator, Mapping) and accelerator.get("gradient_accumulation_kwargs"):
        faults.append("train.accelerator_config: set train.gradient_accumulation_steps instead of num_steps")
    if faults:
        raise ConfigError(summarise_faults("configuration", faults))
    values["output_dir"] = str(Path(str(values["output_dir"])).expanduser())
    values["logging_nan_inf_filter"] = False
    values.setdefault("disable_tqdm", True)
    values.setdefault("label_names", ["labels"])
    values.setdefault("dataloader_pin_memory", torch.cuda.is_available())
    if values["dataloader_pin_memory"]:
        values.setdefault("accelerator_config", {"non_blocking": True})  # otherwise the host waits for each copy
    values.setdefault("ddp_find_unused_parameters", False)  # every adapter weight is used in every step
    values.setdefault("fp16", dtype == torch.float16)
    values.setdefault("bf16", dtype == torch.bfloat16 and trains_base_modules)
    if has_eval:
        _follow_saving(values, train.get("early_stopping_patience") is not None)
    # For Trainer a batch is a whole optimiser step; its tokens decide into how many passes it is split.
    values["per_device_train_batch_size"] *= values.pop("gradient_accumulation_steps")
    # The layers that the plan says are checkpointed; Trainer knows all or none.
    for key in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
        values.pop(key, None)
    with transformers_faults():
        arguments = RunArguments(**values)
        _try_schedule(arguments)
    return arguments


@contextmanager
def transformers_faults() -> Iterator[None]:
    """Turns errors of transformers, accelerate and torch about settings into a one-sentence message.

    Raises:
        ConfigError: In place of their error.
    """
    try:
        yield
    except (ValueError, TypeError, NotImplementedError, ImportError, LookupError) as error:
        what = f"there is no {error}" if isinstance(error, LookupError) else error
        raise ConfigError(f"train: transformers refuses these settings: {what}") from error


def _try_schedule(arguments: TrainingArguments) -> None:
    """Creates the learning-rate schedule once, since its settings are only checked on creation."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = SchedulerType(arguments.lr_scheduler_type)
    kwargs = arguments.lr_scheduler_kwargs or {}
    try:
        get_scheduler(schedule, optimizer, num_warmup_steps=1, num_training_steps=10, scheduler_specific_kwargs=kwargs)
    except (ValueError, TypeError, LookupError) as error:
        raise ConfigError(
            f"train.lr_scheduler_type={schedule.value} does not go with train.lr_scheduler_kwargs={kwargs}: {error}. "
            "Write them as a mapping: 'train.lr_scheduler_kwargs={name: value}'"
        ) from error


def _follow_saving(values: dict[str, Any], stops_early: bool) -> None:
    """Evaluates whenever a checkpoint is saved, with the batch size of training."""
    strategy = str(values.get("save_strategy", "steps"))
    values.setdefault("eval_strategy", strategy if strategy in ("steps", "epoch") else "epoch")
    if strategy == "best":
        values.setdefault("metric_for_best_model", "loss")
    if values["eval_strategy"] == "steps":
        values.setdefault("eval_steps", values["save_steps"])
    values.setdefault("per_device_eval_batch_size", values["per_device_train_batch_size"])
    # Only the loss is used; keeping logits of 65,024 tokens per position would only fill the memory.
    values.setdefault("prediction_loss_only", True)
    if stops_early:
        values.setdefault("load_best_model_at_end", True)
        values.setdefault("metric_for_best_model", "loss")
    if values.get("load_best_model_at_end"):
        _check_best_is_saved(values)


def _check_best_is_saved(values: Mapping[str, Any]) -> None:
    """Refuses checkpoints between two evaluations: nobody would know how good they are."""
    every, saved_every = values.get("eval_steps"), values["save_steps"]
    by_steps = values["eval_strategy"] == "steps" and values.get("save_strategy", "steps") == "steps"
    # Below 1, they are shares of the run, which Trainer checks.
    if by_steps and every is not None and min(every, saved_every) >= 1 and saved_every % every:
        raise ConfigError(
            f"train.save_steps={saved_every:g} is not a multiple of train.eval_steps={every:g}, so that the best "
            f"adapter could not be kept; set train.save_steps={every:g}"
        )


def _evaluation_faults(train: Mapping[str, Any], has_eval: bool) -> list[str]:
    if has_eval:
        return []
    needs_eval = {
        "eval_strategy": train.get("eval_strategy") not in (None, "no", False),
        "early_stopping_patience": train.get("early_stopping_patience") is not None,
        "eval_generate": train.get("eval_generate") is not None,
        "load_best_model_at_end": bool(train.get("load_best_model_at_end")),
        "eval_on_start": bool(train.get("eval_on_start")),
        "save_strategy=best": train.get("save_strategy") == "best",
    }
    return [
        f"train.{key} needs data to evaluate on; set data.eval_path, or data.eval_fraction=0.05 to hold some out"
        for key, is_set in needs_eval.items()
        if is_set
    ]


def _tracker_faults(report_to: Any) -> list[str]:
    names = [report_to] if isinstance(report_to, str) else list(report_to or [])
    available = get_available_reporting_integrations()
    faults = []
    for name in names:
        if name in ("none", "all") or name in available:
            continue
        if name not in known_trackers():
            faults.append(f"train.report_to: unknown tracker {name!r}; known trackers: {', '.join(known_trackers())}")
        elif name != "flyte":
            faults.append(f"train.report_to: {name} is not installed; pip install {_PACKAGES.get(name, name)}")
    return faults
