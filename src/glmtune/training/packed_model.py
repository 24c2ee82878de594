"""A PEFT model that is trained on packed batches.

Legend of dimension suffixes: T tokens, L labels, H hidden size.
"""

# ruff: noqa: N806

from typing import Any

from peft import PeftModel, PeftModelForCausalLM
from torch import Tensor

from glmtune.adapters.fusable import why_not_fused
from glmtune.data.packed_batch import PackedBatch
from glmtune.inference.scoring import label_hidden, losses_at
from glmtune.models.families import family_of
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
        return losses_at(self.get_base_model(), self.label_hidden(packed), packed.labels)

    def label_hidden(self, packed: PackedBatch) -> Tensor:
        """Output of the last layer at the tokens with labels, [L, H], before the final norm.

        With fused layers, embeddings receive no gradient.
        """
        base = self.get_base_model()
        if self.fused_layers is None:
            return label_hidden(base, packed)
        hidden_TH = base.get_input_embeddings()(packed.input_ids)
        rotation = family_of(base).rotation(base.config, packed.position_ids.unsqueeze(0), hidden_TH.dtype)
        return self.fused_layers(hidden_TH, rotation, packed)


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
