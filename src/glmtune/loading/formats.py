"""The formats of a base's layers: each is one object, and this is the only place that lists them.

    none   as published, in the compute dtype
    int8   1 byte a weight, a scale for each output; dequantised into a buffer for each product
    nf4    4.127 bits a weight: 16 levels, a scale for each 64 weights, itself in 8 bits; dequantised likewise
    fp8    1 byte a weight, a scale for each output; multiplied as it is (Hopper and newer)

Adapters stay fp32; embedding, norms, biases and output layer stay in the model's dtype.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from importlib import util
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from glmtune.adapters.lora import changes_base
from glmtune.errors import ConfigError, ModelError, summarise_faults
from glmtune.loading.quantized_linear import (
    NF4_BLOCK,
    NF4_NESTED_BLOCK,
    Fp8Weights,
    Int8Weights,
    Nf4Weights,
    QuantizedLinear,
    bitsandbytes,
)
from glmtune.models.families import family_of
from glmtune.ops import Scratch

Quantize = Literal["none", "int8", "nf4", "fp8"]
# The CUDA compute capability from which on fp8 is multiplied with a scale for each row: Hopper.
FP8_CAPABILITY = (9, 0)
# Rows and columns of linear layers' weights, [N, K] each, by name.
LinearSizes = Mapping[str, tuple[int, int]]


class WeightFormat:
    """A format of frozen weights; this class itself is the published one.

    Attributes:
        name: Its name in `model.quantize`.
        is_dequantized: Whether each product first dequantises its weight into a buffer that all layers share.
        takes_bitsandbytes: Whether bitsandbytes must be installed.
        is_automatic: Whether `model.quantize=auto` may choose it.
        launches_per_layer: How long the host takes for a fused layer, forward and backward, counted in kernels of the
            plainest kind (`x.add_(1)`): passes of 423 rows in results/memory_settings.csv, on a host that took 8 us for
            such a kernel.
        product_speed: How much faster products are than in 16 bits, rounding of activations included.
    """

    name: Quantize = "none"
    is_dequantized = False
    takes_bitsandbytes = False
    is_automatic = True
    launches_per_layer = 200
    product_speed = 1.0

    def weight_bytes(self, num_weights: int, num_outputs: int, dtype: torch.dtype) -> int:
        """Bytes of a linear layer's weight, scales included; `dtype` is the compute dtype."""
        return num_weights * dtype.itemsize

    def traffic_bytes(self, dtype: torch.dtype) -> float:
        """Bytes that a product reads and writes for each weight before it can multiply."""
        return 0.0

    def check(self, linears: LinearSizes, dtype: torch.dtype, device: torch.device) -> None:
        """Checks that a device can compute with a base in this format.

        Args:
            linears: The sizes of the linear layers of the base's blocks, by name.
            dtype: The compute dtype.
            device: The device.

        Raises:
            ConfigError: The device cannot multiply in it.
            ModelError: A width of the model does not fit it.
        """

    def make(self, linear: nn.Linear, weight: Tensor, scratch: Scratch) -> QuantizedLinear:
        """Makes a layer that holds a weight.

        Args:
            linear: The layer that it stands for; its own weight may be on the meta device.
            weight: [N, K], on the device that it is to be held on.
            scratch: The buffer that all layers of a model share.
        """
        raise NotImplementedError


class _Int8(WeightFormat):
    name: Quantize = "int8"
    is_dequantized = True
    takes_bitsandbytes = True
    launches_per_layer = 300

    def weight_bytes(self, num_weights: int, num_outputs: int, dtype: torch.dtype) -> int:
        return num_weights + 4 * num_outputs

    def traffic_bytes(self, dtype: torch.dtype) -> float:
        return 1.0 + dtype.itemsize

    def make(self, linear: nn.Linear, weight: Tensor, scratch: Scratch) -> QuantizedLinear:
        return Int8Weights(linear, weight, scratch)


class _Nf4(WeightFormat):
    name: Quantize = "nf4"
    is_dequantized = True
    takes_bitsandbytes = True
    launches_per_layer = 360

    def weight_bytes(self, num_weights: int, num_outputs: int, dtype: torch.dtype) -> int:
        blocks = num_weights // NF4_BLOCK
        return num_weights // 2 + blocks + 4 * math.ceil(blocks / NF4_NESTED_BLOCK) + 4 * (256 + 16 + 1)

    def traffic_bytes(self, dtype: torch.dtype) -> float:
        return 0.52 + dtype.itemsize

    def check(self, linears: LinearSizes, dtype: torch.dtype, device: torch.device) -> None:
        for name, (rows, columns) in linears.items():
            if rows * columns % NF4_BLOCK:
                size = _size(name, rows, columns)
                raise ModelError(f"model.quantize=nf4 needs weights in multiples of {NF4_BLOCK}; {size}")

    def make(self, linear: nn.Linear, weight: Tensor, scratch: Scratch) -> QuantizedLinear:
        return Nf4Weights(linear, weight, scratch)


class _Fp8(WeightFormat):
    name: Quantize = "fp8"
    is_automatic = False  # activations are rounded too
    launches_per_layer = 330
    product_speed = 1.5  # the cases of 8,192 tokens in results/train_throughput.csv

    def weight_bytes(self, num_weights: int, num_outputs: int, dtype: torch.dtype) -> int:
        return num_weights + 4 * num_outputs

    def traffic_bytes(self, dtype: torch.dtype) -> float:
        return 1.0

    def check(self, linears: LinearSizes, dtype: torch.dtype, device: torch.device) -> None:
        if device.type == "cuda":
            if torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
                name = torch.cuda.get_device_name(device)
                raise ConfigError(f"model.quantize=fp8 needs a Hopper or newer GPU; this is a {name}")
            if dtype != torch.bfloat16:
                raise ConfigError("model.quantize=fp8 computes in bfloat16; leave model.dtype=auto")
        for name, (rows, columns) in linears.items():
            if rows % 16 or columns % 16:
                size = _size(name, rows, columns)
                raise ModelError(f"model.quantize=fp8 needs widths that are multiples of 16; {size}")

    def make(self, linear: nn.Linear, weight: Tensor, scratch: Scratch) -> QuantizedLinear:
        return Fp8Weights(linear, weight)


# The most exact format first.
FORMATS: Mapping[Quantize, WeightFormat] = MappingProxyType(
    {each.name: each for each in (WeightFormat(), _Int8(), _Nf4(), _Fp8())}
)


def weight_format(quantize: str) -> WeightFormat:
    """The format of a name.

    Raises:
        ConfigError: There is none.
    """
    for name, found in FORMATS.items():
        if name == quantize:
            return found
    raise ConfigError(f"quantize: expected {', '.join(FORMATS)}; found {quantize!r}")


def check_quantize(quantize: Quantize, lora: Mapping[str, Any]) -> None:
    """Checks that an adapter can be trained on a quantised base, before anything is loaded.

    Args:
        quantize: The format.
        lora: Arguments of `peft.LoraConfig`.

    Raises:
        ConfigError: It asks for something that needs the base's weights themselves, all faults in one message; or the
            package that the format takes is not installed.
    """
    check_adapter(quantize, lora)
    check_package(quantize)


def check_package(quantize: Quantize) -> None:
    """Checks that the package that a format takes is installed.

    Raises:
        ConfigError: It is not, or there is no such format.
    """
    if weight_format(quantize).takes_bitsandbytes:
        bitsandbytes(quantize)


def check_adapter(quantize: Quantize, lora: Mapping[str, Any]) -> None:
    """`check_quantize` without looking for the package.

    Raises:
        ConfigError: There is no such format, or the adapter needs the base's weights themselves.
    """
    weight_format(quantize)
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
    """Whether bitsandbytes, for int8 and nf4, is installed."""
    return util.find_spec("bitsandbytes") is not None


def check_format(quantize: Quantize, linears: LinearSizes, dtype: torch.dtype, device: torch.device) -> None:
    """Checks that a device can compute with a base in a format.

    Args:
        quantize: The format.
        linears: The sizes of the linear layers of the base's blocks, by name.
        dtype: The compute dtype.
        device: The device.

    Raises:
        ConfigError: There is no such format, or the device cannot multiply in it.
        ModelError: A width of the model does not fit the format.
    """
    weight_format(quantize).check(linears, dtype, device)


def quantizers(model: PreTrainedModel, quantize: Quantize) -> dict[str, Callable[[Tensor], None]]:
    """What quantises the layers of a model, one weight after the other.

    Args:
        model: The base, without adapters; linear layers of its blocks are replaced one by one.
        quantize: The format.

    Returns:
        By the full name of each weight to be quantised, a function that puts a layer with the quantised weight in the
        place of the linear layer that had it. It takes the weight, [N, K], on the device that it is to be held on.
    """
    if quantize == "none":
        return {}
    chosen, scratch = weight_format(quantize), Scratch()
    linears = block_linears(model).items()
    return {f"{name}.weight": partial(_quantize, model, name, linear, chosen, scratch) for name, linear in linears}


def _quantize(
    model: PreTrainedModel, name: str, linear: nn.Linear, chosen: WeightFormat, scratch: Scratch, weight: Tensor
) -> None:
    quantized = chosen.make(linear, weight, scratch)
    if chosen.is_dequantized:
        scratch.take((linear.out_features, linear.in_features), weight.dtype, weight.device)
    model.set_submodule(name, quantized)


def quantize_layers(model: PreTrainedModel, quantize: Quantize) -> None:
    """Replaces the linear layers of all blocks; embedding, norms and output layer stay as they are.

    Args:
        model: The base, without adapters, on its device. Changed in place.
        quantize: The format.

    Raises:
        ConfigError: The device cannot multiply in this format, or the package for it is not installed.
        ModelError: A width of the model does not fit the format.
    """
    check_format(quantize, linear_sizes(model), model.dtype, model.device)
    for name, put in quantizers(model, quantize).items():
        put(model.get_parameter(name))


def block_linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers of all blocks by their full names."""
    prefix = f"{family_of(model).layers_name}."
    return {
        name: module
        for name, module in model.named_modules()
        if name.startswith(prefix) and isinstance(module, nn.Linear)
    }


def linear_sizes(model: PreTrainedModel) -> LinearSizes:
    """The sizes [N, K] of the linear layers of all blocks by their full names; the model may be on the meta device."""
    return {name: (linear.out_features, linear.in_features) for name, linear in block_linears(model).items()}


def _size(name: str, rows: int, columns: int) -> str:
    return f"{name.rpartition('.')[2]} is {columns} x {rows}"
