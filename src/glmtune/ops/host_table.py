"""A table that stays in the host's memory, whose rows a GPU fetches itself.

A lookup wants a few rows of a large table, so that what crosses the bus is small: 8 KB a token at ChatGLM3-6B's shape,
where the table has 533 MB.
"""

import weakref

import torch
from torch import Tensor

from glmtune.ops import reference
from glmtune.ops.back_end import back_end


class HostTable:
    """Rows in the host's memory, made known to CUDA where there is one, so that kernels can read them in place.

    Args:
        values_VH: The rows, [V, H], on the CPU.

    Attributes:
        values_VH: As given.
        is_mapped: Whether kernels can read it; otherwise the host copies the rows, and waits for that.
    """

    def __init__(self, values_VH: Tensor) -> None:
        self.values_VH = values_VH.detach().contiguous()
        self.is_mapped = torch.cuda.is_available() and self._map()

    def rows(self, ids: Tensor) -> Tensor:
        """Looks rows up.

        Args:
            ids: Which, any shape, integer, on any device.

        Returns:
            The rows, [..., H], on that device.
        """
        narrow = ids.flatten().int()
        ops = back_end(narrow) if self.is_mapped else reference
        return ops.gather_rows(self.values_VH, narrow).unflatten(0, ids.shape)

    def _map(self) -> bool:
        runtime = torch.cuda.cudart()
        address, num_bytes = self.values_VH.data_ptr(), self.values_VH.nbytes
        if int(runtime.cudaHostRegister(address, num_bytes, 0)) != 0:
            return False
        # The values go with the finalizer, so that they are still there when it runs.
        weakref.finalize(self, _unmap, self.values_VH)
        return True


def _unmap(values: Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(values.data_ptr())
