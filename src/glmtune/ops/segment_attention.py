"""Attention over segments as a differentiable op, for layers that are not fused."""

from typing import Any

import torch
from torch import Tensor

from glmtune.ops.attention import attention_backward, attention_forward
from glmtune.ops.segments import Segments


def segment_attention(
    query_TND: Tensor, key_TGD: Tensor, value_TGD: Tensor, segments: Segments, scale: float
) -> Tensor:
    """Grouped-query attention within segments.

    Args:
        query_TND: Queries, [T, N, D].
        key_TGD: Keys of the tokens, [T, G, D]; they are gathered here if `segments.key_indices` is set.
        value_TGD: Values, likewise.
        segments: Which keys each query attends to.
        scale: The factor on the attention scores.

    Returns:
        The attended values, [T, N, D].
    """
    if segments.key_indices is not None:
        key_TGD, value_TGD = (x.index_select(0, segments.key_indices) for x in (key_TGD, value_TGD))
    attended: Tensor = _SegmentAttention.apply(query_TND, key_TGD, value_TGD, segments, scale)
    return attended


class _SegmentAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_TND: Tensor, key_KGD: Tensor, value_KGD: Tensor, segments: Segments, scale: float
    ) -> Tensor:
        output, log_sum_exp = attention_forward(query_TND, key_KGD, value_KGD, segments, scale)
        ctx.segments, ctx.scale = segments, scale
        ctx.save_for_backward(query_TND, key_KGD, value_KGD, output, log_sum_exp)
        return output

    @staticmethod
    def backward(ctx: Any, grad_TND: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value, output, log_sum_exp = ctx.saved_tensors
        grads = attention_backward(
            grad_TND.contiguous(), query, key, value, output, log_sum_exp, ctx.segments, ctx.scale
        )
        return *grads, None, None
