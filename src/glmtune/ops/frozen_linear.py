"""A linear layer that is not trained, in whatever format its weight is held: the product and its input gradient."""

from dataclasses import dataclass, replace
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor

from glmtune.ops.back_end import back_end


class FrozenLinear(Protocol):
    """What the fused layer wants of a frozen weight."""

    def product(self, x_TK: Tensor, residual_TN: Tensor | None = None) -> Tensor:
        """`x @ weight.T + bias`, plus a residual, [T, N]; both in the dtype of `x`."""

    def input_gradient(self, grad_TN: Tensor) -> Tensor:
        """`grad @ weight`, [T, K]."""

    def part(self, begin: int, end: int) -> "FrozenLinear":
        """The layer's outputs from `begin` up to `end` alone; weights are shared."""


@dataclass(frozen=True)
class DenseLinear:
    """A weight in the dtype that is computed in.

    Attributes:
        weight: [N, K].
        bias: [N], or None.
    """

    weight: Tensor
    bias: Tensor | None = None

    def product(self, x_TK: Tensor, residual_TN: Tensor | None = None) -> Tensor:
        """As `FrozenLinear`; the residual is added to the product's fp32 sums, before they are rounded."""
        weight = self.weight.T
        if residual_TN is None:
            return x_TK @ weight if self.bias is None else torch.addmm(self.bias, x_TK, weight)
        result = torch.addmm(residual_TN, x_TK, weight)
        return result if self.bias is None else result.add_(self.bias)

    def input_gradient(self, grad_TN: Tensor) -> Tensor:
        """As `FrozenLinear`."""
        return grad_TN @ self.weight

    def part(self, begin: int, end: int) -> "DenseLinear":
        """As `FrozenLinear`."""
        return DenseLinear(self.weight[begin:end], None if self.bias is None else self.bias[begin:end])


@dataclass(frozen=True)
class Fp8Linear:
    """A weight in fp8 (e4m3) with a scale for each output; activations and gradients are rounded to fp8 by row.

    One set of values serves both directions: on the way back the scales are multiplied into the gradient before that
    is rounded. Hopper multiplies fp8 only along contiguous rows, so for the input gradient the weight is transposed
    into memory that is given back at once: a copy at memory speed, a few per cent of the product's time.

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
        """Rounds a weight, [N, K]."""
        values, scales = back_end(weight).quantize_rows(weight)
        return cls(values, scales.squeeze(-1), bias)

    def product(self, x_TK: Tensor, residual_TN: Tensor | None = None) -> Tensor:
        """As `FrozenLinear`."""
        ops = back_end(x_TK)
        result: Tensor = ops.scaled_product(*ops.quantize_rows(x_TK), self.values, self.scales, self.bias, x_TK.dtype)
        return result if residual_TN is None else result.add_(residual_TN)

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

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight that the values stand for, [N, K]."""
        return (self.values.float() * self.scales.unsqueeze(-1)).to(dtype)


class PackedWeight(Protocol):
    """A weight in a format that nothing multiplies with; it has to be written out first."""

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight that it stands for: [N, K]."""

    @property
    def device(self) -> torch.device:
        """Where it lies, and where it is written out."""

    def write_to(self, output_NK: Tensor) -> None:
        """Writes the weight out, in the dtype of `output_NK`."""


class Scratch:
    """Memory for one weight at a time, which all packed layers of a model write theirs into by turns.

    What one has written there holds until the next one writes: on one stream, until it has been used.

    Attributes:
        lock: To be held from writing until the product has been asked for, so that threads take turns too.
    """

    def __init__(self) -> None:
        self.lock = Lock()
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def __reduce__(self) -> tuple[type["Scratch"], tuple[()]]:
        return Scratch, ()  # a copied model has memory of its own

    def take(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """The memory as a tensor with any values; grows where it is too small."""
        num_bytes = shape[0] * shape[1] * dtype.itemsize
        if self._bytes.device != device or self._bytes.numel() < num_bytes:
            self._bytes = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        return self._bytes[:num_bytes].view(dtype).view(shape)


@dataclass(frozen=True)
class PackedLinear:
    """A weight that is written out into shared memory for each product, in the dtype that is computed in.

    Attributes:
        weight: The weight.
        scratch: Where it is written out.
        bias: [N], or None.
        rows: Which outputs are meant, from and up to; None for all.
    """

    weight: PackedWeight
    scratch: Scratch
    bias: Tensor | None = None
    rows: tuple[int, int] | None = None

    def product(self, x_TK: Tensor, residual_TN: Tensor | None = None) -> Tensor:
        """As `FrozenLinear`."""
        with self.scratch.lock:
            return self._written_out(x_TK.dtype).product(x_TK, residual_TN)

    def input_gradient(self, grad_TN: Tensor) -> Tensor:
        """As `FrozenLinear`."""
        with self.scratch.lock:
            return self._written_out(grad_TN.dtype).input_gradient(grad_TN)

    def part(self, begin: int, end: int) -> "PackedLinear":
        """As `FrozenLinear`; the whole weight is still written out."""
        return replace(self, rows=(begin, end), bias=None if self.bias is None else self.bias[begin:end])

    def _written_out(self, dtype: torch.dtype) -> DenseLinear:
        output = self.scratch.take(self.weight.shape, dtype, self.weight.device)
        self.weight.write_to(output)
        return DenseLinear(output if self.rows is None else output[slice(*self.rows)], self.bias)
