"""Canaries: the private parts of torch that glmtune.compat relies on are there, and do what they did."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from canary import changed
from glmtune import compat
from glmtune.loading.formats import Nf4Weights

TORCH = "torch 2.13"


@pytest.mark.parametrize(
    ("name", "inputs", "keywords", "num_outputs"),
    [
        (
            "_flash_attention_forward",
            "query key value cum_seq_q cum_seq_k max_q max_k dropout_p is_causal return_debug_mask",
            {"scale"},
            5,
        ),
        (
            "_flash_attention_backward",
            "grad_out query key value out logsumexp cum_seq_q cum_seq_k max_q max_k dropout_p is_causal rng_state "
            "unused",
            {"scale"},
            3,
        ),
    ],
)
def test_flash_attention_takes_and_gives_what_it_did(
    name: str, inputs: str, keywords: set[str], num_outputs: int
) -> None:
    assert hasattr(torch.ops.aten, name), changed(TORCH, f"torch.ops.aten.{name} is gone")
    schema = getattr(torch.ops.aten, name).default._schema
    positional = [argument.name for argument in schema.arguments if not argument.kwarg_only]
    assert positional == inputs.split(), changed(TORCH, f"{name} takes other arguments")
    assert keywords <= {argument.name for argument in schema.arguments if argument.kwarg_only}
    assert len(schema.returns) == num_outputs, changed(TORCH, f"{name} returns something else")


def test_flash_attention_returns_values_gradients_and_log_sum_exp_in_their_shapes() -> None:
    bounds = torch.tensor([0, 4, 10], dtype=torch.int32, device="meta")
    query, key, value = (torch.empty(10, heads, 16, dtype=torch.bfloat16, device="meta") for heads in (4, 2, 2))
    segments = (bounds, bounds, 6, 6, 0.25)
    output, log_sum_exp = compat.flash_attention_forward(query, key, value, *segments)
    assert (output.shape, log_sum_exp.shape, log_sum_exp.dtype) == ((10, 4, 16), (4, 10), torch.float32), changed(
        TORCH, "flash attention over segments returns other shapes"
    )
    gradients = compat.flash_attention_backward(query, query, key, value, output, log_sum_exp, *segments)
    assert [gradient.shape for gradient in gradients] == [query.shape, key.shape, value.shape]


def test_each_of_many_tensors_is_added_to() -> None:
    totals = [torch.ones(2), torch.zeros(3)]
    compat.add_to_each(totals, (torch.ones(2), torch.ones(3)))
    assert [t.tolist() for t in totals] == [[2, 2], [1, 1, 1]], changed(TORCH, "torch._foreach_add_ does not add")


def test_each_of_many_tensors_is_copied_into_another_dtype() -> None:
    targets = [torch.zeros(2, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.bfloat16)]
    compat.copy_to_each(targets, [torch.full((2,), 1.5), torch.ones(3)])
    assert [t.tolist() for t in targets] == [[1.5, 1.5], [1, 1, 1]], changed(
        TORCH, "torch._foreach_copy_ does not copy"
    )


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_a_fused_step_that_is_to_be_skipped_changes_nothing(kind: type[torch.optim.Optimizer]) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = kind([weight], lr=0.1, fused=True)  # type: ignore[call-arg]
    for is_skipped in (False, True):
        before = weight.detach().clone()
        weight.grad = torch.full((3,), float("nan") if is_skipped else 1.0)
        compat.skip_fused_step(optimizer, torch.tensor(is_skipped))
        optimizer.step()
        assert torch.equal(weight, before) == is_skipped, changed(TORCH, "fused optimisers do not read found_inf")


def test_a_schedule_says_the_rates_that_it_was_put_to() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = LambdaLR(optimizer, lambda step: 1 / (step + 1))
    fresh = dict(scheduler.state_dict())
    assert "_last_lr" in fresh, changed(TORCH, "a schedule's state has no _last_lr")
    compat.put_schedule(scheduler, fresh, 3, [0.25])
    assert scheduler.get_last_lr() == [0.25], changed(TORCH, "get_last_lr returns something other than _last_lr")
    optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == [pytest.approx(0.2)]


def test_moving_a_module_goes_through_apply() -> None:
    calls = []

    class Spied(nn.Linear):
        def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
            calls.append(fn)
            return super()._apply(fn, recurse)

    module = Spied(2, 2)
    for move in (lambda: module.to("meta"), module.half):
        calls.clear()
        move()
        assert calls, changed(TORCH, f"nn.Module moves without _apply, which {Nf4Weights.__name__} overrides")
