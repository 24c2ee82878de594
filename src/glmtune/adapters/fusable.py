"""Whether a model's layers and adapters are of the kind that can be fused, for training and for inference."""

from typing import Any

from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import nn

from glmtune.models.families import FAMILIES, family_of, shape_of

ADAPTER_NAME = "default"


def why_not_fused(model: PeftModel) -> str | None:
    """What the fused layers do not support about a model, as a phrase; None if they support it."""
    base = model.get_base_model()
    reason = why_not_base(base)
    if reason is None and list(model.peft_config) != [ADAPTER_NAME]:
        reason = "there are several adapters"
    reason = reason or why_not_plain(model, ADAPTER_NAME)
    if reason is not None:
        return reason
    trained = {id(weight) for layer in lora_linears(base) for weight in adapter_parameters(layer)}
    if any(parameter.requires_grad and id(parameter) not in trained for parameter in model.parameters()):
        return "more than LoRA's A and B is trained"
    return None


def why_not_base(base: Any) -> str | None:
    """What the fused layers do not support about a base, as a phrase; None if they support it."""
    if not any(isinstance(base, family.model_class) for family in FAMILIES):
        return f"the base is a {type(base).__name__}"
    if unusual := shape_of(base).unusual:
        return f"the base has {unusual[0]}"
    if len({parameter.device for parameter in base.parameters()}) > 1:
        return "the model is spread over several devices"
    return None


def why_not_plain(model: PeftModel, name: str) -> str | None:
    """What an adapter is beside plain LoRA on the linear layers of the blocks, as a phrase; None if it is just that."""
    config = model.peft_config[name]
    if config.modules_to_save:
        return "lora.modules_to_save trains whole modules"
    if config.bias != "none":
        return f"lora.bias={config.bias} trains biases of the base, which stay changed where the adapter is off"
    base = model.get_base_model()
    projections = {id(layer) for parts in family_of(base).layers(base) for layer in parts.projections}
    for path, module in model.named_modules():
        if not isinstance(module, LoraLayer) or name not in module.scaling:
            continue
        if id(module) not in projections:
            return f"{path.rpartition('.')[2]} is adapted, which is not a linear layer of a block"
        if type(module) is not LoraLinear or name in module.lora_variant:
            return "lora.use_dora" if config.use_dora else "a variant of LoRA is used"
        if module.lora_bias.get(name) or module.fan_in_fan_out:
            return "lora.lora_bias trains biases of the adapter"
        if not isinstance(module.lora_dropout[name], nn.Identity | nn.Dropout):
            return "an unusual dropout is used"
    return None


def lora_linears(base: Any) -> list[LoraLinear]:
    """The adapted linear layers within the layers of a base."""
    layers = family_of(base).layers(base)
    return [layer for parts in layers for layer in parts.projections if isinstance(layer, LoraLinear)]


def adapter_parameters(layer: LoraLinear, name: str = ADAPTER_NAME) -> tuple[nn.Parameter, nn.Parameter]:
    """A [R, in] and B [out, R] of an adapted layer."""
    return layer.lora_A[name].weight, layer.lora_B[name].weight
