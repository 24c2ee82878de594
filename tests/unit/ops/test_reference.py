"""Without these, norms, rotations and activations could drift from the official model's."""

import math

import pytest
import torch
from torch.testing import assert_close

from glmtune.ops import apply_rotary, rms_norm, rotary_cos_sin, swiglu


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rms_norm(generator, dtype) -> None:
    x = (torch.randn(3, 5, 16, generator=generator) * 30).to(dtype)
    weight = torch.randn(16, generator=generator).to(dtype)
    wide = x.double()
    expected = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-2).sqrt() * weight.double()
    result = rms_norm(x, weight, 1e-2)
    assert result.dtype == dtype
    assert_close(result, expected.to(dtype), check_dtype=False)


def test_rms_norm_does_not_overflow_in_half_precision() -> None:
    x = torch.full((1, 64), 60_000.0, dtype=torch.float16)
    assert_close(rms_norm(x, torch.ones(64, dtype=torch.float16), 1e-5), torch.ones(1, 64, dtype=torch.float16))


def test_rotary_is_a_rotation_by_position_times_frequency(generator) -> None:
    positions = torch.tensor([[0, 1, 7], [3, 100, 2]])
    x = torch.randn(2, 3, 4, 16, generator=generator, dtype=torch.float64)
    result = apply_rotary(x, *rotary_cos_sin(positions, 8, 500_000.0, torch.float64))
    expected = x.clone()
    for b, t, pair in ((b, t, pair) for b in range(2) for t in range(3) for pair in range(4)):
        angle = positions[b, t].item() / 500_000.0 ** (2 * pair / 8)
        even, odd = x[b, t, :, 2 * pair], x[b, t, :, 2 * pair + 1]
        expected[b, t, :, 2 * pair] = even * math.cos(angle) - odd * math.sin(angle)
        expected[b, t, :, 2 * pair + 1] = odd * math.cos(angle) + even * math.sin(angle)
    assert_close(result, expected, atol=1e-5, rtol=0)
    assert torch.equal(result[..., 8:], x[..., 8:])
    assert torch.equal(result[0, 0], x[0, 0])  # position 0


def test_rotary_angles_are_the_official_ones_to_the_last_bit() -> None:
    """Far out, one rounding in the frequency is a visible angle."""
    positions = torch.arange(0, 131_072, 997)
    frequencies = 1.0 / (10_000 * 50**1.0) ** (torch.arange(0, 64, 2).float() / 64)
    cos, sin = rotary_cos_sin(positions[None], 64, 500_000.0, torch.float32)
    angles = torch.outer(positions.float(), frequencies)
    assert torch.equal(cos[0], angles.cos())
    assert torch.equal(sin[0], angles.sin())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rotary_keeps_the_dtype_of_its_input(dtype) -> None:
    x = torch.ones(1, 2, 1, 8, dtype=dtype)
    assert apply_rotary(x, *rotary_cos_sin(torch.arange(2)[None], 4, 1e4, torch.float32)).dtype == dtype


def test_swiglu(generator) -> None:
    x = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    gate, up = x[:, :6], x[:, 6:]
    assert_close(swiglu(x), gate / (1 + (-gate).exp()) * up)
