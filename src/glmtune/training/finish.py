"""The end of a run: writes adapter and plot, runs the self-test on what was written, then writes the results."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.adapters.lora import TrainableSummary
from glmtune.adapters.run_folder import RESULTS_NAME
from glmtune.training.hub_upload import upload
from glmtune.training.inputs import RunInputs
from glmtune.training.lora_trainer import LoraTrainer
from glmtune.training.report import PICTURE_NAME, draw_losses, write_results
from glmtune.training.selftest import SelfTestReport, run_selftest

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
        trainable: How many parameters were trained.
        best_checkpoint: The checkpoint with the best evaluation, if it was tracked.
        max_steps: Steps that the run was to have; more than `num_steps` where it stopped early.
        best_step: The step whose adapter the run folder holds, where that is the best rather than the last.
        selftest: The report of the self-test; None on processes other than the first.
    """

    output_dir: Path
    num_steps: int
    first_loss: float | None
    last_loss: float | None
    metrics: Mapping[str, Any]
    trainable: TrainableSummary
    best_checkpoint: Path | None
    selftest: SelfTestReport | None
    max_steps: int
    best_step: int | None


def finish_run(
    trainer: LoraTrainer, inputs: RunInputs, trainable: TrainableSummary, metrics: Mapping[str, Any]
) -> TrainResult:
    """Saves the adapter, runs the self-test, and writes the results.

    Args:
        trainer: The trainer, after its last step.
        inputs: The inputs of the run.
        trainable: How many parameters were trained.
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
    results = {
        **metrics,
        "epoch": state.epoch,
        "num_steps": state.global_step,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        **({"eval_loss": evaluations[-1], "best_eval_loss": min(evaluations)} if evaluations else {}),
        "num_trainable_parameters": trainable.num_trainable,
        "num_parameters": trainable.num_total,
        "data": inputs.data.stats.to_dict(),
    }
    selftest = None
    if arguments.should_save:
        trainer.save_state()
        _draw(state.log_history, run / PICTURE_NAME)
        with trainer.accelerator.autocast():
            selftest = run_selftest(
                trainer.adapted_model(), inputs.tokenizer, run, inputs.data.sample, trainer.initial_weights
            )
        write_results(results, run / RESULTS_NAME)  # last: their presence marks the run as finished
    upload(trainer)
    best = state.best_model_checkpoint
    return TrainResult(
        output_dir=run,
        num_steps=state.global_step,
        first_loss=results["first_loss"],
        last_loss=results["last_loss"],
        metrics=results,
        trainable=trainable,
        best_checkpoint=Path(best) if best else None,
        selftest=selftest,
        max_steps=state.max_steps,
        best_step=state.best_global_step if best and arguments.load_best_model_at_end else None,
    )


def _draw(history: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Plots the losses. A failure (of matplotlib's fonts, cache or settings) only warns: it must not fail the run."""
    try:
        draw_losses(history, file)
    except Exception as error:
        _logger.warning("%s could not be drawn, everything else is there: %s", file, error)
