"""Frozen linear layers, one class per weight format: the product and its input gradient."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Lock
from typing import Protocol, TypedDict, Unpack

import torch
from torch import Tensor

from glmtune.ops.back_end import back_end


class Beside(TypedDict, total=False):
    """What is computed before and after the product of a single row; the arguments of `reference.gemv`."""

    norm: tuple[Tensor, float] | None
    adapter: tuple[Tensor, Tensor] | None
    residual_1N: Tensor | None
    is_gated: bool


class FrozenLinear(Protocol):
    """The interface that the fused layer needs of a frozen linear layer."""

    def product(self, x_TK: Tensor, residual_TN: Tensor | None = None) -> Tensor:
        """`x @ weight.T + bias` plus a residual, if given, [T, N]; residual and result have the dtype of `x`."""

    def row_product(self, x_1K: Tensor, **beside: Unpack[Beside]) -> Tensor:
        """The product of a single row with what stands before and after it, [1, N], or [1, N / 2] if gated."""

    def input_gradient(self, grad_TN: Tensor) -> Tensor:
        """`grad @ weight`, [T, K]."""

    def part(self, begin: int, end: int) -> "FrozenLinear":
        """The layer restricted to outputs `begin` up to `end`; weights are shared."""


@dataclass(frozen=True)
class DenseLinear:
    """A linear layer whose weight is in the compute dtype.

    Attributes:
        weight: [N, K].
        bias: [N], or None.
    """

    weight: Tensor
    bias: Tensor | None = None

    def product(self, x_TK: Tensor, residual_TN: Tensor | None = None) -> Tensor:
        """As `FrozenLinear`; the residual is added to the fp32 accumulators, before they are rounded."""
        weight = self.weight.T
        if residual_TN is None:
            return x_TK @ weight if self.bias is None else torch.addmm(self.bias, x_TK, weight)
        result = torch.addmm(residual_TN, x_TK, weight)
        return result if self.bias is None else result.add_(self.bias)

    def row_product(self, x_1K: Tensor, **beside: Unpack[Beside]) -> Tensor:
        """As `FrozenLinear`."""
        result: Tensor = back_end(x_1K).gemv(x_1K, self.weight, bias=self.bias, **beside)
        return result

    def input_gradient(self, grad_TN: Tensor) -> Tensor:
        """As `FrozenLinear`."""
        return grad_TN @ self.weight

    def part(self, begin: int, end: int) -> "DenseLinear":
        """As `FrozenLinear`."""
        return DenseLinear(self.weight[begin:end], None if self.bias is None else self.bias[begin:end])


@dataclass(frozen=True)
class Fp8Linear:
    """A weight in fp8 (e4m3) with a scale per output; activations and gradients are quantised to fp8 row by row.

    The same values serve both passes: in the backward pass the scales are multiplied into the gradient before it is
    quantised. Hopper multiplies fp8 matrices only along contiguous rows, so for the input gradient the weight is
    transposed into a temporary buffer: a memory-bound copy that takes a few per cent of the product's time.

    Attributes:
        values: [N, K], float8_e4m3fn; N and K multiples of 16.
        scales: [N], fp32.
        bias: [N], or None.
    """

    values: Tensor
    scales: Tensor
    bias: Tensor | None = None

    @classmethod
    def quantize(cls, weight: Tensor, bias: Tensor | None) -> "Fp8Linear":
        """Quantises a weight, [N, K]."""
        values, scales = back_end(weight).quantize_rows(weight)
        return cls(values, scales.squeeze(-1), bias)

    def product(self, x_TK: Tensor, residual_TN: Tensor | None = None) -> Tensor:
        """As `FrozenLinear`."""
        ops = back_end(x_TK)
        result: Tensor = ops.scaled_product(*ops.quantize_rows(x_TK), self.values, self.scales, self.bias, x_TK.dtype)
        return result if residual_TN is None else result.add_(residual_TN)

    def row_product(self, x_1K: Tensor, **beside: Unpack[Beside]) -> Tensor:
        """As `FrozenLinear`; the row is not quantised."""
        result: Tensor = back_end(x_1K).gemv(x_1K, self.values, scales=self.scales, bias=self.bias, **beside)
        return result

    def input_gradient(self, grad_TN: Tensor) -> Tensor:
        """As `FrozenLinear`."""
        ops = back_end(grad_TN)
        values, scales = ops.quantize_rows(grad_TN, self.scales)
        transposed = ops.transpose_bytes(self.values)
        result: Tensor = ops.scaled_product(values, scales, transposed, None, None, grad_TN.dtype)
        return result

    def part(self, begin: int, end: int) -> "Fp8Linear":
        """As `FrozenLinear`."""
        bias = None if self.bias is None else self.bias[begin:end]
        return Fp8Linear(self.values[begin:end], self.scales[begin:end], bias)


class Scratch:
    """A dequantisation buffer for one weight at a time, shared by all quantised layers of a model.

    A dequantised weight is valid until the next one is written; on one stream, that is after its product has run.

    Attributes:
        lock: Held from dequantising a weight until its product has been launched, so that threads do not interleave.
    """

    def __init__(self) -> None:
        self.lock = Lock()
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def __reduce__(self) -> tuple[type["Scratch"], tuple[()]]:
        return Scratch, ()  # a copied model gets a buffer of its own

    def take(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """The buffer as an uninitialised tensor; it is reallocated if it is too small."""
        num_bytes = shape[0] * shape[1] * dtype.itemsize
        if self._bytes.device != device or self._bytes.numel() < num_bytes:
            self._bytes = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        return self._bytes[:num_bytes].view(dtype).view(shape)


@dataclass(frozen=True)
class DequantizedLinear:
    """A quantised weight that is dequantised into a shared buffer, in the compute dtype, for each product.

    Attributes:
        dequantize: Dequantises the weight into the buffer, in the dtype that it is given; returns it, [N, K].
        scratch: The buffer, locked until the product has been launched.
        bias: [N], or None.
        outputs: Begin and end of the outputs to compute; None for all.
        row_kernel: Computes `row_product` from the quantised weight, given the row, the bias and what is beside the
            product; None where there is no such kernel.
    """

    dequantize: Callable[[torch.dtype], Tensor]
    scratch: Scratch
    bias: Tensor | None = None
    outputs: tuple[int, int] | None = None
    row_kernel: Callable[[Tensor, Tensor | None, Beside], Tensor] | None = None

    def product(self, x_TK: Tensor, residual_TN: Tensor | None = None) -> Tensor:
        """As `FrozenLinear`."""
        with self.scratch.lock:
            return self._dense(x_TK.dtype).product(x_TK, residual_TN)

    def row_product(self, x_1K: Tensor, **beside: Unpack[Beside]) -> Tensor:
        """As `FrozenLinear`; the weight is not dequantised into memory where its format has a kernel."""
        if self.row_kernel is not None and self.outputs is None:
            return self.row_kernel(x_1K, self.bias, beside)
        with self.scratch.lock:
            return self._dense(x_1K.dtype).row_product(x_1K, **beside)

    def input_gradient(self, grad_TN: Tensor) -> Tensor:
        """As `FrozenLinear`."""
        with self.scratch.lock:
            return self._dense(grad_TN.dtype).input_gradient(grad_TN)

    def part(self, begin: int, end: int) -> "DequantizedLinear":
        """As `FrozenLinear`; the whole weight is still dequantised."""
        return replace(self, outputs=(begin, end), bias=None if self.bias is None else self.bias[begin:end])

    def _dense(self, dtype: torch.dtype) -> DenseLinear:
        weight = self.dequantize(dtype)
        return DenseLinear(weight if self.outputs is None else weight[slice(*self.outputs)], self.bias)
