"""Without these, parameters that lie flat could be trained in another way than separate ones."""

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from glmtune.training.flat import FlatParameters

SHAPES = ((3, 4), (5,), (2, 3, 2), (1,))


def make() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def loss_of(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    return sum(((number + 1) * each.sin().sum() for number, each in enumerate(parameters)), torch.zeros(()))


@pytest.fixture
def flat() -> FlatParameters:
    return FlatParameters(make())


def test_parameters_stay_the_same_objects_with_the_same_values() -> None:
    parameters = make()
    flat = FlatParameters(parameters)
    assert all(one is other for one, other in zip(flat.parameters, parameters, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(parameters, make(), strict=True))
    assert [tuple(each.shape) for each in parameters] == list(SHAPES)
    assert all(isinstance(each, nn.Parameter) and each.requires_grad for each in parameters)


def test_parameters_are_views_of_the_buffer(flat: FlatParameters) -> None:
    assert flat.flat.numel() == sum(each.numel() for each in flat.parameters)
    with torch.no_grad():
        flat.flat.copy_(torch.arange(30.0))
    assert torch.equal(torch.cat([each.detach().flatten() for each in flat.parameters]), torch.arange(30.0))
    with torch.no_grad():
        flat.parameters[1].fill_(-1)
    assert flat.flat[12:17].tolist() == [-1] * 5


def test_gradients_are_views_of_the_buffer_s_gradient(flat: FlatParameters) -> None:
    flat.begin_step()
    loss_of(flat.parameters).backward()
    separate = make()
    loss_of(separate).backward()
    assert torch.equal(flat.flat.grad, torch.cat([each.grad.flatten() for each in separate]))
    for gradient, parameter in zip(flat.gradients, flat.parameters, strict=True):
        assert parameter.grad.data_ptr() == gradient.data_ptr()
        assert gradient.shape == parameter.shape


def test_gradients_add_up_within_a_step(flat: FlatParameters) -> None:
    flat.begin_step()
    for _ in range(2):
        loss_of(flat.parameters).backward()
    torch.testing.assert_close(flat.parameters[1].grad, 2 * 2 * flat.parameters[1].detach().cos())


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_step_begins_at_zero_wherever_zero_grad_has_left_gradients(flat: FlatParameters, set_to_none: bool) -> None:
    optimizer = torch.optim.SGD([flat.flat], lr=0.1)
    model = nn.ParameterList(flat.parameters)
    flat.begin_step()
    loss_of(flat.parameters).backward()
    first = flat.flat.grad.clone()
    optimizer.zero_grad(set_to_none)
    model.zero_grad(set_to_none)
    flat.begin_step()
    assert flat.flat.grad.eq(0).all()
    loss_of(flat.parameters).backward()
    assert torch.equal(flat.flat.grad, first)


def test_the_gradient_buffer_stays_where_it_is(flat: FlatParameters) -> None:
    """CUDA graphs remember addresses."""
    places = []
    for _ in range(2):
        flat.begin_step()
        places.append([flat.flat.grad.data_ptr(), *(each.data_ptr() for each in flat.gradients)])
        flat.flat.grad = None
    assert places[0] == places[1]


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.SGD])
def test_optimiser_steps_are_those_of_separate_parameters(
    flat: FlatParameters, optimizer_class: type[torch.optim.Optimizer]
) -> None:
    separate = make()
    options = {"lr": 0.1, "weight_decay": 0.3}
    optimizers = optimizer_class([flat.flat], **options), optimizer_class(separate, **options)
    for _ in range(3):
        flat.begin_step()
        optimizers[1].zero_grad()
        for parameters, optimizer in zip((flat.parameters, separate), optimizers, strict=True):
            loss_of(parameters).backward()
            optimizer.step()
    for one, other, before in zip(flat.parameters, separate, make(), strict=True):
        torch.testing.assert_close(one, other)
        assert (one - before).abs().min() > 1e-3


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_is_that_of_separate_parameters(flat: FlatParameters, max_norm: float) -> None:
    separate = make()
    flat.begin_step()
    loss_of(flat.parameters).backward()
    loss_of(separate).backward()
    norms = nn.utils.clip_grad_norm_([flat.flat], max_norm), nn.utils.clip_grad_norm_(separate, max_norm)
    torch.testing.assert_close(*norms)
    assert norms[0] > 0.5
    for one, other in zip(flat.parameters, separate, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_copied_state_does_not_share_memory(flat: FlatParameters) -> None:
    """What a checkpoint holds must not change with the next step."""
    saved = copy.deepcopy(flat.parameters[0])
    with torch.no_grad():
        flat.flat.zero_()
    assert saved.abs().sum() > 0


def test_parameters_that_were_moved_come_back_with_their_values() -> None:
    parameters = make()
    flat = FlatParameters(parameters)
    moved = torch.randn_like(parameters[0])
    parameters[0].data = moved.clone()
    flat.begin_step()
    assert torch.equal(parameters[0], moved)
    flat.flat.data.zero_()
    assert not parameters[0].any()
