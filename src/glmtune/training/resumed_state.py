"""The best checkpoint of a resumed run, whose folder may have moved."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerState

from glmtune.adapters.run_folder import checkpoints

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
