"""Plans a run for `glmtune plan`: for the local GPU, or for a card that is not installed."""

import torch

from glmtune.config import RunConfig, embedded_base, validate_names
from glmtune.data.run_data import load_run_data
from glmtune.data.stats import DataStats
from glmtune.loading.bases import load_tokenizer
from glmtune.loading.devices import GIB, default_device, free_device_bytes, resolve_dtype
from glmtune.planning.device import KnownDevice
from glmtune.planning.plan import plan_run
from glmtune.planning.planned import CONTEXT_GIB, PlannedRun
from glmtune.planning.resume import find_earlier_run
from glmtune.planning.speed import DeviceSpeed
from glmtune.planning.start import resolve_start


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
    config = validate_names(config)
    is_resumed = config.train.get("resume_from_checkpoint") not in (None, False)
    earlier = find_earlier_run(config.train) if is_resumed else None  # a new run ignores what is in its folder
    tokenizer = load_tokenizer(config.model.path or embedded_base())
    config = resolve_start(config, tokenizer, earlier)
    data = load_run_data(config, tokenizer, int(config.train.get("seed", 42)))
    known = _known_device(config, gpu_gib, tflops)
    return data.stats, plan_run(config, data.train, known, None if earlier is None else earlier.config)


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
