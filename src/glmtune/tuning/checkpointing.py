"""Gradient checkpointing of as few layers as the memory asks for."""

import math
from dataclasses import dataclass

import torch
from peft import PeftModel

from glmtune.models.chatglm import ChatGLMConfig
from glmtune.ops.label_head import CHUNK_ROWS

# Layers that are not fused keep about twice as much: PEFT's fp32 inputs, norms' and activations' intermediates.
_UNFUSED_FACTOR = 2.1
# What fragmentation and kernels' workspaces may take.
_RESERVE_BYTES, _RESERVE_SHARE = 512 * 2**20, 0.04


@dataclass(frozen=True)
class ActivationBytes:
    """Bytes that one token of one layer takes between its forward and its backward pass.

    Attributes:
        kept: As the layer runs by default.
        checkpointed: Where only the layer's input is kept.
    """

    kept: float
    checkpointed: float

    @classmethod
    def of(cls, config: ChatGLMConfig, dtype: torch.dtype, is_fused: bool) -> "ActivationBytes":
        """For a model's shape: its input, queries, keys and values, attended values, residual, gate and up.

        The log-sum-exp of the scores is fp32, one a head.
        """
        heads = config.num_attention_heads
        width = heads * config.kv_channels
        key_value = 2 * config.num_key_value_heads * config.kv_channels
        numbers = 2 * config.hidden_size + 2 * width + key_value + 2 * config.ffn_hidden_size
        kept = numbers * dtype.itemsize + 4 * heads
        return cls(kept * (1 if is_fused else _UNFUSED_FACTOR), config.hidden_size * dtype.itemsize)


def layers_to_checkpoint(
    config: ChatGLMConfig, dtype: torch.dtype, *, is_fused: bool, num_tokens: int, num_trained: int, free_bytes: int
) -> int:
    """The smallest number of layers that have to be checkpointed for a forward and backward pass to fit.

    Args:
        config: The model's shape.
        dtype: What activations are held in.
        is_fused: Whether its layers are fused.
        num_tokens: The most tokens of a forward pass.
        num_trained: Trained parameters, of which gradient, two moments and a copy are still to be made.
        free_bytes: What the device has left, with model and adapters on it.

    Returns:
        From 0 to all layers.
    """
    layer = ActivationBytes.of(config, dtype, is_fused)
    # Within one layer's backward pass: gradients of gate and up, of the activation and of the residual stream.
    working = num_tokens * dtype.itemsize * (4 * config.ffn_hidden_size + 6 * config.hidden_size)
    logits = min(num_tokens, CHUNK_ROWS) * config.padded_vocab_size * (4 + dtype.itemsize)
    fixed = max(working, logits) + 14 * num_trained + _RESERVE_BYTES
    room = free_bytes * (1 - _RESERVE_SHARE) - fixed
    missing = num_tokens * config.num_layers * layer.kept - room
    if missing <= 0:
        return 0
    saved = num_tokens * (layer.kept - layer.checkpointed)
    return min(math.ceil(missing / saved) + 1, config.num_layers)  # one more, which is whole while it runs again


def checkpoint_layers(model: PeftModel, num_layers: int) -> None:
    """Switches checkpointing on for so many layers, the first ones: at their turn the others' memory is free again."""
    base = model.get_base_model()
    if num_layers == 0:
        return
    # transformers is about to rename it, and warns of the old name.
    enable = "activation_checkpointing_enable"
    getattr(base, enable if hasattr(base, enable) else "gradient_checkpointing_enable")({"use_reentrant": False})
    for layer in base.transformer.encoder.layers[num_layers:]:
        layer.gradient_checkpointing = False


def free_bytes(device: torch.device) -> int:
    """What a CUDA device has left for this process."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
