"""Plans a run for `glmtune plan`: for the local GPU, or for a card that is not installed."""

import torch

from glmtune.config import RunConfig, validate_names
from glmtune.data.run_data import load_run_data
from glmtune.data.stats import DataStats
from glmtune.loading.devices import GIB, default_device, free_device_bytes, resolve_dtype
from glmtune.planning.device import KnownDevice
from glmtune.planning.plan import plan_run
from glmtune.planning.planned import CONTEXT_GIB, PlannedRun
from glmtune.planning.speed import DeviceSpeed
from glmtune.planning.start import read_start


def plan_for_card(config: RunConfig, gpu_gib: float | None, tflops: float | None) -> tuple[DataStats, PlannedRun]:
    """Plans a run.

    Args:
        config: The configuration.
        gpu_gib: The card's memory in GiB; None for the free memory of the local GPU, or no limit without a GPU.
        tflops: The 16-bit throughput of a card that is not installed, in TFLOP/s.

    Returns:
        Counts of the data, and the plan.

    Raises:
        GlmtuneError: Configuration, data or base are wrong.
    """
    start = read_start(validate_names(config), may_overwrite=True)
    data = load_run_data(start.config, start.tokenizer, int(start.config.train.get("seed", 42)))
    known = _known_device(start.config, gpu_gib, tflops)
    return data.stats, plan_run(start, data.train, known)


def _known_device(config: RunConfig, gpu_gib: float | None, tflops: float | None) -> KnownDevice:
    device = torch.device(default_device())
    here = device if device.type == "cuda" and not config.train.get("use_cpu") else None
    dtype = resolve_dtype(config.model.dtype)
    if here is None and config.model.dtype == "auto":
        dtype = torch.bfloat16
    free = (gpu_gib - CONTEXT_GIB) * GIB if gpu_gib is not None else free_device_bytes(here) if here else None
    if tflops is not None:
        speed = DeviceSpeed.assumed(tflops)
    else:
        speed = DeviceSpeed.assumed() if here is None else DeviceSpeed.measure(here, dtype)
    return KnownDevice(here, dtype, free, speed, is_assumed=tflops is not None)
