"""Frozen bases in fewer bits."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from glmtune.errors import ConfigError, ModelError, summarise_faults
from glmtune.models.chatglm import ChatGLMForConditionalGeneration
from glmtune.ops import Fp8Linear, FrozenLinear
from glmtune.tuning.lora import changes_base

Quantize = Literal["none", "fp8"]


class QuantizedLinear(nn.Linear):
    """A linear layer whose frozen weight is held in fewer bits.

    It counts as a `nn.Linear`, so that PEFT puts adapters on it; `weight` is the values' bytes.

    Args:
        linear: The layer that it stands for.

    Attributes:
        frozen: The weight and how it multiplies.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        frozen = Fp8Linear.quantize(linear.weight.detach(), None if linear.bias is None else linear.bias.detach())
        # Bytes, not fp8: PEFT would make new adapters in a floating-point weight's own dtype.
        self.weight = nn.Parameter(frozen.values.view(torch.uint8), requires_grad=False)
        self.bias = linear.bias
        self.scales: Tensor
        self.register_buffer("scales", frozen.scales)

    @property
    def frozen(self) -> FrozenLinear:
        """The weight, wherever the module has been moved to."""
        bias = None if self.bias is None else self.bias.detach()
        return Fp8Linear(self.weight.view(torch.float8_e4m3fn), self.scales, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., K] to [..., N]; differentiable in `x`."""
        output: Tensor = _FrozenProduct.apply(x.flatten(0, -2), self.frozen)
        return output.unflatten(0, x.shape[:-1])


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TK: Tensor, linear: FrozenLinear) -> Tensor:
        ctx.linear = linear
        return linear.product(x_TK)

    @staticmethod
    def backward(ctx: Any, grad_TN: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.linear.input_gradient(grad_TN), None


def check_quantize(quantize: Quantize, lora: Mapping[str, Any]) -> None:
    """Makes sure that an adapter can be trained on a quantised base.

    Args:
        quantize: The format.
        lora: Arguments of `peft.LoraConfig`.

    Raises:
        ConfigError: It asks for something that needs the base's weights themselves; all faults in one message.
    """
    unfit = {
        "use_dora": lora.get("use_dora"),
        "modules_to_save": lora.get("modules_to_save"),
        "bias": lora.get("bias", "none") != "none",
        "init_lora_weights": changes_base(lora.get("init_lora_weights")),
    }
    faults = [f"lora.{key} cannot be used with model.quantize={quantize}" for key, is_set in unfit.items() if is_set]
    if quantize != "none" and faults:
        raise ConfigError(summarise_faults("configuration", faults))


def quantize_layers(model: ChatGLMForConditionalGeneration, quantize: Quantize) -> None:
    """Replaces the linear layers of all blocks; embedding, norms and output layer stay as they are.

    Args:
        model: The base, without adapters, on its device. Changed in place.
        quantize: The format.

    Raises:
        ConfigError: The device cannot multiply in this format.
        ModelError: A width of the model is no multiple of 16.
    """
    if quantize == "none":
        return
    if model.device.type == "cuda" and torch.cuda.get_device_capability(model.device) < (9, 0):
        name = torch.cuda.get_device_name(model.device)
        raise ConfigError(f"model.quantize=fp8 needs a Hopper or newer GPU; this is a {name}")
    if model.device.type == "cuda" and model.dtype != torch.bfloat16:
        raise ConfigError("model.quantize=fp8 computes in bfloat16; leave model.dtype=auto")
    layers = model.transformer.encoder.layers
    linears = [(name, module) for name, module in layers.named_modules() if isinstance(module, nn.Linear)]
    for name, linear in linears:
        if linear.in_features % 16 or linear.out_features % 16:
            raise ModelError(
                f"model.quantize=fp8 needs widths that are multiples of 16; {name.rpartition('.')[2]} is "
                f"{linear.in_features} x {linear.out_features}"
            )
        layers.set_submodule(name, QuantizedLinear(linear))
