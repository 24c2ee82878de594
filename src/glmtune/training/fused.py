"""Fuses a PEFT model's adapters into the layers, for training on packed batches.

Only the computation of the forward and backward pass changes: parameters, their names, saving, merging and disabling
remain PEFT's, and all other calls of the model run through PEFT's modules as before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from glmtune.adapters.fusable import ADAPTER_NAME, adapter_parameters, lora_linears
from glmtune.compat import copy_to_each
from glmtune.data.packed_batch import PackedBatch
from glmtune.loading.layer_weights import frozen_linear, layer_weights, without_adapter
from glmtune.models.families import family_of, shape_of
from glmtune.models.family import LayerParts, Rotation, Shape
from glmtune.ops import Adapter, LayerCall, LayerWeights, Projection, fused_layer


@dataclass(frozen=True)
class _FusedLayer:
    """A layer, its weights, and the parameters of its adapters."""

    layer: GradientCheckpointingLayer
    weights: LayerWeights
    parameters: Sequence[nn.Parameter]


class FusedLayers:
    """All layers of a model.

    Adapters are fp32; the computation uses copies in the base's dtype, which are refreshed at the start of each forward
    pass.

    Args:
        base: The base, on the device that it is trained on, with adapters that can be fused.

    Attributes:
        offloads_checkpoints: Whether the inputs of checkpointed layers are kept in host memory until the backward pass.
        graph_seed: The seed of the dropout masks in a CUDA graph, [1] int64 on the device, redrawn before each replay.
            Outside graphs, each forward pass draws its own.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        self.offloads_checkpoints = False
        family = family_of(base)
        layers, shape = family.layers(base), shape_of(base)
        self._dtype = layers[0].input_norm.get_parameter("weight").dtype
        self._wide: list[Tensor] = []
        self._narrow: list[Tensor] = []
        self._layers = [self._fused_layer(parts, shape) for parts in layers]
        self._adapted = lora_linears(base)
        self.graph_seed = torch.zeros(1, dtype=torch.int64, device=base.device)
        self._has_dropout = any(
            projection.adapter is not None and projection.adapter.dropout > 0
            for fused in self._layers
            for projection in fused.weights.projections
        )

    def __call__(self, hidden_TH: Tensor, rotation: Rotation, packed: PackedBatch) -> Tensor:
        """Runs the layers.

        Args:
            hidden_TH: Embedded tokens, [T, H]; they receive no gradient.
            rotation: Cosines and sines, [1, T, rotated / 2] each.
            packed: The packed samples.

        Returns:
            Output of the last layer at the tokens with labels, [L, H].
        """
        with torch.no_grad():
            if self._wide:
                copy_to_each(self._narrow, self._wide)
        hidden_TH = hidden_TH.detach()
        cos, sin = rotation[0][0], rotation[1][0]
        is_training = self._layers[0].layer.training
        seed = self._seed() if is_training and self._has_dropout else None
        # Merged adapters are part of the base's weights, which are shared with PEFT's modules.
        is_disabled = self._adapted[0].disable_adapters or self._adapted[0].merged
        last = len(self._layers) - 1
        for index, fused in enumerate(self._layers):
            call = LayerCall(
                weights=_without_adapters(fused.weights) if is_disabled else fused.weights,
                cos=cos,
                sin=sin,
                segments=packed.label_segments if index == last else packed.segments,
                query_indices=packed.label_indices if index == last else None,
                seed=seed,
                stream=4 * index,  # one mask for each of the four projections
                is_checkpointed=fused.layer.gradient_checkpointing and is_training,
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

    def _fused_layer(self, parts: LayerParts, shape: Shape) -> _FusedLayer:
        adapted = [layer for layer in parts.projections if isinstance(layer, LoraLinear)]
        weights = layer_weights(parts, shape, self._projection)
        return _FusedLayer(parts.layer, weights, [p for layer in adapted for p in adapter_parameters(layer)])

    def _projection(self, layer: nn.Module) -> Projection:
        if not isinstance(layer, LoraLinear):
            return without_adapter(layer)
        a, b = (self._narrow_copy(parameter) for parameter in adapter_parameters(layer))
        dropout = layer.lora_dropout[ADAPTER_NAME]
        probability = dropout.p if isinstance(dropout, nn.Dropout) else 0.0
        return Projection(frozen_linear(layer), Adapter(a, b, layer.scaling[ADAPTER_NAME], probability))

    def _narrow_copy(self, parameter: nn.Parameter) -> Tensor:
        copy = parameter.detach().to(self._dtype, copy=True)
        self._wide.append(parameter)
        self._narrow.append(copy)
        return copy


def _draw() -> int:
    """A seed from torch's CPU generator, whose state is saved in checkpoints."""
    return int(torch.randint(2**31, ()))


def _without_adapters(weights: LayerWeights) -> LayerWeights:
    return replace(
        weights,
        query_key_value=Projection(weights.query_key_value.linear),
        dense=Projection(weights.dense.linear),
        up=Projection(weights.up.linear),
        down=Projection(weights.down.linear),
    )
