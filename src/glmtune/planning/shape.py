"""The properties of an adapter that decide a run's memory."""

from dataclasses import dataclass

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from glmtune.adapters.fusable import why_not_fused
from glmtune.adapters.lora import lora_layers
from glmtune.models.families import family_of, shape_of


@dataclass(frozen=True)
class AdapterShape:
    """The properties of an adapter that decide a run's memory.

    Attributes:
        num_trained: Trained parameters.
        first_layer: The first layer with an adapter; those below keep nothing for the backward pass.
        ranks: Sum of the ranks within a layer.
        is_on_last_projection: Whether the last projection of a layer, the widest in, is adapted.
        has_dropout: Whether adapters drop any of their input.
        why_not_fused: Why the layers cannot be fused; None if they can.
        has_plain_head: Whether final norm and output layer are as published, so that logits are computed in chunks.
    """

    num_trained: int
    first_layer: int
    ranks: int
    is_on_last_projection: bool
    has_dropout: bool
    why_not_fused: str | None = None
    has_plain_head: bool = True

    @classmethod
    def of(cls, model: PeftModel) -> "AdapterShape":
        """From a model with its adapter, which may be on the meta device."""
        base = model.get_base_model()
        family = family_of(base)
        by_layer: dict[int, dict[str, LoraLayer]] = {}
        for name, module in lora_layers(base).items():
            number = family.layer_number(name)
            if number is not None:
                by_layer.setdefault(number, {})[name.rpartition(".")[2]] = module
        ranks = [sum(module.r["default"] for module in layer.values()) for layer in by_layer.values()]
        return cls(
            num_trained=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
            # The gradient of a trained embedding passes through all layers.
            first_layer=0 if _is_trained(base.get_input_embeddings()) else min(by_layer, default=0),
            ranks=max(ranks, default=0),
            is_on_last_projection=any(family.last_projection in layer for layer in by_layer.values()),
            has_dropout=any(
                isinstance(module.lora_dropout["default"], nn.Dropout)
                for layer in by_layer.values()
                for module in layer.values()
            ),
            why_not_fused=why_not_fused(model),
            has_plain_head=shape_of(base).has_rms_norm
            and not any(map(_is_trained, (family.final_norm(base), base.get_output_embeddings()))),
        )


def _is_trained(module: nn.Module | None) -> bool:
    return module is not None and any(parameter.requires_grad for parameter in module.parameters())
