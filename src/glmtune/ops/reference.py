"""Every op in plain torch: the specification, and the version that runs on any device.

Legend of dimension suffixes: B batch, T tokens, N heads, D head size, R rotated part of a head, H hidden size.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square layer normalisation with a scale.

    The mean square, the division and the scaling are computed in fp32 (fp64 for fp64 inputs) and rounded once.

    Args:
        x: Input, [..., H], any floating dtype.
        weight: Scale, [H].
        eps: Added to the mean square.

    Returns:
        Normalised input, the shape and dtype of `x`.

    Source: Zhang and Sennrich 2019, arXiv 1910.07467; rounding as in the official ChatGLM3 implementation.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    inverse_rms = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * inverse_rms * weight.to(wide.dtype)).to(x.dtype)


def rotary_cos_sin(position_ids_BT: Tensor, rotary_dim: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary position embedding.

    Args:
        position_ids_BT: Positions, [B, T], integer.
        rotary_dim: How many leading channels of a head are rotated; even.
        base: The wavelength base, 10000 x `rope_ratio`.
        dtype: The dtype to return; angles are computed in fp32.

    Returns:
        Cosines and sines, each [B, T, rotary_dim / 2].

    Source: Su et al. 2021, arXiv 2104.09864.
    """
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=position_ids_BT.device) / rotary_dim
    angles = position_ids_BT.float().unsqueeze(-1) * (1.0 / base**exponents)  # rounded as officially, for far positions
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rotary(x_BTND: Tensor, cos_BTr: Tensor, sin_BTr: Tensor) -> Tensor:
    """Rotates neighbouring pairs of the leading channels of each head; the other channels pass.

    Args:
        x_BTND: Queries or keys, [B, T, N, D].
        cos_BTr: Cosines, [B, T, R / 2] with R <= D the number of rotated channels.
        sin_BTr: Sines, likewise.

    Returns:
        The rotated input, the shape and dtype of `x_BTND`.

    Source: Su et al. 2021, arXiv 2104.09864; ChatGLM rotates the first half of each head, in interleaved pairs.
    """
    rotary_dim = 2 * cos_BTr.shape[-1]
    rotated, passed = x_BTND[..., :rotary_dim], x_BTND[..., rotary_dim:]
    even, odd = rotated.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos_BTr.unsqueeze(2), sin_BTr.unsqueeze(2)
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
    return torch.cat((turned.to(x_BTND.dtype), passed), dim=-1)  # under autocast the cosines are wider than x


def swiglu(gate_up: Tensor) -> Tensor:
    """The gated activation: `silu(gate) * up`.

    Args:
        gate_up: Gate and up projections side by side, [..., 2 x F].

    Returns:
        The activation, [..., F], same dtype.

    Source: Shazeer 2020, arXiv 2002.05202.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
