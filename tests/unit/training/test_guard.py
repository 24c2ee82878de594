"""Without these, a run could go on for hours after its gradient has become NaN."""

import pytest
import torch

from glmtune.training.guard import OVERFLOWS_IN_A_ROW, FiniteGuard, probable_cause

CPU = torch.device("cpu")
NAN, FINE = torch.tensor(float("nan")), torch.tensor(1.0)


def test_one_bad_step_is_remembered() -> None:
    guard = FiniteGuard(CPU, is_scaled=False)
    assert [bool(guard.observe(norm, step)) for step, norm in enumerate((FINE, NAN, FINE, NAN), 1)] == [0, 1, 0, 1]
    assert guard.bad_step() == 2


def test_infinity_is_bad_too() -> None:
    guard = FiniteGuard(CPU, is_scaled=False)
    assert guard.bad_step() is None
    guard.observe(torch.tensor(float("inf")), 7)
    assert guard.bad_step() == 7


def test_only_persistent_overflow_is_an_error_with_loss_scaling() -> None:
    guard = FiniteGuard(CPU, is_scaled=True)
    for step in range(1, OVERFLOWS_IN_A_ROW):
        guard.observe(NAN, step)
    guard.observe(FINE, OVERFLOWS_IN_A_ROW)
    assert guard.bad_step() is None
    for step in range(100, 100 + OVERFLOWS_IN_A_ROW):
        assert guard.bad_step() is None
        guard.observe(NAN, step)
    assert guard.bad_step() == 100


@pytest.mark.parametrize(
    ("dtype", "losses", "expected"),
    [
        (torch.float16, [2.0], "model.dtype=bfloat16"),
        (torch.bfloat16, [2.0, 1.5, 9.0], "train.learning_rate=0.001"),
        (torch.float32, [], "from the start"),
        (torch.float32, [2.0, 1.9, 1.8], "glmtune data check"),
        (torch.float32, [2.0, float("nan")], "glmtune data check"),
    ],
)
def test_a_run_that_diverged_says_what_to_change(dtype: torch.dtype, losses: list[float], expected: str) -> None:
    cause = probable_cause(base_dtype=dtype, losses=losses, learning_rate=0.01, max_grad_norm=1.0)
    assert expected in cause
