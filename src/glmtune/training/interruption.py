"""Interrupting a run: it saves a checkpoint at the end of the step and stops."""

import os
import signal
import time
from contextlib import AbstractContextManager, suppress
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from glmtune.language import localise
from glmtune.signals import handling
from glmtune.training.processes import SharedFlag

_STOPPING = "\nStopping after this step, once everything is saved. Press Ctrl-C again to abort at once.\n"

# A launcher such as torchrun forwards Ctrl-C to processes that have already received it from the terminal.
_SAME_PRESS_S = 1.0


class Interruption(TrainerCallback):
    """On Ctrl-C, SIGTERM or SIGHUP, saves a checkpoint at the end of the step and stops.

    SIGTERM comes from schedulers, SIGHUP from a closed terminal. A second Ctrl-C aborts at once.

    Attributes:
        happened: Whether a signal has stopped training.
    """

    def __init__(self) -> None:
        self.happened = False
        self._pressed_s: float | None = None
        self._flag: SharedFlag | None = None
        self._process = os.getpid()
        self._stopping = localise(_STOPPING).encode()  # in advance: a signal handler should not read files

    def listening(self) -> AbstractContextManager[None]:
        """Handles the signals while training; only in the main thread, since Python allows it nowhere else."""
        return handling(self._on_signal)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Requests a checkpoint and the end of training, on all processes at the same step."""
        is_requested = self._pressed_s is not None
        if args.world_size > 1 and torch.distributed.is_initialized():
            self._flag = self._flag or SharedFlag(args.device)
            is_requested = self._flag.share(is_requested)
        # After the last step training ends normally, with evaluation and results.
        if is_requested and state.global_step < state.max_steps:
            self.happened = True
            control.should_log = state.global_step > 0
            control.should_save = True
            control.should_evaluate = False
            control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Skips logging, evaluation and another checkpoint when the epoch was interrupted."""
        if self.happened:
            control.should_log = control.should_save = control.should_evaluate = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a data loader's worker, which ends with its parent
        now_s = time.monotonic()
        if self._pressed_s is None:
            self._pressed_s = now_s
            # Not through rich: the interrupted code may hold its lock.
            with suppress(OSError):  # standard error may be closed
                os.write(2, self._stopping)
        elif number == signal.SIGINT and now_s - self._pressed_s > _SAME_PRESS_S:
            raise KeyboardInterrupt
