"""The ops of decoding.

A sequence's keys and values lie in blocks of `BLOCK_SIZE` slots, which its block table lists in order.

Legend of dimension suffixes: R rows, each a token of a sequence, T tokens, W width of the block tables, S slots, N
heads of the queries or outputs of a product, G key and value heads, D head size, M = N + 2 G, K inputs, C columns of A.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from glmtune.ops.reference.layers import rms_norm, rotate_, swiglu

BLOCK_SIZE = 16  # slots in a block of the key-value cache


def store_rotated(
    mixed_TMD: Tensor, cos_Tr: Tensor, sin_Tr: Tensor, slots_T: Tensor, key_SGD: Tensor, value_SGD: Tensor
) -> None:
    """Rotates queries and keys in place, and writes keys and values into their slots.

    Args:
        mixed_TMD: Queries, then keys, then values, [T, N + 2 G, D].
        cos_Tr: Cosines, [T, rotated / 2], and `sin_Tr`, sines.
        slots_T: The slot of each row, [T], integer; rows of padding share one.
    """
    groups = key_SGD.shape[1]
    rotate_(mixed_TMD, cos_Tr, sin_Tr, mixed_TMD.shape[1] - groups)
    key_SGD[slots_T] = mixed_TMD[:, -2 * groups : -groups]
    value_SGD[slots_T] = mixed_TMD[:, -groups:]


def paged_attention(
    query_RND: Tensor, key_SGD: Tensor, value_SGD: Tensor, block_tables_RW: Tensor, lengths_R: Tensor, scale: float
) -> Tensor:
    """Grouped-query attention of one query a row to the first keys of the row's block table.

    Args:
        query_RND: Queries, [R, N, D]; only the channels need be contiguous.
        block_tables_RW: Blocks, [R, W] int32; those past a row's keys count for nothing, but exist.
        lengths_R: The number of keys that each row attends to, [R] int32, at least 1.
        scale: The factor on the attention scores.

    Returns:
        The attended values, [R, N, D].
    """
    key, value = (
        x.unflatten(0, (-1, BLOCK_SIZE)).index_select(0, block_tables_RW.flatten()) for x in (key_SGD, value_SGD)
    )
    key, value = (x.view(len(query_RND), -1, *x.shape[2:]).transpose(1, 2) for x in (key, value))
    mask = (torch.arange(key.shape[2], device=key.device) < lengths_R.unsqueeze(-1))[:, None, None, :]
    query = query_RND.unflatten(1, (key.shape[1], -1))  # the heads of a group, as queries with the same keys
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale).flatten(1, 2)


def gemv(
    x_1K: Tensor,
    weight_NK: Tensor,
    *,
    scales: Tensor | None = None,
    bias: Tensor | None = None,
    norm: tuple[Tensor, float] | None = None,
    adapter: tuple[Tensor, Tensor] | None = None,
    residual_1N: Tensor | None = None,
    is_gated: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """A linear layer on a single row, with what stands before and after it.

    In this order: norm, product, scales, bias, adapter, SwiGLU, residual.

    Args:
        x_1K: The row, [1, K].
        weight_NK: The weight, [N, K], in the dtype of `x_1K`, or int8 or fp8 with `scales`.
        scales: A factor on each output, [N]; None for none.
        bias: [N]; None for none.
        norm: Scale, [K], and epsilon of an RMSNorm on the row; None for none.
        adapter: LoRA's `x @ A.T`, [1, C], and B, [N, C]; None for none.
        residual_1N: Added to the result, of its shape; None for none.
        is_gated: Whether the outputs are gate and up of a SwiGLU, N / 2 each.
        dtype: The dtype of the result; None for that of `x_1K`.

    Returns:
        [1, N], or [1, N / 2] if gated.
    """
    x = x_1K if norm is None else rms_norm(x_1K, *norm)
    output = x @ weight_NK.to(x.dtype).T
    if scales is not None:
        output = (output * scales).to(x.dtype)
    if bias is not None:
        output = output + bias
    if adapter is not None:
        low_1C, b_NC = adapter
        output = output.addmm(low_1C, b_NC.T)
    if is_gated:
        output = swiglu(output)
    output = output if residual_1N is None else output + residual_1N
    return output.to(dtype or x_1K.dtype)


# The 16 values of nf4: quantiles of the normal distribution. Source: Dettmers et al. 2023, arXiv 2305.14314.
NF4_TABLE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


# Outputs that a weight in nf4 must have for `gemv_nf4`.
NF4_LEAST_OUTPUTS = 8


class Nf4Weight(NamedTuple):
    """A weight in nf4, in bitsandbytes' format: 64 weights of a row share a scale, and 256 scales share theirs.

    Attributes:
        values: Two weights a byte, the first in the high nibble, [N * K / 2, 1] uint8; K is a multiple of 64.
        scales: The quantised scales, [N * K / 64] uint8.
        scale_code: The values of the quantised scales, [256] fp32.
        scale_scales: The factors on them, [N * K / 64 / 256] fp32.
        offset: Added to every scale, [] fp32.
    """

    values: Tensor
    scales: Tensor
    scale_code: Tensor
    scale_scales: Tensor
    offset: Tensor


def gemv_nf4(x_1K: Tensor, weight: Nf4Weight, **beside: Any) -> Tensor:
    """As `gemv`, with a weight in nf4.

    Args:
        x_1K: The row, [1, K]; on CUDA bf16 or fp16.
        weight: The weight, [N, K]; N is at least `NF4_LEAST_OUTPUTS`.
        **beside: `bias`, `norm`, `adapter`, `residual_1N`, `is_gated` as for `gemv`.
    """
    table = torch.tensor(NF4_TABLE, device=x_1K.device)
    nibbles = torch.stack((weight.values >> 4, weight.values & 15), dim=-1)
    scales = weight.scale_code[weight.scales.long()] * weight.scale_scales.repeat_interleave(256)[: len(weight.scales)]
    dense = table[nibbles.long()].view(-1, 64) * (scales + weight.offset).unsqueeze(-1)
    return gemv(x_1K, dense.view(-1, x_1K.shape[1]), **beside)
