"""Fuses a PEFT model's adapters into the layers, for training on packed rows.

Only how the forward and backward pass are computed changes: parameters, their names, saving, merging and disabling stay
PEFT's own, and every other way of calling the model runs through PEFT's modules as before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from glmtune.adapters.fusable import (
    ADAPTER_NAME,
    adapter_parameters,
    layers_of,
    lora_linears,
    projections_of,
    why_not_fused,
)
from glmtune.compat import copy_to_each
from glmtune.loading.formats import QuantizedLinear
from glmtune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from glmtune.models.chatglm.layers import GLMBlock, Rotation
from glmtune.models.chatglm.packed import PackedRows
from glmtune.ops import AdaptedLinear, Adapter, DenseLinear, FrozenLinear, LayerCall, LayerWeights, fused_layer


def fuse(model: PeftModel) -> str | None:
    """Fuses the adapters of a model into its layers.

    Args:
        model: A model from `attach_lora`, on the device that it is trained on. Changed in place.

    Returns:
        Why the model cannot be fused and was left as it is; None where it was fused.
    """
    base = model.get_base_model()
    reason = why_not_fused(model)
    if reason is None:
        base.transformer.fused_layers = FusedLayers(base)
    return reason


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
        self._dtype = layers_of(base)[0].input_layernorm.get_parameter("weight").dtype
        self._wide: list[Tensor] = []
        self._narrow: list[Tensor] = []
        self._blocks = [self._fused_block(block, base.config) for block in layers_of(base)]
        self._adapted = lora_linears(base)
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
                copy_to_each(self._narrow, self._wide)
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
        projections = projections_of(block)
        parameters = [p for layer in projections if isinstance(layer, LoraLinear) for p in adapter_parameters(layer)]
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
        a, b = (self._narrow_copy(parameter) for parameter in adapter_parameters(layer))
        dropout = layer.lora_dropout[ADAPTER_NAME]
        probability = dropout.p if isinstance(dropout, nn.Dropout) else 0.0
        return AdaptedLinear(_frozen(layer.get_base_layer()), Adapter(a, b, layer.scaling[ADAPTER_NAME], probability))

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
