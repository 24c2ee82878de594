"""What the decoder needs of a model: its weights without adapters, and the cosines and sines of all positions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers import PreTrainedModel

from glmtune.adapters.fusable import lora_linears, why_not_base, why_not_plain
from glmtune.loading.layer_weights import layer_weights
from glmtune.loading.quantized_linear import QuantizedLinear
from glmtune.models.families import family_of, shape_of
from glmtune.models.family import Shape
from glmtune.models.host_embedding import HostEmbedding
from glmtune.models.rms_norm import RMSNorm
from glmtune.ops import LayerWeights, reference
from glmtune.ops.back_end import back_end

_NUMBERS = 16  # of each weight; whatever changes one on purpose changes most of its numbers


@dataclass(frozen=True)
class DecoderWeights:
    """A model's weights, shared with it.

    Attributes:
        shape: The model's sizes.
        layers: The layers, without adapters.
        embedding: Embeds token ids, [T] -> [T, H].
        final_norm: Scale of the norm after the last layer, [H]; None where there is none.
        head: The output layer, [V, H].
        cos: Cosines of every position of the context, [positions, rotated / 2], in the compute dtype.
        sin: Sines, likewise.
    """

    shape: Shape
    layers: list[LayerWeights]
    embedding: Callable[[Tensor], Tensor]
    final_norm: Tensor | None
    head: Tensor
    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, model: PreTrainedModel | PeftModel) -> "DecoderWeights":
        """The weights of a model that the engine supports, bare or within PEFT; see `why_not`."""
        base = base_of(model)
        family = family_of(base)
        shape, norm, head = shape_of(base), family.final_norm(base), base.get_output_embeddings().weight
        positions = torch.arange(shape.context_length, device=head.device).unsqueeze(0)
        cos, sin = family.rotation(base.config, positions, head.dtype)
        return cls(
            shape=shape,
            layers=[layer_weights(parts, shape) for parts in family.layers(base)],
            embedding=base.get_input_embeddings(),
            final_norm=None if norm is None else norm.get_parameter("weight").detach(),
            head=head.detach(),
            cos=cos[0],
            sin=sin[0],
        )


class BaseMark:
    """By what a base is recognised that has been changed in place: where its weights are, and a few of their numbers.

    Args:
        base: The bare model. Adapters within it do not count.

    Attributes:
        places: Address and dtype of each weight.
        numbers: Some numbers of all of them, one after the other.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        adapters = {id(weight) for layer in lora_linears(base) for weight in layer.parameters()}
        adapters -= {id(weight) for layer in lora_linears(base) for weight in layer.get_base_layer().parameters()}
        weights = [weight.detach() for weight in base.parameters() if id(weight) not in adapters]
        self.places = [(weight.data_ptr(), weight.dtype) for weight in weights]
        flat = [weight.flatten() for weight in weights if weight.numel()]
        self.numbers = torch.cat([weight[:: 1 + len(weight) // _NUMBERS].float() for weight in flat])

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, BaseMark)
            and self.places == other.places
            and self.numbers.device == other.numbers.device
            and torch.equal(self.numbers, other.numbers)
        )

    __hash__ = None  # type: ignore[assignment]


def base_of(model: PreTrainedModel | PeftModel) -> Any:
    """The bare model."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def why_not(model: PreTrainedModel | PeftModel) -> str | None:
    """What the engine does not support about a model, as a phrase; None if it supports it."""
    base = base_of(model)
    return why_not_base(base) or _why_not_device(base) or _why_not_adapters(model) or _why_not_modules(base)


def _why_not_device(base: Any) -> str | None:
    if base.device.type == "cpu":
        return None
    if base.device.type != "cuda":
        return f"the model is on a device of type {base.device.type}"
    if torch.cuda.get_device_capability(base.device) < (8, 0):
        return "its kernels need an Ampere or newer GPU"
    if back_end(base.get_output_embeddings().weight) is reference:
        return "Triton cannot compile its kernels here"
    if isinstance(base.get_input_embeddings(), HostEmbedding):
        return "the embedding is in host memory"
    return None


def active_adapter(model: PreTrainedModel | PeftModel) -> str | None:
    """The adapter that a supported model computes with at present; None if it has none, or it is switched off."""
    if not isinstance(model, PeftModel):
        return None
    [active] = _active_adapters(model.get_base_model()) or [()]
    return str(active[0]) if active else None


def _active_adapters(base: Any) -> set[tuple[str, ...]]:
    """The adapters that layers compute with at present; layers that agree count once."""
    return {() if layer.disable_adapters else tuple(layer.active_adapters) for layer in lora_linears(base)}


def _why_not_adapters(model: PreTrainedModel | PeftModel) -> str | None:
    linears = lora_linears(base_of(model))
    if any(layer.merged for layer in linears):
        return "an adapter is merged into the base"
    if not isinstance(model, PeftModel):
        return "it is the inside of a PEFT model" if linears else None
    if not all(isinstance(config, LoraConfig) for config in model.peft_config.values()):
        return "it has an adapter other than LoRA"
    active = _active_adapters(model.get_base_model())
    if len(active) > 1:
        return "its layers use different adapters"
    if any(len(names) > 1 for names in active):
        return "several adapters are active at once"
    reasons = (why_not_plain(model, name) for name in model.peft_config)
    return next((reason for reason in reasons if reason is not None), None)


def _why_not_modules(base: Any) -> str | None:
    family = family_of(base)
    head, norm, embedding = base.get_output_embeddings(), family.final_norm(base), base.get_input_embeddings()
    linears = [
        layer.get_base_layer() if isinstance(layer, LoraLinear) else layer
        for parts in family.layers(base)
        for layer in parts.projections
    ]
    dense = [linear for linear in linears if not isinstance(linear, QuantizedLinear)]
    if len({module.weight.dtype for module in [head, norm, embedding, *dense] if module is not None}) > 1:
        return "the base's weights are of several dtypes"
    if type(head) is not nn.Linear or head.bias is not None or not isinstance(norm, RMSNorm | None):
        return "final norm or output layer are not as published"
    if type(embedding) not in (nn.Embedding, HostEmbedding):
        return "the embedding is not as published"
    if not all(type(linear) is nn.Linear or isinstance(linear, QuantizedLinear) for linear in linears):
        return "a linear layer is of another library"
    return None
