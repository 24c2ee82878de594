"""Detects gradients that are not finite, without making the host wait for the device at every step."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# This many overflows in a row take the loss scale from 65,536 to below 1; a smaller scale would not help.
OVERFLOWS_IN_A_ROW = 20


class FiniteGuard:
    """Counts, on the device, the steps whose gradient norm was not finite.

    Args:
        device: Where gradient norms are computed.
        is_scaled: Whether the loss is scaled (float16): isolated overflows are then normal, and the scaler skips them.
    """

    def __init__(self, device: torch.device, is_scaled: bool) -> None:
        self.is_scaled = is_scaled
        self._num_in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self._first_step = torch.full((), -1, dtype=torch.int64, device=device)

    def observe(self, grad_norm: Tensor, step: int) -> Tensor:
        """Records the gradient norm of a step; the host does not wait for the device.

        Args:
            grad_norm: The norm of all gradients, a scalar, the same on all processes.
            step: The optimiser step of the gradients, counted from 1.

        Returns:
            Whether to skip the step, as a boolean scalar on the device.
        """
        is_bad = ~torch.isfinite(grad_norm.detach())
        is_first = is_bad & (self._num_in_a_row == 0)
        self._first_step = torch.where(is_first, step, self._first_step)
        self._num_in_a_row = torch.where(is_bad | self._is_stuck(), self._num_in_a_row + 1, 0)
        return is_bad

    def bad_step(self) -> int | None:
        """The first step with gradients that were not finite; None if there is none. The host waits for the device."""
        return int(self._first_step) if bool(self._is_stuck()) else None

    def _is_stuck(self) -> Tensor:
        return self._num_in_a_row >= (OVERFLOWS_IN_A_ROW if self.is_scaled else 1)


def probable_cause(
    *, base_dtype: torch.dtype, losses: Sequence[float], learning_rate: float, max_grad_norm: float
) -> str:
    """Describes the probable cause of a loss or gradient that is not finite, and what to do.

    Args:
        base_dtype: The dtype of the base.
        losses: The losses logged so far, oldest first.
        learning_rate: The peak learning rate.
        max_grad_norm: The norm that gradients are clipped to; 0 for no clipping.
    """
    finite = [loss for loss in losses if math.isfinite(loss)]
    if base_dtype == torch.float16:
        return "float16 overflows beyond 65,504. Use model.dtype=bfloat16 (or float32 where that is not supported)"
    if len(finite) >= 2 and finite[-1] > 1.5 * min(finite):
        clipping = "" if max_grad_norm > 0 else " train.max_grad_norm=1.0"
        return (
            f"the loss had been growing, from {min(finite):.3g} to {finite[-1]:.3g}: the learning rate of "
            f"{learning_rate:g} is too high. Try train.learning_rate={learning_rate / 10:g}{clipping}"
        )
    if not finite:
        return (
            "it has been so from the start: the base's weights may hold values that are not finite, or the "
            f"learning rate of {learning_rate:g} is far too high. Check that the base answers: glmtune chat BASE"
        )
    return (
        "the loss was fine before, so look at the samples of that step (glmtune data check), or at the learning rate "
        f"of {learning_rate:g}"
    )
