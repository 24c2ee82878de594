"""Interrupting a run: it saves a checkpoint at the end of the step and stops."""

import os
import signal
import time
from contextlib import AbstractContextManager, suppress
from types import FrameType
from typing import Any

import torch
from torch import Tensor, distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from glmtune.language import localise
from glmtune.signals import handling

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
        self._flag: _SharedFlag | None = None
        self._stopping = localise(_STOPPING).encode()  # in advance: a signal handler should not read files

    def listening(self) -> AbstractContextManager[None]:
        """Handles the signals while training; only in the main thread, since Python allows it nowhere else."""
        return handling(self._on_signal)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Requests a checkpoint and the end of training, on all processes at the same step."""
        is_requested = self._pressed_s is not None
        if args.world_size > 1 and distributed.is_initialized():
            self._flag = self._flag or _SharedFlag(args.device)
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
        now_s = time.monotonic()
        if self._pressed_s is None:
            self._pressed_s = now_s
            # Not through rich: the interrupted code may hold its lock.
            with suppress(OSError):  # standard error may be closed
                os.write(2, self._stopping)
        elif number == signal.SIGINT and now_s - self._pressed_s > _SAME_PRESS_S:
            raise KeyboardInterrupt


class _SharedFlag:
    """A flag that any process can set and that all processes read at the same step, one step later.

    Reading it in the same step would make the host wait for the device in every step.

    Args:
        device: Where the process group communicates.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._answer: Tensor | None = None
        self._is_there = torch.cuda.Event() if device.type == "cuda" else None

    def share(self, is_set: bool) -> bool:
        """Shares the flag with all processes; returns whether any of them had set it at the previous call."""
        before = self._read()
        flag = torch.full((), int(is_set), device=self._device)
        distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
        self._answer = flag.to("cpu", non_blocking=True)
        if self._is_there is not None:
            self._is_there.record()
        return before

    def _read(self) -> bool:
        if self._answer is None:
            return False
        if self._is_there is not None:
            self._is_there.synchronize()  # it was started a step ago
        return bool(self._answer.item())
