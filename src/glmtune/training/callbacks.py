"""Callbacks for the progress and the logs of a run."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from glmtune.adapters.checkpoints import evaluations_without_gain
from glmtune.adapters.run_folder import LOG_NAME, SAMPLES_NAME
from glmtune.files import storage_faults, write_text
from glmtune.language import localise
from glmtune.training.resumed_state import find_best_again


class ProgressReport(TrainerCallback):
    """A progress bar with loss, tokens/s and time left; without a terminal, one line per log entry.

    Args:
        console: The console to write to.

    Attributes:
        num_steps: Optimiser steps completed; None before training begins.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._began_s = 0.0
        self._began_at_step = 0
        self.num_steps: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Shows the bar."""
        self._began_s, self._began_at_step = time.monotonic(), state.global_step
        self.num_steps = state.global_step
        if not state.is_world_process_zero or not self._console.is_terminal:
            return
        self._progress = Progress(
            TextColumn(localise("training")),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            TextColumn(localise("left")),
            console=self._console,
        )
        self._task = self._progress.add_task("", total=state.max_steps, completed=state.global_step, numbers="")
        self._progress.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advances the bar."""
        self.num_steps = state.global_step
        if self._progress is not None:
            self._progress.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Shows the latest numbers."""
        if not state.is_world_process_zero or not logs or not ("loss" in logs or "eval_loss" in logs):
            return
        numbers = localise(describe_logs(logs))
        if self._progress is not None and "eval_loss" not in logs:
            self._progress.update(self._task, numbers=numbers)
        elif self._progress is not None:
            self._progress.console.print(f"step {state.global_step}: {numbers}", highlight=False)
        else:
            left = "" if "eval_loss" in logs else f"  {self._time_left(state)} left"
            share = f"{state.global_step / max(state.max_steps, 1):.0%}"
            line = f"step {state.global_step}/{state.max_steps} ({share})  {numbers}{left}"
            self._console.print(line, highlight=False, soft_wrap=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Removes the bar."""
        self.close()

    def close(self) -> None:
        """Removes the bar, however training ended."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _time_left(self, state: TrainerState) -> str:
        num_done = max(state.global_step - self._began_at_step, 1)
        left_s = (time.monotonic() - self._began_s) / num_done * (state.max_steps - state.global_step)
        minutes, seconds = divmod(round(left_s), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def describe_logs(logs: Mapping[str, float]) -> str:
    """The numbers of a log entry that are shown to the user, in a fixed order."""
    shown = (
        ("loss", "loss {:.4f}"),
        ("eval_loss", "evaluation loss {:.4f}"),
        ("eval_rouge-l", "ROUGE-L {:.2f}"),
        ("eval_bleu-4", "BLEU-4 {:.2f}"),
        ("learning_rate", "lr {:.2e}"),
        ("tokens_per_second", "{:,.0f} tokens/s"),
        ("memory_gib", "{:.1f} GiB"),
    )
    return "  ".join(text.format(float(logs[name])) for name, text in shown if name in logs)


class _LogFile(TrainerCallback):
    """Writes `trainer_log.jsonl`, one JSON object per log entry.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self._file = Path(folder) / LOG_NAME
        self._samples = Path(folder) / SAMPLES_NAME

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the file; when a run is resumed, keeps the entries up to its checkpoint.

        Of the answers to evaluation questions, those of later steps are dropped too.
        """
        if not state.is_world_process_zero:
            return
        kept = _lines_up_to(self._file, state.global_step) if state.global_step else []
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._file, "".join(kept))
        if self._samples.is_file():
            write_text(self._samples, "".join(_lines_up_to(self._samples, state.global_step)))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Adds a line."""
        if state.is_world_process_zero and logs:
            entry = plain_numbers({"step": state.global_step, "max_steps": state.max_steps, **logs})
            with storage_faults(self._file), self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _lines_up_to(file: Path, last_step: int) -> list[str]:
    """The lines of a file of JSON objects that are of a step no later than `last_step`; none without a file."""
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    return [f"{line}\n" for line in lines if (step := _step_of(line)) is not None and step <= last_step]


def _step_of(line: str) -> int | None:
    """The step of a log line; None if the line is truncated, as by a crash, or is no log entry."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return step if isinstance(step, int) else None


class _ResumedState(TrainerCallback):
    """Applies the current settings to a state that was read from a checkpoint."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sets the current intervals, and finds the best checkpoint."""
        state.compute_steps(args, state.max_steps)
        find_best_again(state, args.output_dir)


class _ShortRun(TrainerCallback):
    """Logs the last step of a run that is shorter than the interval, which would have no loss otherwise."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Asks for a log entry."""
        if args.logging_strategy == "steps" and state.global_step == state.max_steps < state.logging_steps:
            control.should_log = True


class EarlyStoppingCallback(transformers.EarlyStoppingCallback):  # type: ignore[misc]
    """As in transformers, under whose name its state is saved; a resumed run keeps its count, but not its patience."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restores the number of consecutive evaluations without improvement."""
        super().on_train_begin(args, state, control, **kwargs)
        self.early_stopping_patience_counter = evaluations_without_gain(state.stateful_callbacks)
        # Trainer fails to save a callback's state that the checkpoint did not contain.
        state.stateful_callbacks[type(self).__name__] = self.state()


def plain_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with None in place of floats that JSON cannot express (nan, inf)."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
    }


def make_callbacks(run: str | Path, patience: int | None, progress: ProgressReport) -> list[TrainerCallback]:
    """The callbacks of every run.

    Args:
        run: The run folder.
        patience: Number of evaluations without improvement after which to stop; None to disable early stopping.
        progress: The progress report.
    """
    callbacks: list[TrainerCallback] = [_ResumedState(), _ShortRun(), _LogFile(run), progress]
    if patience is not None:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=patience))
    return callbacks
