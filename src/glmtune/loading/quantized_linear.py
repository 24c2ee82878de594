"""Linear layers whose frozen weight is held in fewer bits; int8 and nf4 are bitsandbytes' formats."""

from functools import cached_property
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from glmtune.errors import ConfigError
from glmtune.ops import DequantizedLinear, Fp8Linear, FrozenLinear, Scratch
from glmtune.ops.back_end import back_end
from glmtune.ops.frozen_linear import Beside, DenseLinear
from glmtune.ops.reference import Nf4Weight

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
        self.weight = nn.Parameter(self._quantize(weight.detach()), requires_grad=False)

    def _quantize(self, weight: Tensor) -> Tensor:
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

    def _quantize(self, weight: Tensor) -> Tensor:
        quantized = Fp8Linear.quantize(weight, None)
        self._keep_scales(quantized.scales)
        return quantized.values.view(torch.uint8)

    @property
    def frozen(self) -> FrozenLinear:
        """As the base class."""
        return Fp8Linear(self.weight.view(torch.float8_e4m3fn), self.scales, self._frozen_bias)


class _Dequantized(QuantizedLinear):
    """A format that is dequantised into a buffer for each product.

    Args:
        linear: As the base class.
        weight: Likewise.
        scratch: The dequantisation buffer, shared by all layers of a model.
    """

    def __init__(self, linear: nn.Linear, weight: Tensor, scratch: Scratch) -> None:
        super().__init__(linear, weight)
        self._scratch = scratch

    def write_to(self, output_NK: Tensor) -> None:
        """Dequantises the weight into `output_NK`, in its dtype."""
        raise NotImplementedError

    def _dequantized(self, dtype: torch.dtype) -> Tensor:
        output = self._scratch.take((self.out_features, self.in_features), dtype, self.weight.device)
        self.write_to(output)
        return output

    def row_product(self, x_1K: Tensor, bias: Tensor | None, beside: Beside) -> Tensor:
        """`FrozenLinear.row_product`, computed from the quantised weight."""
        raise NotImplementedError

    @property
    def frozen(self) -> FrozenLinear:
        """As the base class."""
        kernel = self.row_product if self.weight.is_cuda and self.in_features % NF4_BLOCK == 0 else None
        return DequantizedLinear(self._dequantized, self._scratch, self._frozen_bias, row_kernel=kernel)


class Int8Weights(_Dequantized):
    """int8, [N, K]: the largest weight of each output is 127."""

    def _quantize(self, weight: Tensor) -> Tensor:
        # The kernel takes float16 alone; what that rounds to zero, int8 does too.
        values, largest, _ = bitsandbytes("int8").int8_vectorwise_quant(weight.half())
        self._keep_scales(largest / 127)
        return values

    def write_to(self, output_NK: Tensor) -> None:
        """As the base class."""
        back_end(output_NK).scale_rows(self.weight, self.scales, output_NK)

    def row_product(self, x_1K: Tensor, bias: Tensor | None, beside: Beside) -> Tensor:
        """As the base class."""
        result: Tensor = back_end(x_1K).gemv(x_1K, self.weight, scales=self.scales, bias=bias, **beside)
        return result


class Nf4Weights(_Dequantized):
    """nf4 with nested scales, two weights a byte, [N * K / 2, 1]."""

    def _quantize(self, weight: Tensor) -> Tensor:
        values, self._state = bitsandbytes("nf4").quantize_4bit(
            weight.contiguous(), blocksize=NF4_BLOCK, compress_statistics=True, quant_type="nf4"
        )
        return values

    @cached_property
    def _dequantize(self) -> Any:
        return bitsandbytes("nf4").dequantize_4bit

    def write_to(self, output_NK: Tensor) -> None:
        """As the base class."""
        self._state.dtype = output_NK.dtype
        if output_NK.is_cuda:
            self._dequantize(self.weight, self._state, out=output_NK)
        else:  # has no such variant
            output_NK.copy_(self._dequantize(self.weight, self._state))

    def row_product(self, x_1K: Tensor, bias: Tensor | None, beside: Beside) -> Tensor:
        """As the base class."""
        if x_1K.element_size() != 2 or torch.cuda.get_device_capability(x_1K.device) < (8, 0):
            with self._scratch.lock:  # the kernel is for the tensor cores' half precision, from Ampere on
                return DenseLinear(self._dequantized(x_1K.dtype), bias).row_product(x_1K, **beside)
        state = self._state
        nested = state.state2
        weight = Nf4Weight(self.weight, state.absmax, nested.code, nested.absmax, state.offset)
        result: Tensor = back_end(x_1K).gemv_nf4(x_1K, weight, bias=bias, **beside)
        return result

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


def bitsandbytes(quantize: str) -> Any:
    """bitsandbytes' functions.

    Args:
        quantize: The format that they are for.

    Raises:
        ConfigError: It is not installed, or cannot be loaded.
    """
    try:
        return import_module("bitsandbytes.functional")
    except ImportError as error:
        raise ConfigError(f"model.quantize={quantize} needs bitsandbytes ({error}); {HOW_TO_INSTALL}") from error
