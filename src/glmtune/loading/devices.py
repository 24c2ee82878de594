"""Devices: names, types that they compute in, and what memory is free."""

import os
import sys
from typing import Any, Literal

import torch

from glmtune.errors import ConfigError

GIB = 2**30


def free_device_bytes(device: torch.device) -> int:
    """Bytes of a CUDA device free for this process, within its memory fraction."""
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    allowed = int(torch.cuda.get_per_process_memory_fraction(device) * total) - reserved
    return min(free, allowed) + reserved - torch.cuda.memory_allocated(device)


def peak_bytes(device: torch.device) -> int | None:
    """The most bytes that tensors had at once on a CUDA device; on another, that this process had; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if os.name != "posix":
        return None
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size  # macOS counts bytes, the others KiB


Dtype = Literal["auto", "float32", "bfloat16", "float16"]


DeviceMap = str | int | torch.device | dict[str, Any] | None


def one_device(device_map: DeviceMap) -> torch.device | None:
    """The device that a device map names; None where it spreads a model over several."""
    if isinstance(device_map, dict):
        if list(device_map) != [""]:
            return None
        device_map = device_map[""]
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return None
    try:
        place: Any = default_device() if device_map is None else device_map
        device = torch.device(place)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(f"device_map={device_map!r}: there is no such device here ({error})") from error
    return device


def default_device() -> str:
    """`cuda:0`, or another accelerator's name, or `cpu`."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return "cpu"
    return f"cuda:{torch.cuda.current_device()}" if accelerator.type == "cuda" else str(accelerator)


def resolve_dtype(dtype: Dtype, device_map: DeviceMap = None) -> torch.dtype:
    """The torch type that a dtype setting means on the device at hand.

    Args:
        dtype: The setting.
        device_map: Where the model goes; None for the default device.
    """
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    if not torch.cuda.is_available() or device_map == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, says that memory ran out: torch's own, CUDA's or cuBLAS's."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if isinstance(error, RuntimeError):
        return "out of memory" in str(error) or "CUBLAS_STATUS_ALLOC_FAILED" in str(error)
    return isinstance(error.__cause__, RuntimeError) and is_out_of_memory(error.__cause__)
