"""Final norm, output layer and cross entropy at the tokens with labels, in chunks.

The whole [tokens, vocabulary] matrix never exists: the losses of a chunk and the gradient of its hidden states are
computed in the forward pass, and only that gradient is saved for the backward pass.

Legend of dimension suffixes: L labels, H hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from glmtune.ops.back_end import back_end

CHUNK_LABELS = 1024  # with 65,024 tokens: 266 MB of fp32 logits, and half as much of their gradient in 16 bits

_FLOAT16_SCALE = 2.0**10


def label_head(
    hidden_LH: Tensor, norm_weight_H: Tensor | None, eps: float, head_weight_VH: Tensor, labels_L: Tensor
) -> Tensor:
    """The loss of each label; differentiable in the hidden states, the weights are frozen.

    Args:
        hidden_LH: Output of the last layer at the tokens with labels, [L, H].
        norm_weight_H: Scale of the final RMSNorm, [H]; None where there is no final norm.
        eps: Its epsilon.
        head_weight_VH: The output layer, [V, H].
        labels_L: The token to predict at each of them, [L], integer.

    Returns:
        Cross entropies in nats, [L], fp32 (fp64 for fp64).
    """
    with torch.autocast(hidden_LH.device.type, enabled=False):
        losses: Tensor = _LabelHead.apply(hidden_LH, norm_weight_H, eps, head_weight_VH, labels_L)
    return losses


class _LabelHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_LH: Tensor, norm_weight_H: Tensor | None, eps: float, head_weight_VH: Tensor, labels_L: Tensor
    ) -> Tensor:
        ops = back_end(hidden_LH)
        normed_LH = hidden_LH if norm_weight_H is None else ops.rms_norm(hidden_LH, norm_weight_H, eps)
        needs_gradient = ctx.needs_input_grad[0]
        # Otherwise small gradients would underflow in float16 before the loss scale is applied.
        scale = _FLOAT16_SCALE if hidden_LH.dtype == torch.float16 else 1.0
        losses, gradients = [], []
        for normed, labels in zip(normed_LH.split(CHUNK_LABELS), labels_L.split(CHUNK_LABELS), strict=True):
            logits = ops.wide_product(normed, head_weight_VH.T)
            chunk_losses, logits_grad = ops.cross_entropy(logits, labels, hidden_LH.dtype)
            del logits
            losses.append(chunk_losses)
            if needs_gradient:
                gradients.append(_scaled_product(logits_grad, head_weight_VH, scale))
            del logits_grad  # before the next chunk's logits are allocated
        if needs_gradient:
            gradient = torch.cat(gradients)
            if norm_weight_H is not None:
                gradient = ops.rms_norm_backward(gradient, hidden_LH, norm_weight_H, eps, None)
            ctx.save_for_backward(gradient)
            ctx.scale = scale
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, grad_L: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        # A row's gradient is linear in the gradient of its loss, so that factor can be applied last.
        return (gradient * (grad_L / ctx.scale).unsqueeze(-1)).to(gradient.dtype), None, None, None, None


def _scaled_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """`scale * left @ right`, scaled before the sums are rounded."""
    return torch.addmm(left.new_empty(1), left, right, beta=0, alpha=scale)
