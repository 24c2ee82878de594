"""Frozen bases in fewer bits.

    fp8    1 byte a weight, a scale for each output; multiplied as it is (Hopper and newer)
    int8   1 byte a weight, a scale for each output; written out in the model's dtype for each product
    nf4    4.127 bits a weight: 16 levels, a scale for each 64 weights, itself in 8 bits; written out likewise

int8 and nf4 are bitsandbytes' formats. Adapters stay fp32; embedding, norms, biases and output layer stay in the
model's dtype.
"""

from collections.abc import Mapping
from functools import cached_property
from importlib import import_module, util
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from glmtune.adapters.lora import changes_base
from glmtune.errors import ConfigError, ModelError, summarise_faults
from glmtune.models.families import family_of
from glmtune.ops import Fp8Linear, FrozenLinear, PackedLinear, Scratch
from glmtune.ops.back_end import back_end

Quantize = Literal["none", "fp8", "int8", "nf4"]

HOW_TO_INSTALL = "pip install -c constraints.txt -e '.[quant]'"

# Weights that share a scale, and scales that share theirs: bitsandbytes' and QLoRA's own choice.
NF4_BLOCK, NF4_NESTED_BLOCK = 64, 256


class QuantizedLinear(nn.Linear):
    """A linear layer whose frozen weight is held in fewer bits.

    It counts as a `nn.Linear`, so that PEFT puts adapters on it; `weight` is the values' bytes, and not of a
    floating-point type, in which PEFT would make new adapters.

    Args:
        linear: The layer that it stands for; its weight may be on the meta device.
        weight: The weight to hold, [N, K], on the device that it is to be held on.
    """

    def __init__(self, linear: nn.Linear, weight: Tensor) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.bias = linear.bias
        self.weight = nn.Parameter(self._pack(weight.detach()), requires_grad=False)

    def _pack(self, weight: Tensor) -> Tensor:
        """The values' bytes; whatever else belongs to them is kept beside."""
        raise NotImplementedError

    def _keep_scales(self, scales: Tensor) -> None:
        # Bit for bit as whole numbers: `model.bfloat16()` would round floating-point buffers.
        self.register_buffer("scale_bits", scales.float().view(torch.int32))

    @property
    def scales(self) -> Tensor:
        """The scale of each output, [N] fp32."""
        return self.get_buffer("scale_bits").view(torch.float32)

    @property
    def frozen(self) -> FrozenLinear:
        """The weight, wherever the module has been moved to."""
        raise NotImplementedError

    @property
    def _frozen_bias(self) -> Tensor | None:
        return None if self.bias is None else self.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., K] to [..., N]; differentiable in `x`."""
        output: Tensor = _FrozenProduct.apply(x.flatten(0, -2), self.frozen)
        return output.unflatten(0, x.shape[:-1])


class Fp8Weights(QuantizedLinear):
    """fp8 (e4m3), [N, K] bytes."""

    def _pack(self, weight: Tensor) -> Tensor:
        packed = Fp8Linear.quantize(weight, None)
        self._keep_scales(packed.scales)
        return packed.values.view(torch.uint8)

    @property
    def frozen(self) -> FrozenLinear:
        """As the base class."""
        return Fp8Linear(self.weight.view(torch.float8_e4m3fn), self.scales, self._frozen_bias)


class _WrittenOut(QuantizedLinear):
    """A format that is written out for each product.

    Args:
        linear: As the base class.
        weight: Likewise.
        scratch: The memory for that, shared by all layers of a model.
    """

    def __init__(self, linear: nn.Linear, weight: Tensor, scratch: Scratch) -> None:
        super().__init__(linear, weight)
        self._scratch = scratch

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight that it stands for."""
        return self.out_features, self.in_features

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.weight.device

    def write_to(self, output_NK: Tensor) -> None:
        """As `PackedWeight`."""
        raise NotImplementedError

    @property
    def frozen(self) -> FrozenLinear:
        """As the base class."""
        return PackedLinear(self, self._scratch, self._frozen_bias)


class Int8Weights(_WrittenOut):
    """int8, [N, K]: the largest weight of each output is 127."""

    def _pack(self, weight: Tensor) -> Tensor:
        # The kernel takes float16 alone; what that rounds to zero, int8 does too.
        values, largest, _ = _bitsandbytes("int8").int8_vectorwise_quant(weight.half())
        self._keep_scales(largest / 127)
        return values

    def write_to(self, output_NK: Tensor) -> None:
        """As `PackedWeight`."""
        back_end(output_NK).scale_rows(self.weight, self.scales, output_NK)


class Nf4Weights(_WrittenOut):
    """nf4 with nested scales, two weights a byte, [N * K / 2, 1]."""

    def _pack(self, weight: Tensor) -> Tensor:
        values, self._state = _bitsandbytes("nf4").quantize_4bit(
            weight.contiguous(), blocksize=NF4_BLOCK, compress_statistics=True, quant_type="nf4"
        )
        return values

    @cached_property
    def _dequantize(self) -> Any:
        return _bitsandbytes("nf4").dequantize_4bit

    def write_to(self, output_NK: Tensor) -> None:
        """As `PackedWeight`."""
        self._state.dtype = output_NK.dtype
        if output_NK.is_cuda:
            self._dequantize(self.weight, self._state, out=output_NK)
        else:  # has no such variant
            output_NK.copy_(self._dequantize(self.weight, self._state))

    def _apply(self, fn: Any, recurse: bool = True) -> "Nf4Weights":
        super()._apply(fn, recurse)
        self._state.to(self.weight.device)
        return self


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TK: Tensor, linear: FrozenLinear) -> Tensor:
        ctx.linear = linear
        return linear.product(x_TK)

    @staticmethod
    def backward(ctx: Any, grad_TN: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.linear.input_gradient(grad_TN), None


def check_quantize(quantize: Quantize, lora: Mapping[str, Any]) -> None:
    """Makes sure that an adapter can be trained on a quantised base, before anything is loaded.

    Args:
        quantize: The format.
        lora: Arguments of `peft.LoraConfig`.

    Raises:
        ConfigError: It asks for something that needs the base's weights themselves, all faults in one message; or the
            package that the format takes is not installed.
    """
    check_adapter(quantize, lora)
    if quantize in ("int8", "nf4"):
        _bitsandbytes(quantize)


def check_adapter(quantize: Quantize, lora: Mapping[str, Any]) -> None:
    """`check_quantize` without looking for the package.

    Raises:
        ConfigError: There is no such format, or the adapter needs the base's weights themselves.
    """
    _check_name(quantize)
    faults = [f"lora.{key} cannot be used with model.quantize={quantize}" for key in unquantizable(lora)]
    if faults and quantize != "none":
        raise ConfigError(summarise_faults("configuration", faults))


def unquantizable(lora: Mapping[str, Any]) -> list[str]:
    """The settings of `peft.LoraConfig` that need the base's weights themselves."""
    unfit = {
        "use_dora": lora.get("use_dora"),
        "modules_to_save": lora.get("modules_to_save"),
        "bias": lora.get("bias", "none") != "none",
        "init_lora_weights": changes_base(lora.get("init_lora_weights")),
        "kasa_config": lora.get("kasa_config"),
    }
    return [key for key, is_set in unfit.items() if is_set]


def has_bitsandbytes() -> bool:
    """Whether int8 and nf4 are to be had."""
    return util.find_spec("bitsandbytes") is not None


def check_format(quantize: Quantize, config: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Makes sure that a device can compute with a base in a format.

    Args:
        quantize: The format.
        config: The base's configuration.
        dtype: What is computed in.
        device: Where.

    Raises:
        ConfigError: There is no such format, or the device cannot multiply in it.
        ModelError: A width of the model does not fit the format.
    """
    _check_name(quantize)
    if quantize == "fp8" and device.type == "cuda":
        if torch.cuda.get_device_capability(device) < (9, 0):
            name = torch.cuda.get_device_name(device)
            raise ConfigError(f"model.quantize=fp8 needs a Hopper or newer GPU; this is a {name}")
        if dtype != torch.bfloat16:
            raise ConfigError("model.quantize=fp8 computes in bfloat16; leave model.dtype=auto")
    if quantize not in ("fp8", "nf4"):
        return
    with torch.device("meta"):
        linears = block_linears(family_of(config).model_class(config))
    for name, linear in linears.items():
        shape = f"{name.rpartition('.')[2]} is {linear.in_features} x {linear.out_features}"
        if quantize == "fp8" and (linear.in_features % 16 or linear.out_features % 16):
            raise ModelError(f"model.quantize=fp8 needs widths that are multiples of 16; {shape}")
        if quantize == "nf4" and linear.in_features * linear.out_features % NF4_BLOCK:
            raise ModelError(f"model.quantize=nf4 needs weights in multiples of {NF4_BLOCK}; {shape}")


class Quantizer:
    """Quantises the layers of one model, one weight after the other.

    Args:
        model: The base, without adapters; linear layers of its blocks are replaced one by one.
        quantize: The format.
    """

    def __init__(self, model: PreTrainedModel, quantize: Quantize) -> None:
        self._model = model
        self._quantize = quantize
        self._scratch = Scratch()
        self._names = set(block_linears(model)) if quantize != "none" else set()

    def wants(self, parameter_name: str) -> bool:
        """Whether a parameter, by its full name, is a weight to be quantised."""
        module_name, _, name = parameter_name.rpartition(".")
        return name == "weight" and module_name in self._names

    def put(self, parameter_name: str, weight: Tensor) -> None:
        """Puts a layer with the quantised weight in the place of the linear layer that had it.

        Args:
            parameter_name: The weight's full name.
            weight: [N, K], on the device that it is to be held on; not needed afterwards.
        """
        name = parameter_name.rpartition(".")[0]
        linear = self._model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        if self._quantize == "fp8":
            quantized: QuantizedLinear = Fp8Weights(linear, weight)
        else:
            format_class = Int8Weights if self._quantize == "int8" else Nf4Weights
            quantized = format_class(linear, weight, self._scratch)
            self._scratch.take((linear.out_features, linear.in_features), weight.dtype, weight.device)
        self._model.set_submodule(name, quantized)


def quantize_layers(model: PreTrainedModel, quantize: Quantize) -> None:
    """Replaces the linear layers of all blocks; embedding, norms and output layer stay as they are.

    Args:
        model: The base, without adapters, on its device. Changed in place.
        quantize: The format.

    Raises:
        ConfigError: The device cannot multiply in this format, or the package for it is not installed.
        ModelError: A width of the model does not fit the format.
    """
    check_format(quantize, model.config, model.dtype, model.device)
    quantizer = Quantizer(model, quantize)
    for name, parameter in list(model.named_parameters()):
        if quantizer.wants(name):
            quantizer.put(name, parameter)


def block_linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers of all blocks by their full names."""
    prefix = f"{family_of(model).layers_name}."
    return {
        name: module
        for name, module in model.named_modules()
        if name.startswith(prefix) and isinstance(module, nn.Linear)
    }


def _check_name(quantize: str) -> None:
    if quantize not in get_args(Quantize):
        raise ConfigError(f"quantize: expected {', '.join(get_args(Quantize))}; found {quantize!r}")


def _bitsandbytes(quantize: str) -> Any:
    """bitsandbytes' functions.

    Raises:
        ConfigError: It is not installed, or cannot be loaded.
    """
    try:
        return import_module("bitsandbytes.functional")
    except ImportError as error:
        raise ConfigError(f"model.quantize={quantize} needs bitsandbytes ({error}); {HOW_TO_INSTALL}") from error
