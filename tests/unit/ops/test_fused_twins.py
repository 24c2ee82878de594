"""Without these, the plain ops that the GPU kernels are held to could be wrong themselves."""

import itertools

import pytest
import torch
from segment_twin import PLAIN, SHARED, Random, explicit_attention, gathered, seed_of, segments_of
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional as F
from torch.testing import assert_close

from glmtune.ops import DenseLinear, Fp8Linear, Segments, reference, rotary_cos_sin, segment_attention
from glmtune.ops.attention import attention_backward, attention_forward
from glmtune.ops.reference import Mask

HIDDEN, HEADS, GROUPS, HEAD_DIM, FFN = 8, 4, 2, 4, 6


# Norm


@pytest.mark.parametrize("has_residual", [False, True])
def test_rms_norm_backward(random: Random, has_residual: bool) -> None:
    x, weight, grad = random(5, HIDDEN).requires_grad_(), random(HIDDEN), random(5, HIDDEN)
    residual = random(5, HIDDEN) if has_residual else None
    reference.rms_norm(x, weight, 1e-2).backward(grad)
    expected = x.grad if residual is None else x.grad + residual
    assert_close(reference.rms_norm_backward(grad, x.detach(), weight, 1e-2, residual), expected)


def test_rms_norm_backward_keeps_the_dtype_of_its_input(random: Random) -> None:
    x, weight, grad = random(5, HIDDEN).bfloat16(), random(HIDDEN).bfloat16(), random(5, HIDDEN).bfloat16()
    result = reference.rms_norm_backward(grad, x, weight, 1e-2, grad)
    wide = reference.rms_norm_backward(grad.double(), x.double(), weight.double(), 1e-2, grad.double())
    assert result.dtype == torch.bfloat16
    assert_close(result, wide.bfloat16(), rtol=1e-2, atol=1e-3)


def test_rms_norm_with_dropout(random: Random) -> None:
    x, weight, mask = random(5, HIDDEN), random(HIDDEN), Mask(0.3, seed_of(5), 2)
    expected = reference.dropout(reference.rms_norm(x, weight, 1e-2), mask)
    assert torch.equal(reference.rms_norm(x, weight, 1e-2, mask), expected)


def test_rms_norm_backward_from_both_sides_of_dropout(random: Random) -> None:
    x, weight, grad, masked_grad = random(5, HIDDEN).requires_grad_(), random(HIDDEN), *random(2, 5, HIDDEN)
    mask = Mask(0.3, seed_of(5), 2)
    normed = reference.rms_norm(x, weight, 1e-2)
    dropped = reference.dropout(normed, mask)
    torch.autograd.backward((normed, dropped), (grad, masked_grad))
    result = reference.rms_norm_backward(grad, x.detach(), weight, 1e-2, None, masked_grad, mask)
    assert_close(result, x.grad)


# Activation


def test_swiglu_backward(random: Random) -> None:
    x, grad = random(5, 2 * FFN).requires_grad_(), random(5, FFN)
    output = reference.swiglu(x)
    output.backward(grad)
    result, again = reference.swiglu_backward(grad, x.detach(), with_output=True)
    assert_close(result, x.grad)
    assert_close(again, output.detach())


def test_swiglu_backward_without_output(random: Random) -> None:
    x, grad = random(5, 2 * FFN), random(5, FFN)
    result, output = reference.swiglu_backward(grad, x, with_output=False)
    assert output is None
    assert torch.equal(result, reference.swiglu_backward(grad, x, with_output=True)[0])


def test_swiglu_backward_from_both_sides_of_dropout(random: Random) -> None:
    x, grad, masked_grad = random(5, 2 * FFN).requires_grad_(), *random(2, 5, FFN)
    mask = Mask(0.3, seed_of(5), 2)
    output = reference.swiglu(x)
    dropped = reference.dropout(output, mask)
    torch.autograd.backward((output, dropped), (grad, masked_grad))
    result, again = reference.swiglu_backward(grad, x.detach(), True, masked_grad, mask)
    assert_close(result, x.grad)
    assert_close(again, dropped.detach())


# Rotation


@pytest.fixture
def rotation() -> tuple[Tensor, Tensor]:
    cos, sin = rotary_cos_sin(torch.tensor([[0, 3, 1, 700, 2]]), HEAD_DIM // 2, 10_000.0, torch.float64)
    return cos[0], sin[0]


def test_rotate_is_apply_rotary_on_the_first_heads(random: Random, rotation: tuple[Tensor, Tensor]) -> None:
    x = random(5, 3, HEAD_DIM)
    turned = x.clone()
    reference.rotate_(turned, *rotation, num_rotated=2)
    assert_close(turned[:, :2], reference.apply_rotary(x[None, :, :2], rotation[0][None], rotation[1][None])[0])
    assert torch.equal(turned[:, 2], x[:, 2])
    assert (turned[1:, :2] - x[1:, :2]).abs().max() > 0.1


def test_rotating_back(random: Random, rotation: tuple[Tensor, Tensor]) -> None:
    x = random(5, 3, HEAD_DIM)
    turned = x.clone()
    reference.rotate_(turned, *rotation, num_rotated=2)
    reference.rotate_(turned, *rotation, num_rotated=2, inverse=True)
    assert_close(turned, x, rtol=0, atol=1e-6)  # cosines and sines are rounded to fp32


def test_rotating_back_is_the_gradient_of_rotating(random: Random, rotation: tuple[Tensor, Tensor]) -> None:
    x, grad = random(5, 3, HEAD_DIM).requires_grad_(), random(5, 3, HEAD_DIM)
    reference.apply_rotary(x[None], rotation[0][None], rotation[1][None])[0].backward(grad)
    reference.rotate_(grad, *rotation, num_rotated=3, inverse=True)
    assert_close(grad, x.grad)


def test_heads_to_rotate_may_lie_apart(random: Random, rotation: tuple[Tensor, Tensor]) -> None:
    wide = random(5, 3, HEAD_DIM)
    part = wide[:, 1:].clone()
    rest = wide[:, 0].clone()
    reference.rotate_(wide[:, 1:], *rotation, num_rotated=1)
    reference.rotate_(part, *rotation, num_rotated=1)
    assert torch.equal(wide[:, 1:], part)
    assert torch.equal(wide[:, 0], rest)


# Dropout


@pytest.mark.parametrize("probability", [0.0, 0.05, 0.5, 0.9])
def test_dropout_drops_the_share_asked_for_and_scales_the_rest(probability: float) -> None:
    dropped = reference.dropout(torch.ones(400, 250, dtype=torch.float64), Mask(probability, seed_of(7), 3))
    is_zero = dropped == 0
    assert is_zero.double().mean().item() == pytest.approx(probability, abs=0.005)  # three deviations of 100,000
    assert_close(dropped[~is_zero], torch.full_like(dropped[~is_zero], 1 / (1 - probability)))


def test_no_row_or_column_is_dropped_more_than_others() -> None:
    is_zero = reference.dropout(torch.ones(400, 400), Mask(0.5, seed_of(7), 3)) == 0
    for dim in (0, 1):
        assert (is_zero.double().mean(dim) - 0.5).abs().max() < 0.12  # 400 of them: five deviations


def test_masks_follow_from_seed_and_stream() -> None:
    def mask(seed: int, stream: int) -> Tensor:
        return reference.dropout(torch.ones(100, 100), Mask(0.5, seed_of(seed), stream)) == 0

    masks = [mask(seed, stream) for seed in (0, 1, 2**31 - 1) for stream in (0, 1, 111)]
    assert torch.equal(masks[4], mask(1, 1))
    for one, other in itertools.combinations(masks, 2):
        assert (one == other).double().mean().item() == pytest.approx(0.5, abs=0.03)  # as of two coins


def test_dropout_add_is_the_gradient_of_dropout(random: Random) -> None:
    x, grad, total = random(30, HIDDEN).requires_grad_(), random(30, HIDDEN), random(30, HIDDEN)
    dropped = reference.dropout(x, Mask(0.3, seed_of(5), 2))
    dropped.backward(grad)
    assert 0 < (dropped == 0).sum() < dropped.numel()
    result = total.clone()
    reference.dropout_add_(result, grad, Mask(0.3, seed_of(5), 2))
    assert_close(result, total + x.grad)


# Gathering, cross entropy, products


def test_sum_slots_is_the_gradient_of_index_select(random: Random) -> None:
    rows = torch.tensor([4, 0, 4, 2, 0, 4])  # rows 1, 3 and 5 are gathered by nobody
    segments = gathered(PLAIN, rows.tolist(), 6)
    x, grad = random(6, 3).requires_grad_(), random(6, 3)
    x.index_select(0, rows).backward(grad)
    result = reference.sum_slots(grad, segments.slot_order, segments.slot_offsets)
    assert_close(result, x.grad)
    assert result[[1, 3, 5]].eq(0).all()


def test_sum_slots_adds_up_in_float32() -> None:
    ones = torch.ones(300, 1, dtype=torch.bfloat16)  # in bfloat16 256 + 1 is 256
    result = reference.sum_slots(ones, torch.arange(300), torch.tensor([0, 300]))
    assert result.dtype == torch.bfloat16
    assert result.item() == 300


def test_cross_entropy(random: Random) -> None:
    logits, labels = (random(5, 11) * 4).requires_grad_(), torch.tensor([0, 10, 3, 3, 7], dtype=torch.int32)
    losses, gradients = reference.cross_entropy(logits.detach(), labels, torch.float64)
    expected = F.cross_entropy(logits, labels.long(), reduction="none")
    expected.sum().backward()
    assert_close(losses, expected.detach())
    assert_close(gradients, logits.grad)


def test_cross_entropy_gives_the_gradient_in_the_dtype_asked_for(random: Random) -> None:
    losses, gradients = reference.cross_entropy(random(2, 11).float(), torch.tensor([0, 10]), torch.bfloat16)
    assert (losses.dtype, gradients.dtype) == (torch.float32, torch.bfloat16)


def test_cross_entropy_of_far_logits_is_finite() -> None:
    losses, gradients = reference.cross_entropy(torch.tensor([[3e4, -3e4]]), torch.tensor([1]), torch.float32)
    assert losses.tolist() == [6e4]
    assert gradients.tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_wide_product_keeps_its_sums(random: Random, dtype: torch.dtype, expected: torch.dtype) -> None:
    left, right = random(3, 40).to(dtype), random(40, 2).to(dtype)
    result = reference.wide_product(left, right)
    assert result.dtype == expected
    assert_close(result, (left.double() @ right.double()).to(expected))


# Attention

ATTENTION_LAYOUTS = {
    "plain": PLAIN,
    "one token each": segments_of([1, 1, 1], [1, 1, 1]),
    "one token among others": segments_of([3, 1, 4], [3, 1, 4]),
    "fewer queries than keys": segments_of([2, 1, 3], [5, 4, 3]),
    "empty segments": segments_of([2, 0, 1, 0], [2, 0, 3, 0]),
}


def attention_inputs(random: Random, segments: Segments) -> list[Tensor]:
    num_queries, num_keys = int(segments.cu_query[-1]), int(segments.cu_key[-1])
    shapes = ((num_queries, HEADS), (num_keys, GROUPS), (num_keys, GROUPS))
    return [random(*shape, HEAD_DIM).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("layout", ATTENTION_LAYOUTS)
def test_attention(random: Random, layout: str) -> None:
    segments = ATTENTION_LAYOUTS[layout]
    inputs = attention_inputs(random, segments)
    expected = explicit_attention(*inputs, segments, 0.7)
    grad = random(*expected.shape)
    expected.backward(grad)
    plain = [x.detach() for x in inputs]
    output, log_sum_exp = attention_forward(*plain, segments, 0.7)
    assert_close(output, expected.detach())
    grads = attention_backward(grad, *plain, output, log_sum_exp, segments, 0.7)
    for result, x in zip(grads, inputs, strict=True):
        assert_close(result, x.grad)


def test_keys_may_serve_several_segments(random: Random) -> None:
    """Gathering by hand and by `key_indices` is the same, the gradient of what is gathered included."""
    inputs = [random(8, heads, HEAD_DIM).requires_grad_() for heads in (HEADS, GROUPS, GROUPS)]
    query, key, value = inputs
    rows = SHARED.key_indices.long()
    expected = explicit_attention(query, key[rows], value[rows], SHARED, 0.7)
    grad = random(*expected.shape)
    expected_grads = torch.autograd.grad(expected, inputs, grad)
    output = segment_attention(query, key, value, SHARED, 0.7)
    assert_close(output, expected)
    for result, wanted in zip(torch.autograd.grad(output, inputs, grad), expected_grads, strict=True):
        assert_close(result, wanted)


@pytest.mark.parametrize("layout", ["plain", "shared", "fewer queries than keys"])
def test_gradients_of_segment_attention(random: Random, layout: str) -> None:
    segments = SHARED if layout == "shared" else ATTENTION_LAYOUTS[layout]
    inputs = attention_inputs(random, segments)
    if layout == "shared":
        inputs[1:] = [x[:8].detach().requires_grad_() for x in inputs[1:]]
    assert gradcheck(lambda *x: segment_attention(*x, segments, 0.7), inputs)


# Frozen linears


def relative_error(result: Tensor, expected: Tensor) -> float:
    return float((result.double() - expected.double()).norm() / expected.double().norm())


def test_fp8_rows_come_back(random: Random) -> None:
    x = random(16, 512) * random(16, 1).exp() * 100
    values, scales = reference.quantize_rows(x)
    assert (values.dtype, scales.dtype, scales.shape) == (torch.float8_e4m3fn, torch.float32, (16, 1))
    back = values.double() * scales.double()
    for row, expected in zip(back, x, strict=True):
        assert relative_error(row, expected) < 0.04
    assert_close(back.abs().amax(-1), x.abs().amax(-1), rtol=1e-5, atol=0)  # the largest is hit


def test_fp8_rows_with_scaled_columns(random: Random) -> None:
    x, columns = random(4, 64), random(64).exp().float()
    values, scales = reference.quantize_rows(x, columns)
    assert relative_error(values.double() * scales, x * columns) < 0.04


def test_fp8_rows_of_zeros() -> None:
    values, scales = reference.quantize_rows(torch.zeros(2, 16))
    assert values.float().eq(0).all()
    assert scales.isfinite().all()
    assert (scales > 0).all()


def test_fp8_of_huge_and_tiny_rows_is_finite() -> None:
    values, scales = reference.quantize_rows(torch.tensor([[1e30, -1e30], [1e-30, 0.0]]))
    assert values.float().isfinite().all()
    assert scales.isfinite().all()


@pytest.fixture
def linears(random: Random) -> tuple[DenseLinear, Fp8Linear]:
    weight, bias = random(48, 64) * random(48, 1).exp(), random(48)
    return DenseLinear(weight, bias), Fp8Linear.quantize(weight, bias)


def test_fp8_linear_is_near_the_dense_one(random: Random, linears: tuple[DenseLinear, Fp8Linear]) -> None:
    dense, fp8 = linears
    x, grad, residual = random(10, 64), random(10, 48), random(10, 48)
    assert relative_error(fp8.product(x), dense.product(x)) < 0.06
    assert relative_error(fp8.product(x, residual), dense.product(x, residual)) < 0.06
    assert relative_error(fp8.input_gradient(grad), dense.input_gradient(grad)) < 0.06
    assert fp8.product(x.bfloat16()).dtype == torch.bfloat16


def test_dense_linear(random: Random) -> None:
    linear, x, residual = DenseLinear(random(5, 3), random(5)), random(4, 3).requires_grad_(), random(4, 5)
    expected = F.linear(x, linear.weight, linear.bias)
    grad = random(4, 5)
    expected.backward(grad)
    assert_close(linear.product(x.detach()), expected.detach())
    assert_close(linear.product(x.detach(), residual.clone()), (expected + residual).detach())
    assert_close(linear.input_gradient(grad), x.grad)


@pytest.mark.parametrize("is_fp8", [False, True])
def test_a_residual_is_left_as_it_was(random: Random, linears: tuple[DenseLinear, Fp8Linear], is_fp8: bool) -> None:
    residual = random(10, 48)
    before = residual.clone()
    linears[is_fp8].product(random(10, 64), residual)
    assert torch.equal(residual, before)


@pytest.mark.parametrize("is_fp8", [False, True])
def test_a_part_gives_some_of_the_outputs(random: Random, linears: tuple[DenseLinear, Fp8Linear], is_fp8: bool) -> None:
    linear, x = linears[is_fp8], random(10, 64)
    assert_close(linear.part(16, 48).product(x), linear.product(x)[:, 16:48])


def test_fp8_input_gradient_of_parts_adds_up(random: Random, linears: tuple[DenseLinear, Fp8Linear]) -> None:
    _, fp8 = linears
    grad = random(10, 48)
    grad[:, 16:] = 0  # then the scales are the same
    assert_close(fp8.part(0, 16).input_gradient(grad[:, :16]), fp8.input_gradient(grad))


def test_dequantizing(linears: tuple[DenseLinear, Fp8Linear]) -> None:
    def dequantized(fp8: Fp8Linear) -> Tensor:
        return (fp8.values.float() * fp8.scales.unsqueeze(-1)).double()

    dense, fp8 = linears
    weight = dequantized(fp8)
    assert relative_error(weight, dense.weight) < 0.04
    assert_close(dequantized(Fp8Linear.quantize(weight, None)), weight, rtol=1e-6, atol=0)


def test_transposing_bytes() -> None:
    x = torch.arange(12, dtype=torch.uint8).view(3, 4)
    result = reference.transpose_bytes(x)
    assert result.is_contiguous()
    assert torch.equal(result, x.T)
