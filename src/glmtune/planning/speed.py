"""How fast a device is."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

# The 16-bit throughput assumed for a card that is not installed.
ASSUMED_TFLOPS = 50.0


class DeviceSpeed(NamedTuple):
    """How fast a device is.

    Attributes:
        flops: Floating-point operations a second of matrix products in the compute dtype.
        bytes_per_s: Bytes a second, read and written.
        launch_s: Seconds that the host takes to launch a plain kernel.
    """

    flops: float
    bytes_per_s: float
    launch_s: float

    @classmethod
    def measure(cls, device: torch.device, dtype: torch.dtype) -> "DeviceSpeed":
        """Measures, in a fraction of a second, products of the size of a small pass."""
        size, repeats = (1024, 8) if device.type == "cuda" else (32, 2)
        x = torch.randn(size, 4096, device=device).to(dtype)
        weight = torch.randn(4096, 4096, device=device).to(dtype)
        tiny = torch.zeros(1, device=device)
        product_s = _seconds(lambda: x @ weight, device, repeats)
        copy_s = _seconds(weight.clone, device, repeats)
        launch_s = _seconds(lambda: tiny.add_(1), device, repeats=200)
        return cls(2 * size * 4096 * 4096 / product_s, 2 * 4096 * 4096 * dtype.itemsize / copy_s, launch_s)

    @classmethod
    def assumed(cls, tflops: float = ASSUMED_TFLOPS) -> "DeviceSpeed":
        """For a card that is not installed: products as given, with memory and host speeds typical of such a card."""
        return cls(tflops * 1e12, tflops * 1e10, 1e-5)


def _seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(2):
        run()
    finish()
    began_s = time.perf_counter()
    for _ in range(repeats):
        run()
    finish()
    return (time.perf_counter() - began_s) / repeats
