"""The end of a run: writes adapter and plot, runs the self-test on what was written, then writes the results."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glmtune.adapters.lora import count_parameters
from glmtune.adapters.run_folder import RESULTS_NAME
from glmtune.loading.devices import GIB, peak_bytes
from glmtune.planning.planned import PlannedRun
from glmtune.report.write import write_report
from glmtune.training.hub_upload import upload
from glmtune.training.inputs import RunInputs
from glmtune.training.lora_trainer import LoraTrainer
from glmtune.training.report import PICTURE_NAME, draw_losses, write_results
from glmtune.training.selftest import run_selftest

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        output_dir: The run folder.
        num_steps: Total number of optimiser steps.
        first_loss: The first logged loss; None if none was logged.
        last_loss: The last logged loss; None if none was logged.
        metrics: The contents of `all_results.json`.
        best_checkpoint: The checkpoint with the best evaluation, if it was tracked.
        max_steps: Steps that the run was to have; more than `num_steps` where it stopped early.
        best_step: The step whose adapter the run folder holds, where that is the best rather than the last.
    """

    output_dir: Path
    num_steps: int
    first_loss: float | None
    last_loss: float | None
    metrics: Mapping[str, Any]
    best_checkpoint: Path | None
    max_steps: int
    best_step: int | None


def finish_run(trainer: LoraTrainer, inputs: RunInputs, planned: PlannedRun, metrics: Mapping[str, Any]) -> TrainResult:
    """Saves the adapter, runs the self-test, and writes the results.

    Args:
        trainer: The trainer, after its last step.
        inputs: The inputs of the run.
        planned: Its plan.
        metrics: Trainer's metrics of the steps taken in this session.

    Raises:
        TrainingError: The self-test failed, or the finished run could not be uploaded.
        StorageError: A file cannot be written.
    """
    arguments, state = trainer.args, trainer.state
    run = Path(arguments.output_dir)
    trainer.save_model()
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    evaluations = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
    num_trained, num_total = count_parameters(trainer.adapted_model())
    results = {
        **metrics,
        "epoch": state.epoch,
        "num_steps": state.global_step,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        **({"eval_loss": evaluations[-1], "best_eval_loss": min(evaluations)} if evaluations else {}),
        "num_trainable_parameters": num_trained,
        "num_parameters": num_total,
        "memory": _memory(planned, arguments.device),
        "data": {
            **inputs.data.stats.to_dict(),
            "findings": [finding.summary() for finding in inputs.data.findings],
            "unchecked": list(inputs.data.unchecked),
        },
    }
    if arguments.should_save:
        trainer.save_state()
        _draw(state.log_history, run / PICTURE_NAME)
        with trainer.accelerator.autocast():
            run_selftest(
                trainer.adapted_model(),
                inputs.tokenizer,
                run,
                inputs.data.first_conversation,
                inputs.data.train[0]["input_ids"].tolist(),
                trainer.initial_weights,
            )
        write_results(results, run / RESULTS_NAME)  # their presence marks the run as finished
        _report(run)
    upload(trainer)
    best = state.best_model_checkpoint
    return TrainResult(
        output_dir=run,
        num_steps=state.global_step,
        first_loss=results["first_loss"],
        last_loss=results["last_loss"],
        metrics=results,
        best_checkpoint=Path(best) if best else None,
        max_steps=state.max_steps,
        best_step=state.best_global_step if best and arguments.load_best_model_at_end else None,
    )


def _memory(planned: PlannedRun, device: torch.device) -> dict[str, float | None]:
    """Memory as planned and as measured, in GiB: of the GPU, or on the CPU, of the process."""
    is_planned = device.type == "cuda"
    sizes = {
        "planned_gib": planned.chosen.memory.needed if is_planned else None,
        "peak_gib": peak_bytes(device),
        "free_gib": planned.known.free_bytes if is_planned else None,
    }
    return {name: None if size is None else round(size / GIB, 3) for name, size in sizes.items()}


def _report(run: Path) -> None:
    """Writes the report. A failure only warns: it must not fail the run."""
    try:
        write_report([run])
    except Exception as error:
        _logger.warning("the report of %s could not be written, everything else is there: %s", run, error)


def _draw(history: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Plots the losses. A failure (of matplotlib's fonts, cache or settings) only warns: it must not fail the run."""
    try:
        draw_losses(history, file)
    except Exception as error:
        _logger.warning("%s could not be drawn, everything else is there: %s", file, error)
