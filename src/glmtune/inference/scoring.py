"""Losses of given tokens: a pass over packed samples, through the modules of a bare base or of one within PEFT.

Legend of dimension suffixes: B batch, T tokens, L labels, H hidden size, V vocabulary.
"""

# ruff: noqa: N803, N806

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glmtune.data.packed_batch import PackedBatch
from glmtune.models.families import family_of, shape_of
from glmtune.models.rms_norm import RMSNorm
from glmtune.ops import label_head


def label_losses(base: Any, packed: PackedBatch) -> Tensor:
    """The cross entropy of each label, in nats, [L] fp32.

    Args:
        base: The bare model; adapters that are switched on within its layers count.
        packed: Packed samples, on the model's device.
    """
    return losses_at(base, label_hidden(base, packed), packed.labels)


def label_hidden(base: Any, packed: PackedBatch) -> Tensor:
    """Output of the last layer at the tokens with labels, [L, H], before the final norm."""
    family = family_of(base)
    hidden_TH = base.get_input_embeddings()(packed.input_ids)
    rotation = family.rotation(base.config, packed.position_ids.unsqueeze(0), hidden_TH.dtype)
    if shape_of(base).has_fp32_residual:
        hidden_TH = hidden_TH.float()
    hidden_BTH = hidden_TH.unsqueeze(0)
    for parts in family.layers(base):
        hidden_BTH = parts.layer(hidden_BTH, rotation=rotation, segments=packed.segments)
    return hidden_BTH[0].index_select(0, packed.label_indices)


def losses_at(base: Any, hidden_LH: Tensor, labels_L: Tensor) -> Tensor:
    """The cross entropy of each label, [L] fp32, from the last layer's output.

    Args:
        base: The bare model.
        hidden_LH: Output of the last layer, before the final norm.
        labels_L: The token to predict from each.
    """
    head, norm = base.get_output_embeddings(), family_of(base).final_norm(base)
    if type(head) is nn.Linear and not _learns(head.weight) and isinstance(norm, RMSNorm | None):
        scale, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
        if scale is None or not _learns(scale):
            return label_head(hidden_LH.to(head.weight.dtype), scale, eps, head.weight, labels_L)
    normed_LH = hidden_LH if norm is None else norm(hidden_LH)
    logits_LV = head(normed_LH.to(base.dtype)).float()
    return F.cross_entropy(logits_LV, labels_L.long(), reduction="none")


def _learns(weight: Tensor) -> bool:
    """Whether a gradient is wanted, which `label_head` does not compute."""
    return weight.requires_grad and torch.is_grad_enabled()
