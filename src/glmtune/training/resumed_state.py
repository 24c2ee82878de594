"""What a resumed run takes from its checkpoint: the best one so far, the mean loss, schedule and optimiser."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerState

from glmtune.adapters.run_folder import checkpoints
from glmtune.compat import put_schedule

MEAN_LOSS = "MeanLoss"
"""The name under which a checkpoint's state holds the mean loss of the steps up to it, among those of callbacks."""


def mean_loss_before(state: Mapping[str, Any]) -> float:
    """The mean loss of all steps before a checkpoint.

    Args:
        state: Its state. One without a record of the mean has the losses that were logged, each over several steps.
    """
    saved = state.get("stateful_callbacks", {}).get(MEAN_LOSS)
    attributes = saved.get("attributes") if isinstance(saved, dict) else None
    mean = attributes.get("mean") if isinstance(attributes, dict) else None
    if isinstance(mean, int | float):
        return float(mean)
    total, logged_step = 0.0, 0
    for entry in state["log_history"]:
        if "loss" in entry and "step" in entry:
            total += entry["loss"] * (entry["step"] - logged_step)
            logged_step = entry["step"]
    return total / logged_step if logged_step else 0.0


def find_best_again(state: TrainerState, output_dir: str | Path) -> None:
    """Finds the best checkpoint of a run whose folder may have moved; if it was deleted, none has been the best yet.

    Args:
        state: The state as read from a checkpoint, which names the best one by an absolute path.
        output_dir: The run folder.
    """
    if state.best_global_step is None:
        return
    here = Path(output_dir) / f"checkpoint-{state.best_global_step}"
    if here in checkpoints(output_dir):
        state.best_model_checkpoint = str(here)
    elif state.best_model_checkpoint is None or not Path(state.best_model_checkpoint).is_dir():
        state.best_model_checkpoint = state.best_metric = state.best_global_step = None


def set_schedule(scheduler: LambdaLR, fresh: Mapping[str, Any], step: int) -> None:
    """Moves a scheduler to a step of the schedule that it was created with.

    Args:
        scheduler: The scheduler; its optimiser's learning rates are set too.
        fresh: Its initial state.
        step: Optimiser steps taken.
    """
    groups = scheduler.optimizer.param_groups
    rates = [base * factor(step) for base, factor in zip(fresh["base_lrs"], scheduler.lr_lambdas, strict=True)]
    put_schedule(scheduler, fresh, step, rates)
    for group, rate in zip(groups, rates, strict=True):
        if isinstance(group["lr"], Tensor):  # read by the optimiser's kernels
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def check_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Checks that an optimiser's state has the shapes of its parameters; torch checks only their number.

    Raises:
        ValueError: A shape differs.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                shape = parameter.shape
                expected = {"exp_avg_sq_row": shape[:-1], "exp_avg_sq_col": shape[:-2] + shape[-1:]}.get(name, shape)
                is_alike = isinstance(value, Tensor) and value.ndim == len(expected)
                if is_alike and value.shape != expected:
                    raise ValueError(f"{name} has shape {list(value.shape)}, its parameter {list(shape)}")
