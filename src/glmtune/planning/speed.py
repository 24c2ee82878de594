"""How fast a device is."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

# Where there is nothing to go by: on the CPU, which does not choose by it, and on a GPU too full to be measured.
ASSUMED_TFLOPS = 50.0
# How much longer than estimated whole runs take, at least and at most: on cards that were measured
# (results/devices.csv, plan_choice.csv and memory_cards.csv), on others, and on those without a flash attention kernel.
MEASURED, ESTIMATED, WITHOUT_FLASH = (0.85, 1.5), (0.6, 2.2), (0.6, 4.0)
# The first steps compile kernels and record graphs: 35 layouts of 0.1 s in the tutorial's recipe.
_START_S = 5.0


class DeviceSpeed(NamedTuple):
    """How fast a device is.

    Attributes:
        flops: Floating-point operations a second of matrix products in the compute dtype.
        bytes_per_s: Bytes a second, read and written.
        launch_s: Seconds that the host takes to launch a plain kernel.
        time_range: The least and the largest factor on a time that is estimated from these.
    """

    flops: float
    bytes_per_s: float
    launch_s: float
    time_range: tuple[float, float] = MEASURED

    @classmethod
    def measure(cls, device: torch.device, dtype: torch.dtype) -> "DeviceSpeed":
        """Measures a GPU, in a fraction of a second, with products of the size of a small pass."""
        size = 1024
        x = torch.randn(size, 4096, device=device).to(dtype)
        weight = torch.randn(4096, 4096, device=device).to(dtype)
        tiny = torch.zeros(1, device=device)
        product_s = _seconds(lambda: x @ weight, device, repeats=8)
        copy_s = _seconds(weight.clone, device, repeats=8)
        launch_s = _seconds(lambda: tiny.add_(1), device, repeats=200)
        return cls(2 * size * 4096 * 4096 / product_s, 2 * 4096 * 4096 * dtype.itemsize / copy_s, launch_s)

    @classmethod
    def assumed(cls, tflops: float = ASSUMED_TFLOPS) -> "DeviceSpeed":
        """For a card of which only the rate is known: memory and host speeds are typical of such a card."""
        return cls(tflops * 1e12, tflops * 1e10, 1e-5, ESTIMATED)


def seconds_within(speeds: Sequence[DeviceSpeed], at_speed: Callable[[DeviceSpeed], float]) -> tuple[float, float]:
    """The least and the most time of a run on a device that may be one of several.

    Args:
        speeds: Those that it may have.
        at_speed: The estimated time of its steps at a speed.
    """
    ranges = [(at_speed(speed), *speed.time_range) for speed in speeds]
    return min(least * time for time, least, _ in ranges), max(most * time for time, _, most in ranges) + _START_S


def _seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    for _ in range(2):
        run()
    torch.cuda.synchronize(device)
    began_s = time.perf_counter()
    for _ in range(repeats):
        run()
    torch.cuda.synchronize(device)
    return (time.perf_counter() - began_s) / repeats
