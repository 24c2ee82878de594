"""The ops of the layers, forward and backward.

Legend of dimension suffixes: B batch, T tokens, N heads, D head size, R rotated part of a head, H hidden size.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Mask(NamedTuple):
    """A dropout mask, represented by what generates it rather than by its elements.

    Attributes:
        probability: Share of elements that become 0; the others are divided by the share that is kept.
        seed: Any integer from 0 to below 2^31, [1] int64, on the device, where each replay of a CUDA graph reads it.
        stream: Distinguishes masks of one seed. The same seed, stream, shape and probability give the same mask on
            every back end.
    """

    probability: float
    seed: Tensor
    stream: int


def rms_norm(x: Tensor, weight: Tensor, eps: float, mask: Mask | None = None) -> Tensor:
    """Root-mean-square layer normalisation with a scale.

    The mean square, the division and the scaling are computed in fp32 (fp64 for fp64 inputs) and rounded once.

    Args:
        x: Input, [..., H], any floating dtype.
        weight: Scale, [H].
        eps: Added to the mean square.
        mask: Dropout on the result; None for none.

    Returns:
        Normalised input, the shape and dtype of `x`.

    Source: Zhang and Sennrich 2019, arXiv 1910.07467; rounding as in the official ChatGLM3 implementation.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    inverse_rms = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    normed = (wide * inverse_rms * weight.to(wide.dtype)).to(x.dtype)
    return normed if mask is None else dropout(normed, mask)


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
    angles = position_ids_BT.float().unsqueeze(-1) * (1.0 / base**exponents)  # official rounding, for large positions
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rotary(x_BTND: Tensor, cos_BTr: Tensor, sin_BTr: Tensor) -> Tensor:
    """Rotates neighbouring pairs of the leading channels of each head; the other channels are unchanged.

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


# From here on: the specification of the fused training path, with separate forward and backward functions, without
# autograd. T is rows (tokens of a packed batch, no batch dimension), Q query rows, K gathered keys, G key-value heads.


def rms_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual_grad: Tensor | None,
    masked_grad: Tensor | None = None,
    mask: Mask | None = None,
) -> Tensor:
    """The gradient of `rms_norm` with respect to its input; the scale is frozen.

    Args:
        grad: Gradient of the output, [T, H].
        x: The input, [T, H]; its root mean square is recomputed rather than saved.
        weight: The scale, [H].
        eps: As in the forward pass.
        residual_grad: Gradient of `x` through the residual connection, [T, H], which is added; None for none.
        masked_grad: Gradient of the norm's output after dropout, [T, H], yet to be masked; None, as `mask`, for none.
        mask: The dropout mask.

    Returns:
        The gradient of `x`, its shape and dtype.
    """
    grad = _add_masked(grad, masked_grad, mask)
    wide = _widen(x)
    inverse_rms = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    normed, scaled = wide * inverse_rms, _widen(grad) * weight.to(wide.dtype)
    result = inverse_rms * (scaled - normed * (normed * scaled).mean(dim=-1, keepdim=True))
    return (result if residual_grad is None else result + _widen(residual_grad)).to(x.dtype)


def swiglu_backward(
    grad: Tensor,
    gate_up: Tensor,
    with_output: bool,
    masked_grad: Tensor | None = None,
    mask: Mask | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The gradient of `swiglu`, and its output recomputed.

    Args:
        grad: Gradient of the output, [T, F].
        gate_up: The input, [T, 2 x F].
        with_output: Whether to return the output, which an adapter on the next projection needs.
        masked_grad: Gradient of the output after dropout, [T, F], yet to be masked; None, as `mask`, for none.
        mask: The dropout mask; it is applied to the returned output too.

    Returns:
        The gradient of `gate_up`, and the output, [T, F], or None.
    """
    grad = _add_masked(grad, masked_grad, mask)
    gate, up = _widen(gate_up).chunk(2, dim=-1)
    wide = _widen(grad)
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    gate_grad = wide * up * (sigmoid + silu * (1 - sigmoid))
    output = (silu * up).to(gate_up.dtype) if with_output else None
    if output is not None and mask is not None:
        output = dropout(output, mask)
    return torch.cat((gate_grad, wide * silu), dim=-1).to(gate_up.dtype), output


def rotate_(heads_TND: Tensor, cos_Tr: Tensor, sin_Tr: Tensor, num_rotated: int, inverse: bool = False) -> None:
    """`apply_rotary` in place, on the first `num_rotated` heads; its gradient is the inverse rotation.

    Args:
        heads_TND: Heads, [T, N, D], changed in place; only the channels need be contiguous.
        cos_Tr: Cosines, [T, R / 2].
        sin_Tr: Sines, likewise.
        num_rotated: How many of the heads are rotated.
        inverse: Whether to apply the inverse rotation.
    """
    wanted = heads_TND[:, :num_rotated]
    sin = -sin_Tr if inverse else sin_Tr
    wanted.copy_(apply_rotary(_widen(wanted).unsqueeze(0), cos_Tr.unsqueeze(0), sin.unsqueeze(0))[0])


def dropout(x: Tensor, mask: Mask) -> Tensor:
    """Dropout whose mask is generated from a seed, so that it need not be saved.

    Args:
        x: Input, [T, H].
        mask: The mask.

    Returns:
        The input with elements dropped; same shape and dtype.
    """
    return torch.where(_is_kept(x, mask), _widen(x) / (1 - mask.probability), 0).to(x.dtype)


def dropout_add_(total: Tensor, grad: Tensor, mask: Mask) -> None:
    """Adds the gradient of `dropout` with respect to its input to `total`, in place.

    Args:
        total: The other gradients of the input, [T, H]; changed in place.
        grad: Gradient of the output, [T, H].
        mask: As in the forward pass.
    """
    total.copy_(_add_masked(total, grad, mask))


def _add_masked(grad: Tensor, masked_grad: Tensor | None, mask: Mask | None) -> Tensor:
    if masked_grad is None or mask is None:
        return grad
    return _widen(grad) + dropout(_widen(masked_grad), mask)


def dropout_threshold(probability: float) -> int:
    """The hash value below which `dropout` drops an element."""
    return round(probability * 2**32)


def _is_kept(x: Tensor, mask: Mask) -> Tensor:
    index = torch.arange(x.numel(), device=x.device).view(x.shape)
    seed = hash_uint32(mask.seed + mask.stream * 0x9E3779B9)
    return hash_uint32(index ^ seed) >= dropout_threshold(mask.probability)


def hash_uint32(value: Tensor) -> Tensor:
    """Hashes the lower 32 bits of int64 values; overflow of the products does not affect these bits."""
    value = value & 0xFFFFFFFF
    value = ((value ^ (value >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    value = ((value ^ (value >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return value ^ (value >> 16)


def gather_rows(table_VH: Tensor, ids_T: Tensor) -> Tensor:
    """Looks up rows of a table that may be on another device.

    Args:
        table_VH: The table, [V, H].
        ids_T: Row indices, [T], integer.

    Returns:
        The rows, [T, H], on the device of the ids.
    """
    return table_VH.index_select(0, ids_T.to(table_VH.device)).to(ids_T.device)


def scale_rows(values_NK: Tensor, scales_N: Tensor, output_NK: Tensor) -> None:
    """Dequantises int8 values with row-wise scales; the product is computed in fp32.

    Args:
        values_NK: The quantised values, [N, K], int8.
        scales_N: The scales, [N], fp32.
        output_NK: The output, [N, K], any floating-point dtype.
    """
    torch.mul(values_NK, scales_N.unsqueeze(-1), out=output_NK)


def sum_slots(values_KC: Tensor, order_K: Tensor, offsets_T1: Tensor) -> Tensor:
    """The backward pass of gathering rows: sums over the copies of each row, in fp32.

    Args:
        values_KC: Gradients of the gathered rows, [K, C].
        order_K: Positions in `values_KC`, sorted by the row that they were gathered from.
        offsets_T1: Offsets of each row's copies in `order_K`, [T + 1].

    Returns:
        Gradients of the rows, [T, C], dtype of `values_KC`; zero for rows that were not gathered.
    """
    counts = offsets_T1.diff()
    rows = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts, output_size=len(order_K))
    sums = _widen(values_KC).new_zeros(len(counts), values_KC.shape[1])
    return sums.index_add_(0, rows, _widen(values_KC)[order_K]).to(values_KC.dtype)


def cross_entropy(logits_TV: Tensor, labels_T: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cross entropy of each row, and its gradient with respect to the logits.

    Args:
        logits_TV: Logits, [T, V], fp32 or wider.
        labels_T: The target token of each row, [T], integer.
        dtype: The dtype of the gradient.

    Returns:
        Losses, [T], dtype of the logits; for each row the gradient of its own loss, [T, V].
    """
    log_probabilities = logits_TV.log_softmax(dim=-1)
    index = labels_T.long().unsqueeze(-1)
    losses = -log_probabilities.gather(-1, index).squeeze(-1)
    gradient = log_probabilities.exp()
    gradient.scatter_add_(-1, index, gradient.new_full((), -1.0).expand_as(index))
    return losses, gradient.to(dtype)


def quantize_rows(x: Tensor, column_scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Quantises each row to fp8 (e4m3) with its own scale.

    Args:
        x: Input, [T, N].
        column_scales: Factors that the columns are multiplied by first, [N] fp32; None for none.

    Returns:
        Values, [T, N], float8_e4m3fn, and scales, [T, 1], fp32; their product approximates the input.
    """
    wide = x.float() if column_scales is None else x.float() * column_scales
    scales = wide.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / torch.finfo(torch.float8_e4m3fn).max
    return (wide / scales).to(torch.float8_e4m3fn), scales


def scaled_product(
    x_TK: Tensor,
    x_scales_T1: Tensor,
    weight_NK: Tensor,
    weight_scales_N: Tensor | None,
    bias_N: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """The product of two fp8 matrices with row-wise scales, `x @ weight.T`, plus a bias.

    Args:
        x_TK: Values, [T, K], float8_e4m3fn.
        x_scales_T1: Their scales, [T, 1], fp32.
        weight_NK: Values, [N, K], float8_e4m3fn.
        weight_scales_N: Their scales, [N], fp32; None for 1.
        bias_N: The bias, [N]; None for none.
        dtype: The dtype to return; sums are accumulated in fp32.

    Returns:
        The product, [T, N].
    """
    product = (x_TK.float() * x_scales_T1) @ weight_NK.float().T
    product = product if weight_scales_N is None else product * weight_scales_N
    return (product if bias_N is None else product + bias_N).to(dtype)


def wide_product(left: Tensor, right: Tensor) -> Tensor:
    """A matrix product returned in the precision of its accumulators: fp32 (fp64 for fp64 inputs).

    Args:
        left: [M, K].
        right: [K, N].

    Returns:
        [M, N].
    """
    return _widen(left) @ _widen(right)


def transpose_bytes(x: Tensor) -> Tensor:
    """A contiguous transpose of a matrix of one-byte elements, [N, K] -> [K, N]."""
    return x.T.contiguous()


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
