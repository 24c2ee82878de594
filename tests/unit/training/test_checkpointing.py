"""Without these, checkpointing could recompute other layers than were planned, or change the gradients."""

from collections.abc import Callable

import pytest
import torch

from glmtune.training.checkpointing import checkpoint_layers
from glmtune.training.packed_model import PackedModel, fuse

Samples = list[dict[str, list[int]]]


@pytest.mark.parametrize("num_checkpointed", [0, 1, 2, 3])
def test_exactly_the_first_layers_are_checkpointed(
    make_adapted: Callable[..., PackedModel], num_checkpointed: int
) -> None:
    model = make_adapted()
    checkpoint_layers(model, num_checkpointed)
    flags = [layer.gradient_checkpointing for layer in model.get_base_model().transformer.encoder.layers]
    assert flags == [index < num_checkpointed for index in range(3)]


@pytest.mark.parametrize("num_checkpointed", [1, 3])
def test_checkpoints_in_the_hosts_memory_change_nothing(
    make_adapted: Callable[..., PackedModel], samples: Samples, packed: Callable, num_checkpointed: int
) -> None:
    expected = packed(make_adapted(target_modules="all-linear"), samples)
    model = make_adapted(target_modules="all-linear").train()
    assert fuse(model) is None
    checkpoint_layers(model, num_checkpointed, offloads=True)
    result = packed(model, samples)
    assert result.loss == pytest.approx(expected.loss, rel=1e-12)
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(result.gradients[name], gradient, rtol=1e-9, atol=1e-12)
