"""The end of a run: adapter, picture and results are written, and the self-test looks at them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.adapters.lora import TrainableSummary
from glmtune.adapters.run_folder import RESULTS_NAME
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
        num_steps: Optimiser steps taken in all.
        first_loss: The first loss that was logged; None if there was none.
        last_loss: The last.
        metrics: What `all_results.json` holds.
        trainable: How many parameters were trained.
        best_checkpoint: The checkpoint that evaluated best, where that was looked for.
        selftest: What the self-test saw; None on processes other than the first.
    """

    output_dir: Path
    num_steps: int
    first_loss: float | None
    last_loss: float | None
    metrics: Mapping[str, Any]
    trainable: TrainableSummary
    best_checkpoint: Path | None
    selftest: SelfTestReport | None


def finish_run(
    trainer: LoraTrainer, inputs: RunInputs, trainable: TrainableSummary, metrics: Mapping[str, Any]
) -> TrainResult:
    """Saves the adapter and the reports, and runs the self-test.

    Args:
        trainer: The trainer, after its last step.
        inputs: What the run was made from.
        trainable: How many parameters were trained.
        metrics: Trainer's own, of the steps that it took.

    Raises:
        TrainingError: The self-test failed.
        StorageError: Something cannot be written.
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
        write_results(results, run / RESULTS_NAME)  # a run that has these is finished
        with trainer.accelerator.autocast():
            selftest = run_selftest(
                trainer.adapted_model(), inputs.tokenizer, run, inputs.data.sample, trainer.initial_weights
            )
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
    )


def _draw(history: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draws the picture, which is not worth losing a run for: matplotlib's fonts, cache and settings can be broken."""
    try:
        draw_losses(history, file)
    except Exception as error:
        _logger.warning("%s could not be drawn, everything else is there: %s", file, error)
