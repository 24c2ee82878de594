"""The processes that a launcher such as torchrun starts, one per device."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from torch import distributed

from glmtune.compat import launcher_asks_for
from glmtune.config import WHY_NOT_SHARDED
from glmtune.errors import ConfigError, TrainingError

_DEFAULT_TIMEOUT_S = 1800  # that of `TrainingArguments.ddp_timeout`
# Messages of gloo and NCCL about a process that has ended.
_OTHER_IS_GONE = ("Connection closed by peer", "Connection reset by peer", "remote process exited")


def join_processes(train: Mapping[str, Any]) -> PartialState:
    """Joins a launcher's process group and binds this process's GPU to it.

    Args:
        train: The `train` section of the configuration.

    Returns:
        The state of the group; of this process alone without a launcher.

    Raises:
        ConfigError: There are more processes than GPUs, the launcher is configured to shard the model, or there is no
            such back end.
        TrainingError: Not all processes joined in time.
    """
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if launcher_asks_for(name):
            raise ConfigError(
                f"accelerate launch has {name} switched on (ACCELERATE_USE_{name}), which {WHY_NOT_SHARDED}, or switch "
                "it off with accelerate config"
            )
    group: dict[str, Any] = {}
    timeout_s = float(train.get("ddp_timeout") or _DEFAULT_TIMEOUT_S)
    if "LOCAL_RANK" in os.environ and not distributed.is_initialized():
        group = {"backend": train.get("ddp_backend"), "timeout": timedelta(seconds=timeout_s)}
    try:
        if group and torch.cuda.is_available() and not train.get("use_cpu") and not launcher_asks_for("CPU"):
            _join_with_gpu(int(os.environ["LOCAL_RANK"]), group)
        return PartialState(cpu=bool(train.get("use_cpu")), **group)
    except ValueError as error:
        raise ConfigError(f"train.ddp_backend: {error}") from error
    except distributed.DistStoreError as error:
        raise TrainingError(
            f"the processes of this run did not all join within {timeout_s:g} s (train.ddp_timeout): {error}"
        ) from error


def _join_with_gpu(local_rank: int, group: dict[str, Any]) -> None:
    """Joins the group with a GPU named; accelerate would not, and torch would warn of its guess at every barrier."""
    num_gpus = torch.cuda.device_count()
    if local_rank >= num_gpus:
        raise ConfigError(
            f"more processes than GPUs: there are {num_gpus} here; use torchrun --nproc_per_node={num_gpus}"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    distributed.init_process_group(**group, device_id=device)


def leave_processes() -> None:
    """Leaves the process group, if there is one; otherwise its threads would still run at interpreter exit."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def ending_with_the_others() -> Iterator[None]:
    """Ends this process with a clear message if another process of the run has ended.

    Raises:
        TrainingError: In place of the communication error.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in _OTHER_IS_GONE):
            raise
        raise TrainingError("another process of this run has ended; its own message says why") from error


def is_first_process() -> bool:
    """Whether this process has rank 0, and so reports for all."""
    return int(os.environ.get("RANK", "0")) == 0
