"""A table that stays in the host's memory, whose rows a GPU fetches itself.

A lookup wants a few rows of a large table, so that what crosses the bus is small: 8 KB a token at ChatGLM3-6B's shape,
where the table has 533 MB.
"""

import weakref
from contextlib import suppress
from functools import cached_property

import torch
from torch import Tensor

from glmtune.ops import reference
from glmtune.ops.back_end import back_end


class HostTable:
    """Rows in the host's memory, made known to CUDA when they are first asked for from there.

    Args:
        values_VH: The rows, [V, H], on the CPU.

    Attributes:
        values_VH: As given.
    """

    def __init__(self, values_VH: Tensor) -> None:
        self.values_VH = values_VH.detach().contiguous()

    def __reduce__(self) -> tuple[type["HostTable"], tuple[Tensor]]:
        return HostTable, (self.values_VH,)  # a copy's memory has yet to be made known

    def rows(self, ids: Tensor) -> Tensor:
        """Looks rows up.

        Args:
            ids: Which, any shape, integer, on any device.

        Returns:
            The rows, [..., H], on that device.
        """
        narrow = ids.flatten().int()
        ops = back_end(narrow) if ids.is_cuda and self.is_mapped else reference
        return ops.gather_rows(self.values_VH, narrow).unflatten(0, ids.shape)

    @cached_property
    def is_mapped(self) -> bool:
        """Whether kernels can read the rows in place; otherwise the host copies them, and waits for that."""
        runtime = torch.cuda.cudart()
        if int(runtime.cudaHostRegister(self.values_VH.data_ptr(), self.values_VH.nbytes, 0)) != 0:
            # The failure would be reported by whatever kernel comes next; this one takes it.
            with suppress(RuntimeError):
                torch.zeros(1, device="cuda")
            return False
        # The values go with the finalizer, so that they are still there when it runs.
        weakref.finalize(self, _unmap, self.values_VH)
        return True


def _unmap(values: Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(values.data_ptr())
