"""A projection of a fused layer: a frozen linear layer with its LoRA adapter, forward and backward.

Legend of dimension suffixes: T tokens, K inputs, N outputs, R rank.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from glmtune.ops.back_end import back_end
from glmtune.ops.frozen_linear import FrozenLinear
from glmtune.ops.reference import Mask


class Adapter(NamedTuple):
    """A LoRA adapter: `scaling * dropout(x) @ a.T @ b.T` is added to the output of a frozen linear layer.

    Attributes:
        a: [R, K], in the compute dtype.
        b: [N, R], likewise.
        scaling: Usually `lora_alpha / r`.
        dropout: Probability of the dropout on the input.
    """

    a: Tensor
    b: Tensor
    scaling: float
    dropout: float


class InputGradients(NamedTuple):
    """The gradients from the backward pass of a projection.

    Attributes:
        input: The gradient of its input, without the part in `masked`; None if it is not needed.
        masked: The gradient of the adapter's input after dropout, which is still to be masked; None if there is none.
        low: The gradient of `dropout(x) @ a.T`, from which that of A is computed; None without an adapter.
        b: The gradient of B; None without an adapter.
    """

    input: Tensor | None
    masked: Tensor | None = None
    low: Tensor | None = None
    b: Tensor | None = None


@dataclass(frozen=True)
class Projection:
    """A frozen linear layer with its adapter.

    Attributes:
        linear: The frozen layer, K -> N.
        adapter: Its adapter, if it has one.
        mask: The dropout on the adapter's input, in one call of the layer; None where there is none.
    """

    linear: FrozenLinear
    adapter: Adapter | None = None
    mask: Mask | None = None

    def with_dropout(self, seed: Tensor | None, stream: int) -> "Projection":
        """The projection in one call of its layer.

        Args:
            seed: The seed of the dropout mask, [1] int64; None for no dropout.
            stream: Distinguishes its mask from those of other projections.
        """
        if self.adapter is None or self.adapter.dropout == 0 or seed is None:
            return self
        return replace(self, mask=Mask(self.adapter.dropout, seed, stream))

    def parts(self, cut: int, end: int) -> tuple["Projection", "Projection"]:
        """Outputs up to `cut` and from `cut` up to `end`, as two projections that share A and its dropout."""
        return self._part(0, cut), self._part(cut, end)

    def _part(self, start: int, stop: int) -> "Projection":
        adapter = None if self.adapter is None else self.adapter._replace(b=self.adapter.b[start:stop])
        return Projection(self.linear.part(start, stop), adapter, self.mask)

    # Forward

    def dropped(self, x_TK: Tensor) -> Tensor:
        """The adapter's input: `x` after dropout."""
        return x_TK if self.mask is None else back_end(x_TK).dropout(x_TK, self.mask)

    def low(self, x_TK: Tensor) -> Tensor:
        """The low-rank product, `scaling * dropout(x) @ a.T`, [T, R]; [T, 0] without an adapter."""
        if self.adapter is None:
            return x_TK.new_empty(x_TK.shape[0], 0)
        return _scaled_mm(self.dropped(x_TK), self.adapter.a.T, self.adapter.scaling)

    def output(self, x_TK: Tensor, low_TR: Tensor, residual_TN: Tensor | None = None) -> Tensor:
        """The output of the layer with its adapter, [T, N], plus a residual."""
        result = self.linear.product(x_TK, residual_TN)
        return result if self.adapter is None else result.addmm_(low_TR, self.adapter.b.T)

    # Backward

    def backward(self, grad_TN: Tensor, low_TR: Tensor, needs_input: bool) -> InputGradients:
        """The backward pass.

        Args:
            grad_TN: The gradient of the output.
            low_TR: The result of `low`.
            needs_input: Whether the gradient of the input is needed.
        """
        input_grad = self.linear.input_gradient(grad_TN) if needs_input else None
        if self.adapter is None:
            return InputGradients(input_grad)
        b_grad = back_end(grad_TN).wide_product(grad_TN.T, low_TR)
        return self._from_low(self.low_gradient(grad_TN), input_grad, b_grad)

    def backward_of_parts(
        self,
        parts: tuple["Projection", "Projection"],
        grads: tuple[Tensor, Tensor],
        indices: Tensor,
        low_TR: Tensor,
        needs_input: bool,
    ) -> InputGradients:
        """As `backward`, where the first of two parts was computed on some of the tokens.

        Args:
            parts: The result of `parts`.
            grads: The gradients of their outputs, [Q, cut] and [T, N - cut].
            indices: The tokens of the first part, [Q].
            low_TR: The result of `low` for all tokens.
            needs_input: Whether the gradient of the input is needed.
        """
        (first, second), (first_grad, second_grad) = parts, grads
        input_grad = None
        if needs_input:
            input_grad = second.linear.input_gradient(second_grad)
            input_grad.index_add_(0, indices, first.linear.input_gradient(first_grad))
        if self.adapter is None:
            return InputGradients(input_grad)
        low_grad = second.low_gradient(second_grad)
        low_grad.index_add_(0, indices, first.low_gradient(first_grad))
        product = back_end(low_grad).wide_product
        b_grad = torch.cat((product(first_grad.T, low_TR.index_select(0, indices)), product(second_grad.T, low_TR)))
        return self._from_low(low_grad, input_grad, b_grad)

    def low_gradient(self, grad_TN: Tensor) -> Tensor:
        """The gradient of `dropout(x) @ a.T`, [T, R]; only with an adapter."""
        assert self.adapter is not None
        return _scaled_mm(grad_TN, self.adapter.b, self.adapter.scaling)

    def _from_low(self, low_grad_TR: Tensor, input_grad_TK: Tensor | None, b_grad: Tensor) -> InputGradients:
        """Backward pass through A; without dropout its contribution is added to the gradient of the input in place."""
        assert self.adapter is not None
        masked = None
        if input_grad_TK is not None and self.mask is not None:
            masked = low_grad_TR @ self.adapter.a
        elif input_grad_TK is not None:
            input_grad_TK.addmm_(low_grad_TR, self.adapter.a)
        return InputGradients(input_grad_TK, masked, low_grad_TR, b_grad)


def _scaled_mm(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """`scale * left @ right` in a single operation."""
    return torch.addmm(left.new_empty(1), left, right, beta=0, alpha=scale)
