"""Activation checkpointing of some of the layers."""

from glmtune.models.families import family_of
from glmtune.training.packed_model import PackedModel


def checkpoint_layers(model: PackedModel, num_layers: int, *, offloads: bool = False) -> None:
    """Switches activation checkpointing on for the first layers of a model.

    By the time the backward pass of the first layers runs, the activations of later layers have been freed, so there is
    memory for the recomputed ones.

    Args:
        model: The model; if its layers are to be fused, they already are.
        num_layers: The number of layers to checkpoint.
        offloads: Whether to keep their inputs in host memory until the backward pass; only for fused layers.
    """
    base = model.get_base_model()
    if num_layers == 0:
        return
    # Newer transformers versions rename the method, and warn about the old name.
    enable = "activation_checkpointing_enable"
    getattr(base, enable if hasattr(base, enable) else "gradient_checkpointing_enable")({"use_reentrant": False})
    for parts in family_of(base).layers(base)[num_layers:]:
        parts.layer.gradient_checkpointing = False
    if model.fused_layers is not None:
        model.fused_layers.offloads_checkpoints = offloads
