"""The processes that a launcher such as torchrun starts, one a device."""

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

_DEFAULT_TIMEOUT_S = 1800  # that of `TrainingArguments.ddp_timeout`


def join_processes(train: Mapping[str, Any]) -> None:
    """Joins the process group of a launcher with this process's GPU bound to it; does nothing without a launcher.

    accelerate would join it without naming the GPU. torch then has to guess which one each process means, warns of that
    at every barrier, and on some machines guesses wrong.

    Args:
        train: The `train` section of the configuration.
    """
    is_on_gpu = torch.cuda.is_available() and not train.get("use_cpu")
    if "LOCAL_RANK" not in os.environ or not is_on_gpu or distributed.is_initialized():
        return
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    distributed.init_process_group(
        backend=train.get("ddp_backend"),
        timeout=timedelta(seconds=float(train.get("ddp_timeout") or _DEFAULT_TIMEOUT_S)),
        device_id=device,
    )


class SharedFlag:
    """A yes or no of any process that all processes learn of at the same step, one step later.

    Learning of it at once would make the host wait for the device in every step.

    Args:
        device: Where the process group communicates.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._answer: Tensor | None = None
        self._is_there = torch.cuda.Event() if device.type == "cuda" else None

    def share(self, is_set: bool) -> bool:
        """Tells the other processes, and returns whether any of them had set the flag at the last call."""
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
            self._is_there.synchronize()  # done a step ago
        return bool(self._answer.item())
