"""Fuses a PEFT model's adapters into the layers, for training on packed rows.

Only how the forward and backward pass are computed changes: parameters, their names, saving, merging and disabling stay
PEFT's own, and every other way of calling the model runs through PEFT's modules as before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from glmtune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from glmtune.models.chatglm.layers import GLMBlock, Rotation
from glmtune.models.chatglm.packed import PackedRows
from glmtune.ops import AdaptedLinear, Adapter, DenseLinear, FrozenLinear, LayerCall, LayerWeights, fused_layer
from glmtune.tuning.quantize import QuantizedLinear

_ADAPTER = "default"


def fuse(model: PeftModel) -> str | None:
    """Fuses the adapters of a model into its layers.

    Args:
        model: A model from `attach_lora`, on the device that it is trained on. Changed in place.

    Returns:
        Why the model cannot be fused and was left as it is; None where it was fused.
    """
    base = model.get_base_model()
    reason = why_not(model)
    if reason is None:
        base.transformer.fused_layers = FusedLayers(base)
    return reason


def why_not(model: PeftModel) -> str | None:
    """What about a model the fused layers do not cover, as a phrase; None where they cover it all."""
    base = model.get_base_model()
    if not isinstance(base, ChatGLMForConditionalGeneration):
        return f"the base is a {type(base).__name__}"
    reason = _why_not_config(base.config) or _why_not_adapter(model)
    if reason is None and len({parameter.device for parameter in base.parameters()}) > 1:
        reason = "the model is spread over several devices"
    return reason


def _why_not_config(config: ChatGLMConfig) -> str | None:
    unusual = {
        "LayerNorm": not config.rmsnorm,
        "apply_residual_connection_post_layernorm": config.apply_residual_connection_post_layernorm,
        "fp32_residual_connection": config.fp32_residual_connection,
        "hidden_dropout": config.hidden_dropout > 0,
        "attention_dropout": config.attention_dropout > 0,
        "no multi_query_attention": not config.multi_query_attention,
    }
    return next((f"the base has {name}" for name, is_so in unusual.items() if is_so), None)


def _why_not_adapter(model: PeftModel) -> str | None:
    config = model.peft_config[_ADAPTER]
    if list(model.peft_config) != [_ADAPTER]:
        return "there are several adapters"
    if config.modules_to_save:
        return "lora.modules_to_save trains whole modules"
    if config.bias != "none":
        return f"lora.bias={config.bias} trains biases of the base"
    projections = {id(layer) for block in _blocks(model.get_base_model()) for layer in _projections(block)}
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        if id(module) not in projections:
            return f"{name.rpartition('.')[2]} is adapted, which is no linear layer of a block"
        if type(module) is not LoraLinear or _ADAPTER in module.lora_variant:
            return "lora.use_dora" if config.use_dora else "a variant of LoRA is used"
        if module.lora_bias.get(_ADAPTER) or module.fan_in_fan_out:
            return "lora.lora_bias trains biases of the adapter"
        if not isinstance(module.lora_dropout[_ADAPTER], nn.Identity | nn.Dropout):
            return "an unusual dropout is used"
    trained = {id(weight) for layer in _lora_linears(model.get_base_model()) for weight in _parameters(layer)}
    if any(parameter.requires_grad and id(parameter) not in trained for parameter in model.parameters()):
        return "more than LoRA's A and B is trained"
    return None


@dataclass(frozen=True)
class _FusedBlock:
    """A block, its weights, and the parameters of its adapters."""

    block: GLMBlock
    weights: LayerWeights
    parameters: Sequence[nn.Parameter]


class FusedLayers:
    """All layers; what `ChatGLMModel.fused_layers` is set to.

    Adapters are fp32; what is computed with are copies in the base's dtype, brought up to date at the start of each
    forward pass.

    Attributes:
        offloads_checkpoints: Whether the inputs of checkpointed layers go to the host's memory until they are wanted.
        graph_seed: What dropout masks follow from in a CUDA graph, [1] int64 on the device; whoever replays the graph
            draws it anew. Elsewhere each forward pass draws its own.
    """

    def __init__(self, base: ChatGLMForConditionalGeneration) -> None:
        self.offloads_checkpoints = False
        self._dtype = _blocks(base)[0].input_layernorm.get_parameter("weight").dtype
        self._wide: list[Tensor] = []
        self._narrow: list[Tensor] = []
        self._blocks = [self._fused_block(block, base.config) for block in _blocks(base)]
        self._adapted = _lora_linears(base)
        self.graph_seed = torch.zeros(1, dtype=torch.int64, device=base.device)
        self._has_dropout = any(
            projection.adapter is not None and projection.adapter.dropout > 0
            for block in self._blocks
            for projection in block.weights.projections
        )

    def __call__(self, hidden_TH: Tensor, rotation: Rotation, packed: PackedRows) -> Tensor:
        """Runs the layers.

        Args:
            hidden_TH: Embedded tokens, [T, H]; they get no gradient.
            rotation: Cosines and sines, [1, T, rotated / 2] each.
            packed: The samples.

        Returns:
            What the last layer returns on the label rows, [L, H].
        """
        with torch.no_grad():
            if self._wide:
                torch._foreach_copy_(self._narrow, self._wide)
        hidden_TH = hidden_TH.detach()
        cos, sin = rotation[0][0], rotation[1][0]
        is_training = self._blocks[0].block.training
        seed = self._seed() if is_training and self._has_dropout else None
        # Merged adapters are part of the base's weights, which are the very same tensors here.
        is_disabled = self._adapted[0].disable_adapters or self._adapted[0].merged
        last = len(self._blocks) - 1
        for index, fused in enumerate(self._blocks):
            call = LayerCall(
                weights=_without_adapters(fused.weights) if is_disabled else fused.weights,
                cos=cos,
                sin=sin,
                segments=packed.label_segments if index == last else packed.segments,
                rows=packed.label_rows if index == last else None,
                seed=seed,
                stream=4 * index,  # a mask for each of the four projections
                is_checkpointed=fused.block.gradient_checkpointing and is_training,
                offloads_checkpoint=self.offloads_checkpoints,
            )
            hidden_TH = fused_layer(hidden_TH, call, () if is_disabled else fused.parameters)
        return hidden_TH

    def draw_graph_seed(self) -> None:
        """Draws the seed of the next replay."""
        if self._has_dropout:
            self.graph_seed.fill_(_draw())

    def _seed(self) -> Tensor:
        if self.graph_seed.is_cuda and torch.cuda.is_current_stream_capturing():
            return self.graph_seed
        return torch.full_like(self.graph_seed, _draw())

    def _fused_block(self, block: GLMBlock, config: ChatGLMConfig) -> _FusedBlock:
        projections = _projections(block)
        parameters = [p for layer in projections if isinstance(layer, LoraLinear) for p in _parameters(layer)]
        query_key_value, dense, up, down = (self._adapted_linear(layer) for layer in projections)
        weights = LayerWeights(
            input_norm=block.input_layernorm.get_parameter("weight").detach(),
            post_attention_norm=block.post_attention_layernorm.get_parameter("weight").detach(),
            eps=config.layernorm_epsilon,
            query_key_value=query_key_value,
            dense=dense,
            dense_h_to_4h=up,
            dense_4h_to_h=down,
            num_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.kv_channels,
        )
        return _FusedBlock(block, weights, parameters)

    def _adapted_linear(self, layer: nn.Module) -> AdaptedLinear:
        if not isinstance(layer, LoraLinear):
            return AdaptedLinear(_frozen(layer))
        a, b = (self._narrow_copy(parameter) for parameter in _parameters(layer))
        dropout = layer.lora_dropout[_ADAPTER]
        probability = dropout.p if isinstance(dropout, nn.Dropout) else 0.0
        return AdaptedLinear(_frozen(layer.get_base_layer()), Adapter(a, b, layer.scaling[_ADAPTER], probability))

    def _narrow_copy(self, parameter: nn.Parameter) -> Tensor:
        copy = parameter.detach().to(self._dtype, copy=True)
        self._wide.append(parameter)
        self._narrow.append(copy)
        return copy


def _draw() -> int:
    """A seed from torch's CPU generator, whose state a checkpoint keeps."""
    return int(torch.randint(2**31, ()))


def _without_adapters(weights: LayerWeights) -> LayerWeights:
    return replace(
        weights,
        query_key_value=AdaptedLinear(weights.query_key_value.linear),
        dense=AdaptedLinear(weights.dense.linear),
        dense_h_to_4h=AdaptedLinear(weights.dense_h_to_4h.linear),
        dense_4h_to_h=AdaptedLinear(weights.dense_4h_to_h.linear),
    )


def _frozen(layer: nn.Module) -> FrozenLinear:
    if isinstance(layer, QuantizedLinear):
        return layer.frozen
    assert isinstance(layer, nn.Linear)
    return DenseLinear(layer.weight.detach(), None if layer.bias is None else layer.bias.detach())


def _blocks(base: Any) -> Sequence[GLMBlock]:
    return list(base.transformer.encoder.layers)


def _projections(block: GLMBlock) -> tuple[nn.Module, ...]:
    """The four linear layers of a block, in the order of `LayerWeights.projections`."""
    attention, mlp = block.self_attention, block.mlp
    return attention.query_key_value, attention.dense, mlp.dense_h_to_4h, mlp.dense_4h_to_h


def _lora_linears(base: Any) -> list[LoraLinear]:
    return [layer for block in _blocks(base) for layer in _projections(block) if isinstance(layer, LoraLinear)]


def _parameters(layer: LoraLinear) -> tuple[nn.Parameter, nn.Parameter]:
    return layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
