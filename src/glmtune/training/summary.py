"""What a run says of itself at its start and at its end."""

import shlex
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from glmtune.errors import show_text
from glmtune.language.plurals import count
from glmtune.planning.planned import PlannedRun
from glmtune.report.write import PAGE_NAME
from glmtune.training.finish import TrainResult
from glmtune.training.inputs import RunInputs
from glmtune.training.report import PICTURE_NAME

_LONGEST_SYSTEM = 100


def opening_lines(inputs: RunInputs, planned: PlannedRun) -> list[str]:
    """Prompt and settings of a run that is about to begin.

    Args:
        inputs: The inputs of the run.
        planned: Its plan.
    """
    arguments, lora = inputs.arguments, planned.config.lora
    samples_a_step = arguments.per_device_train_batch_size * arguments.world_size  # a batch is an optimiser step
    system = show_text(planned.config.prompt.system or "none", _LONGEST_SYSTEM)
    return [
        f"prompt: {planned.config.prompt.template}; system prompt: {system}",
        f"settings: {count(planned.num_steps, 'steps')} of up to {count(samples_a_step, 'samples')}, "
        f"learning rate {arguments.learning_rate:g}, {_lora(lora)}, {str(inputs.dtype).removeprefix('torch.')} on "
        f"{arguments.device.type}",
    ]


def _lora(lora: Mapping[str, Any]) -> str:
    targets = lora.get("target_modules")
    names = targets if isinstance(targets, str) else ", ".join(sorted(targets or ()))
    return f"LoRA r={lora.get('r')} alpha={lora.get('lora_alpha')} on {names or 'all-linear'}"


def closing_lines(result: TrainResult) -> list[str]:
    """How a run ended, and the commands that use its result."""
    run, metrics = result.output_dir, result.metrics
    lines = [f"Done: {run}", _steps(result)]
    if result.best_step is not None:
        kept = f"the run folder holds the best adapter, that of step {result.best_step}"
        if result.num_steps < result.max_steps:
            lines.append(f"stopped early after step {result.num_steps} of {result.max_steps}")
        lines.append(kept)
    if result.first_loss is not None and result.last_loss is not None:
        is_one = result.first_loss == result.last_loss  # a short run logs its loss once
        lines.append(
            f"loss: {result.last_loss:.4f}" if is_one else f"loss: {result.first_loss:.4f} -> {result.last_loss:.4f}"
        )
    if "eval_loss" in metrics:
        lines.append(f"evaluation loss: {metrics['eval_loss']:.4f}, at best {metrics['best_eval_loss']:.4f}")
    if (run / PICTURE_NAME).is_file():
        lines.append(f"loss curve: {run / PICTURE_NAME}")
    if (run / PAGE_NAME).is_file():
        lines.append(f"report: {run / PAGE_NAME}")
    return [*lines, "next:", *(f"  {command}" for command in _next_commands(run))]


def _steps(result: TrainResult) -> str:
    seconds = result.metrics.get("train_runtime")
    if seconds is None:  # all steps had been taken before
        return f"trained: {count(result.num_steps, 'steps')}"
    return f"trained: {count(result.num_steps, 'steps')} in {timedelta(seconds=round(seconds))}"


def _next_commands(run: Path) -> list[str]:
    name = shlex.quote(str(run))
    merged = shlex.quote(f"{run}-merged")
    return [
        f"glmtune chat {name}",
        f"glmtune generate {name} --input questions.json --output replies.jsonl",
        f"glmtune merge {name} --output {merged}",
    ]
