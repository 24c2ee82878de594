"""RMSNorm as a module."""

import torch
from torch import Tensor, nn

from glmtune.ops import rms_norm


class RMSNorm(nn.Module):
    """`ops.rms_norm` with its scale.

    Args:
        hidden_size: Channels, H.
        eps: Added to the mean square.
    """

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalises [..., H], keeping shape and dtype."""
        return rms_norm(x, self.weight, self.eps)
