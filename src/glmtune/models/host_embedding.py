"""A token embedding in host memory, whose rows the GPU reads directly.

A lookup reads few rows of a large table, so little crosses the bus: 8 KB per token at ChatGLM3-6B's shape, where the
table has 533 MB.
"""

import weakref
from contextlib import suppress
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from glmtune.ops import reference
from glmtune.ops.back_end import back_end


class HostEmbedding(nn.Module):
    """A frozen token embedding that stays in host memory when the model is moved to a device.

    Its weight is not a parameter, so that the model's device is that of its layers. It is registered with CUDA at the
    first lookup from a GPU.

    Args:
        weight: The embedding matrix, [V, H]; copied to the CPU if it is elsewhere.

    Attributes:
        weight: The embedding matrix, [V, H], on the CPU.
    """

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.shape
        self.weight = weight.detach().cpu().contiguous()

    def __getstate__(self) -> dict[str, Any]:
        """The state of a copy, whose memory is not registered yet."""
        return {name: value for name, value in vars(self).items() if name != "is_mapped"}

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embeds ids of any shape, on their device."""
        ids = input_ids.flatten().int()
        ops = back_end(ids) if ids.is_cuda and self.is_mapped else reference
        return ops.gather_rows(self.weight, ids).unflatten(0, input_ids.shape)

    @cached_property
    def is_mapped(self) -> bool:
        """Whether kernels can read the rows in place; otherwise the host copies them synchronously."""
        runtime = torch.cuda.cudart()
        if int(runtime.cudaHostRegister(self.weight.data_ptr(), self.weight.nbytes, 0)) != 0:
            # CUDA would report the failure at the next kernel launch; this launch clears it.
            with suppress(RuntimeError):
                torch.zeros(1, device="cuda")
            return False
        # The finalizer holds a reference to the weight, so that it still exists when it runs.
        weakref.finalize(self, _unmap, self.weight)
        return True


def _unmap(weight: Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(weight.data_ptr())
