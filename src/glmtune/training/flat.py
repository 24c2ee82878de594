"""All trained parameters in one buffer: one kernel each for optimiser step, norm and clipping."""

from collections.abc import Sequence

import torch
from torch import nn


class FlatParameters:
    """Moves parameters into one buffer and their gradients into another; they stay the same objects, as views of these.

    Args:
        parameters: Parameters of one dtype on one device; at least one.

    Attributes:
        flat: The buffer as one parameter, for an optimiser; its gradient is the buffer of gradients.
        parameters: As given.
        gradients: Views of the buffer of gradients, one per parameter, in its shape.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.flat = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in self.parameters]))
        self._gradient = torch.zeros_like(self.flat)
        sizes = [parameter.numel() for parameter in self.parameters]
        shapes = [parameter.shape for parameter in self.parameters]
        self._values = [part.view(shape) for part, shape in zip(self.flat.detach().split(sizes), shapes, strict=True)]
        self.gradients = [part.view(shape) for part, shape in zip(self._gradient.split(sizes), shapes, strict=True)]
        self._attach()

    def begin_step(self) -> None:
        """Sets all gradients to zero, and makes them views of the buffer again if `zero_grad` has detached them."""
        self._attach()
        self._gradient.zero_()
        self.flat.grad = self._gradient
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient

    def copy_from_first_process(self) -> None:
        """Broadcasts the parameters of the first process to all others."""
        if _has_company():
            torch.distributed.broadcast(self.flat.detach(), src=0)

    def sum_over_processes(self) -> None:
        """Sums the gradients over all processes, in a single all-reduce."""
        if _has_company():
            torch.distributed.all_reduce(self._gradient)

    def _attach(self) -> None:
        """Moves parameters back into the buffer if they were reallocated, as accelerate does on the CPU."""
        for parameter, values in zip(self.parameters, self._values, strict=True):
            if parameter.data_ptr() != values.data_ptr():
                values.copy_(parameter.detach())
                parameter.data = values


def _has_company() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
