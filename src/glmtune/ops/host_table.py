"""A table in host memory whose rows the GPU reads directly.

A lookup reads few rows of a large table, so little crosses the bus: 8 KB per token at ChatGLM3-6B's shape, where the
table has 533 MB.
"""

import weakref
from contextlib import suppress
from functools import cached_property

import torch
from torch import Tensor

from glmtune.ops import reference
from glmtune.ops.back_end import back_end


class HostTable:
    """Rows in host memory, registered with CUDA at the first lookup from a GPU.

    Args:
        values_VH: The rows, [V, H], on the CPU.

    Attributes:
        values_VH: As given.
    """

    def __init__(self, values_VH: Tensor) -> None:
        self.values_VH = values_VH.detach().contiguous()

    def __reduce__(self) -> tuple[type["HostTable"], tuple[Tensor]]:
        return HostTable, (self.values_VH,)  # the copy's memory is not registered yet

    def rows(self, ids: Tensor) -> Tensor:
        """Looks up rows.

        Args:
            ids: Row indices, any shape, integer, on any device.

        Returns:
            The rows, [..., H], on the device of `ids`.
        """
        narrow = ids.flatten().int()
        ops = back_end(narrow) if ids.is_cuda and self.is_mapped else reference
        return ops.gather_rows(self.values_VH, narrow).unflatten(0, ids.shape)

    @cached_property
    def is_mapped(self) -> bool:
        """Whether kernels can read the rows in place; otherwise the host copies them synchronously."""
        runtime = torch.cuda.cudart()
        if int(runtime.cudaHostRegister(self.values_VH.data_ptr(), self.values_VH.nbytes, 0)) != 0:
            # CUDA would report the failure at the next kernel launch; this launch clears it.
            with suppress(RuntimeError):
                torch.zeros(1, device="cuda")
            return False
        # The finalizer holds a reference to the values, so that they still exist when it runs.
        weakref.finalize(self, _unmap, self.values_VH)
        return True


def _unmap(values: Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(values.data_ptr())
