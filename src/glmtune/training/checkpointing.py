"""Gradient checkpointing of some of the layers."""

from peft import PeftModel

from glmtune.training.fused import FusedLayers


def checkpoint_layers(model: PeftModel, num_layers: int, *, offloads: bool = False) -> None:
    """Switches checkpointing on for so many layers, the first ones: at their turn the others' memory is free again.

    Args:
        model: A model from `attach_lora`, its layers fused if they are going to be.
        num_layers: How many.
        offloads: Whether their inputs go to the host's memory meanwhile; only where layers are fused.
    """
    base = model.get_base_model()
    if num_layers == 0:
        return
    # transformers is about to rename it, and warns of the old name.
    enable = "activation_checkpointing_enable"
    getattr(base, enable if hasattr(base, enable) else "gradient_checkpointing_enable")({"use_reentrant": False})
    for layer in base.transformer.encoder.layers[num_layers:]:
        layer.gradient_checkpointing = False
    if isinstance(base.transformer.fused_layers, FusedLayers):
        base.transformer.fused_layers.offloads_checkpoints = offloads
