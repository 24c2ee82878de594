"""Activation checkpointing of some of the layers."""

from collections.abc import Mapping
from typing import Any

from glmtune.compat import enable_checkpointing
from glmtune.models.families import family_of
from glmtune.training.packed_model import PackedModel


def checkpoint_layers(
    model: PackedModel, num_layers: int, *, offloads: bool = False, options: Mapping[str, Any] | None = None
) -> None:
    """Switches activation checkpointing on for the first layers of a model.

    By the time the backward pass of the first layers runs, the activations of later layers have been freed, so there is
    memory for the recomputed ones.

    Args:
        model: The model; if its layers are to be fused, they already are.
        num_layers: The number of layers to checkpoint.
        offloads: Whether to keep their inputs in host memory until the backward pass; only for fused layers.
        options: Keyword arguments of `torch.utils.checkpoint.checkpoint`, for layers that are not fused.
    """
    if num_layers == 0:
        return
    base = model.get_base_model()
    enable_checkpointing(base, {"use_reentrant": False, **(options or {})})
    for parts in family_of(base).layers(base)[num_layers:]:
        parts.layer.gradient_checkpointing = False
    if model.fused_layers is not None:
        model.fused_layers.offloads_checkpoints = offloads
