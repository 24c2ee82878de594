"""Gradient checkpointing of some of the layers."""

from glmtune.models.families import family_of
from glmtune.training.packed_model import PackedModel


def checkpoint_layers(model: PackedModel, num_layers: int, *, offloads: bool = False) -> None:
    """Switches checkpointing on for so many layers, the first ones: at their turn the others' memory is free again.

    Args:
        model: The model, its layers fused if they are going to be.
        num_layers: How many.
        offloads: Whether their inputs go to the host's memory meanwhile; only where layers are fused.
    """
    base = model.get_base_model()
    if num_layers == 0:
        return
    # transformers is about to rename it, and warns of the old name.
    enable = "activation_checkpointing_enable"
    getattr(base, enable if hasattr(base, enable) else "gradient_checkpointing_enable")({"use_reentrant": False})
    for parts in family_of(base).layers(base)[num_layers:]:
        parts.layer.gradient_checkpointing = False
    if model.fused_layers is not None:
        model.fused_layers.offloads_checkpoints = offloads
