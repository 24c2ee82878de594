"""Whether a model's adapters can be fused into its layers."""

from typing import Any

from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import nn

from glmtune.models.families import FAMILIES, family_of

ADAPTER_NAME = "default"


def why_not_fused(model: PeftModel) -> str | None:
    """What the fused layers do not support about a model, as a phrase; None if they support it."""
    base = model.get_base_model()
    if not any(isinstance(base, family.model_class) for family in FAMILIES):
        return f"the base is a {type(base).__name__}"
    unusual = family_of(base).shape(base.config).unusual
    reason = f"the base has {unusual[0]}" if unusual else _why_not_adapter(model)
    if reason is None and len({parameter.device for parameter in base.parameters()}) > 1:
        reason = "the model is spread over several devices"
    return reason


def _why_not_adapter(model: PeftModel) -> str | None:
    config = model.peft_config[ADAPTER_NAME]
    if list(model.peft_config) != [ADAPTER_NAME]:
        return "there are several adapters"
    if config.modules_to_save:
        return "lora.modules_to_save trains whole modules"
    if config.bias != "none":
        return f"lora.bias={config.bias} trains biases of the base"
    base = model.get_base_model()
    projections = {id(layer) for parts in family_of(base).layers(base) for layer in parts.projections}
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        if id(module) not in projections:
            return f"{name.rpartition('.')[2]} is adapted, which is not a linear layer of a block"
        if type(module) is not LoraLinear or ADAPTER_NAME in module.lora_variant:
            return "lora.use_dora" if config.use_dora else "a variant of LoRA is used"
        if module.lora_bias.get(ADAPTER_NAME) or module.fan_in_fan_out:
            return "lora.lora_bias trains biases of the adapter"
        if not isinstance(module.lora_dropout[ADAPTER_NAME], nn.Identity | nn.Dropout):
            return "an unusual dropout is used"
    trained = {id(weight) for layer in lora_linears(model.get_base_model()) for weight in adapter_parameters(layer)}
    if any(parameter.requires_grad and id(parameter) not in trained for parameter in model.parameters()):
        return "more than LoRA's A and B is trained"
    return None


def lora_linears(base: Any) -> list[LoraLinear]:
    """The adapted linear layers within the layers of a base."""
    layers = family_of(base).layers(base)
    return [layer for parts in layers for layer in parts.projections if isinstance(layer, LoraLinear)]


def adapter_parameters(layer: LoraLinear) -> tuple[nn.Parameter, nn.Parameter]:
    """A [R, in] and B [out, R] of an adapted layer."""
    return layer.lora_A[ADAPTER_NAME].weight, layer.lora_B[ADAPTER_NAME].weight
