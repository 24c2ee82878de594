"""A layer's weights for the ops: the one place where modules are turned into `ops.LayerWeights`."""

from collections.abc import Callable

from peft.tuners.lora import LoraLayer
from torch import nn

from glmtune.loading.quantized_linear import QuantizedLinear
from glmtune.models.family import LayerParts, Shape
from glmtune.ops import DenseLinear, FrozenLinear, LayerWeights, Projection


def frozen_linear(layer: nn.Module) -> FrozenLinear:
    """The weight of a linear layer, shared; of one that PEFT has wrapped, that of the base."""
    if isinstance(layer, LoraLayer):
        layer = layer.get_base_layer()
    if isinstance(layer, QuantizedLinear):
        return layer.frozen
    assert isinstance(layer, nn.Linear)
    return DenseLinear(layer.weight.detach(), None if layer.bias is None else layer.bias.detach())


def without_adapter(layer: nn.Module) -> Projection:
    """A projection as that of the base alone."""
    return Projection(frozen_linear(layer))


def layer_weights(
    parts: LayerParts, shape: Shape, projection: Callable[[nn.Module], Projection] = without_adapter
) -> LayerWeights:
    """The weights of a layer.

    Args:
        parts: The layer; its norms are RMSNorm.
        shape: The model's sizes.
        projection: Turns each of the four linear layers into a projection.
    """
    return LayerWeights(
        input_norm=parts.input_norm.get_parameter("weight").detach(),
        post_attention_norm=parts.post_attention_norm.get_parameter("weight").detach(),
        eps=shape.norm_eps,
        query_key_value=projection(parts.query_key_value),
        dense=projection(parts.dense),
        up=projection(parts.up),
        down=projection(parts.down),
        num_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
    )
