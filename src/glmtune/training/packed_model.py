"""A PEFT model that is trained on packed batches.

Legend of dimension suffixes: B batch, T tokens, L labels, H hidden size, V vocabulary.
"""

# ruff: noqa: N806

from typing import Any

from peft import PeftModel, PeftModelForCausalLM
from torch import Tensor, nn
from torch.nn import functional as F

from glmtune.adapters.fusable import why_not_fused
from glmtune.data.packed_batch import PackedBatch
from glmtune.models.families import family_of, shape_of
from glmtune.models.rms_norm import RMSNorm
from glmtune.ops import label_head
from glmtune.training.fused import FusedLayers


class PackedModel(PeftModelForCausalLM):
    """Replaces the PEFT model that it is made from, and adds a loss on packed batches.

    It shares that model's modules and adapters under the same names. Code that handles PEFT models (Trainer, saving,
    loading) therefore treats it as one, and calls without one behave exactly as PEFT's.

    Args:
        model: A model from `attach_lora`.

    Attributes:
        fused_layers: The fused layers that run packed batches; None if PEFT's modules do. Set by `fuse`.
    """

    def __init__(self, model: PeftModel) -> None:
        self.__dict__.update(vars(model))
        self.fused_layers: FusedLayers | None = None

    def forward(self, *args: Any, packed: PackedBatch | None = None, **kwargs: Any) -> Any:
        """Computes the loss of a packed batch; without any, as PEFT's `forward`.

        Args:
            *args: As for PEFT's `forward`.
            packed: Packed samples, in place of all other arguments.
            **kwargs: As for PEFT's `forward`.

        Returns:
            The weighted sum of the losses of the labels, a scalar.
        """
        if packed is None:
            return super().forward(*args, **kwargs)
        return (self.label_losses(packed) * packed.label_weights).sum()

    def label_losses(self, packed: PackedBatch) -> Tensor:
        """The cross entropy of each label, in nats, [L] fp32."""
        base = self.get_base_model()
        hidden_LH = self.label_hidden(packed)
        head, norm = base.get_output_embeddings(), family_of(base).final_norm(base)
        if type(head) is nn.Linear and not head.weight.requires_grad and isinstance(norm, RMSNorm | None):
            scale, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
            if scale is None or not scale.requires_grad:
                return label_head(hidden_LH.to(head.weight.dtype), scale, eps, head.weight, packed.labels)
        normed_LH = hidden_LH if norm is None else norm(hidden_LH)
        logits_LV = head(normed_LH.to(base.dtype)).float()
        return F.cross_entropy(logits_LV, packed.labels.long(), reduction="none")

    def label_hidden(self, packed: PackedBatch) -> Tensor:
        """Output of the last layer at the tokens with labels, [L, H], before the final norm.

        With fused layers, embeddings receive no gradient.
        """
        base = self.get_base_model()
        family = family_of(base)
        hidden_TH = base.get_input_embeddings()(packed.input_ids)
        rotation = family.rotation(base.config, packed.position_ids.unsqueeze(0), hidden_TH.dtype)
        if self.fused_layers is not None:
            return self.fused_layers(hidden_TH, rotation, packed)
        if shape_of(base).has_fp32_residual:
            hidden_TH = hidden_TH.float()
        hidden_BTH = hidden_TH.unsqueeze(0)
        for parts in family.layers(base):
            hidden_BTH = parts.layer(hidden_BTH, rotation=rotation, segments=packed.segments)
        return hidden_BTH[0].index_select(0, packed.label_indices)


def fuse(model: PackedModel) -> str | None:
    """Fuses the adapters of a model into its layers.

    Args:
        model: The model, on the device that it is trained on. Changed in place.

    Returns:
        Why the model cannot be fused and was left unchanged; None if it was fused.
    """
    reason = why_not_fused(model)
    if reason is None:
        model.fused_layers = FusedLayers(model.get_base_model())
    return reason
