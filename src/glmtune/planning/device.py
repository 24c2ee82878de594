"""The properties of a device that planning needs."""

from dataclasses import dataclass

import torch
from accelerate.utils import gather_object

from glmtune.loading.devices import free_device_bytes, is_out_of_memory
from glmtune.planning.speed import DeviceSpeed


@dataclass(frozen=True)
class KnownDevice:
    """The properties of the device that a run is planned for.

    Attributes:
        device: The device; None for a card that is not installed.
        dtype: The dtype that the base computes in.
        free_bytes: Memory available to the run; None for no limit.
        speed: Its speed.
        num_processes: The number of such devices that share the samples of an epoch.
        label: What to call it; None for its own name.
        total_gib: Its memory, where a card is planned for by its size; None for what is free here.
        capability: CUDA compute capability of a card that is not installed; None if unknown.
        possible_speeds: Those of all cards that it may be, where it may be one of several.
    """

    device: torch.device | None
    dtype: torch.dtype
    free_bytes: float | None
    speed: DeviceSpeed
    num_processes: int = 1
    label: str | None = None
    total_gib: float | None = None
    capability: tuple[int, int] | None = None
    possible_speeds: tuple[DeviceSpeed, ...] = ()

    @property
    def name(self) -> str:
        """In words."""
        if self.label is not None:
            return self.label
        if self.device is None or self.device.type != "cuda":
            return f"a card of {self.speed.flops / 1e12:g} TFLOP/s"
        return torch.cuda.get_device_name(self.device)

    @classmethod
    def measure(cls, device: torch.device, dtype: torch.dtype, num_processes: int) -> "KnownDevice":
        """Measures the devices; all processes get the same result, so that they choose the same plan.

        Args:
            device: The device of this process.
            dtype: The dtype that the base computes in.
            num_processes: The number of processes, each with its own device.
        """
        if device.type != "cuda":
            return cls(device, dtype, None, DeviceSpeed.assumed(), num_processes)
        free, speed = _measure(device, dtype)
        if num_processes > 1:
            everywhere = gather_object([(free, speed)])
            free, speed = min(each for each, _ in everywhere), everywhere[0][1]
        return cls(device, dtype, free, speed, num_processes)


def _measure(device: torch.device, dtype: torch.dtype) -> tuple[int, DeviceSpeed]:
    """The free memory of a device and its speed; 0 bytes free if memory is too small even for measuring."""
    try:
        return free_device_bytes(device), DeviceSpeed.measure(device, dtype)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return 0, DeviceSpeed.assumed()
