"""Without these, a Triton kernel could train an adapter on wrong gradients with nothing to show for it.

Each is held to its twin in `ops/reference`, forward and backward, at odd sizes and in three dtypes.
The twin is given the same inputs in float64, and the kernel's error may be no more than rounding to its dtype.
Without a GPU, `TRITON_INTERPRET=1` runs most of them in Triton's interpreter: not fp8 nor flash attention, and under
NumPy 2.4 not the loops of `sum_slots` and `cross_entropy`.
"""

import os

import pytest
import torch
from torch import Tensor

from glmtune.ops import DenseLinear, Fp8Linear, Segments, label_head, reference
from glmtune.ops.attention import attention_backward, attention_forward, has_flash_kernel
from glmtune.ops.reference import Mask

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available() and not INTERPRETED, reason="needs a CUDA GPU"),
]
DEVICE = "cpu" if INTERPRETED else "cuda"
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 5e-3, torch.float16: 7e-4}
ROWS = [1, 7, 33, 129]
needs_gpu = pytest.mark.skipif(INTERPRETED, reason="needs a GPU: the interpreter has no fp8 and no flash attention")


@pytest.fixture(scope="module")
def kernels():
    from glmtune.ops import kernels

    return kernels


@pytest.fixture(params=TOLERANCE, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def random(*shape: int, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(DEVICE, dtype)


def error(result: Tensor, expected: Tensor) -> float:
    assert result.shape == expected.shape
    difference = (result.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30)
    return float("inf") if difference.isnan() else float(difference)


def assert_near(result: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert result.dtype == dtype
    assert error(result, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("width", [48, 1000, 4096])
def test_rms_norm(kernels, dtype, num_rows: int, width: int) -> None:
    x, grad, residual = (random(num_rows, width, dtype=dtype, seed=seed, scale=3.0) for seed in range(3))
    weight = random(width, dtype=dtype, seed=3)
    wide = [tensor.double() for tensor in (grad, x, weight)]
    assert_near(kernels.rms_norm(x, weight, 1e-5), reference.rms_norm(wide[1], wide[2], 1e-5), dtype)
    for added in (None, residual):
        expected = reference.rms_norm_backward(*wide, 1e-5, None if added is None else added.double())
        assert_near(kernels.rms_norm_backward(grad, x, weight, 1e-5, added), expected, dtype)


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("width", [48, 1000])
def test_dropout_within_other_kernels(kernels, dtype, num_rows: int, width: int) -> None:
    x, grad, through, residual = (random(num_rows, width, dtype=dtype, seed=seed) for seed in range(4))
    gate_up, weight = random(num_rows, 2 * width, dtype=dtype, seed=4), random(width, dtype=dtype, seed=5)
    mask = Mask(0.25, torch.tensor([11], device=DEVICE), 3)
    wide = [tensor.double() for tensor in (grad, x, weight, residual, through)]
    results = [(kernels.rms_norm(x, weight, 1e-5, mask), reference.rms_norm(*wide[1:3], 1e-5, mask))]
    result = kernels.rms_norm_backward(grad, x, weight, 1e-5, residual, through, mask)
    results.append((result, reference.rms_norm_backward(*wide[:3], 1e-5, *wide[3:], mask)))
    pair = kernels.swiglu_backward(grad, gate_up, True, through, mask)
    expected = reference.swiglu_backward(wide[0], gate_up.double(), True, wide[4], mask)
    for each, twin in [*results, *zip(pair, expected, strict=True)]:
        assert error(each, twin) < 2 * TOLERANCE[dtype]  # rounded before and after the dropout


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("width", [1, 48, 1025, 13696])
def test_swiglu(kernels, dtype, num_rows: int, width: int) -> None:
    gate_up, grad = random(num_rows, 2 * width, dtype=dtype), random(num_rows, width, dtype=dtype, seed=1)
    expected = reference.swiglu(gate_up.double())
    assert_near(kernels.swiglu(gate_up), expected, dtype)
    expected_grad, _ = reference.swiglu_backward(grad.double(), gate_up.double(), False)
    for with_output in (False, True):
        result, output = kernels.swiglu_backward(grad, gate_up, with_output)
        assert_near(result, expected_grad, dtype)
        assert (output is not None) == with_output
        if output is not None:
            assert_near(output, expected, dtype)


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize(("num_heads", "num_rotated", "head_dim", "rotary_dim"), [(36, 34, 128, 64), (5, 3, 20, 12)])
@pytest.mark.parametrize("inverse", [False, True])
def test_rotate(kernels, dtype, num_rows, num_heads, num_rotated, head_dim, rotary_dim, inverse) -> None:
    heads = random(num_rows, num_heads + 1, head_dim, dtype=dtype)
    angles = torch.arange(num_rows, device=DEVICE)[:, None] * torch.linspace(0.1, 1, rotary_dim // 2, device=DEVICE)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    expected = heads.double()
    reference.rotate_(expected[:, 1:], cos.double(), sin.double(), num_rotated, inverse)
    kernels.rotate_(heads[:, 1:], cos, sin, num_rotated, inverse)
    assert_near(heads, expected, dtype)


@pytest.mark.parametrize("shape", [(1, 1), (7, 48), (129, 4096)])
@pytest.mark.parametrize("probability", [0.1, 0.75])
@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
@pytest.mark.parametrize("stream", [0, 1, 111])
def test_dropout_has_the_same_mask_on_both_back_ends(kernels, dtype, shape, probability, seed, stream) -> None:
    x, total = random(*shape, dtype=dtype), random(*shape, dtype=dtype, seed=1)
    mask = Mask(probability, torch.tensor([seed], device=DEVICE), stream)
    result, expected = kernels.dropout(x, mask), reference.dropout(x, mask)
    assert torch.equal(result == 0, expected == 0)
    torch.testing.assert_close(result, expected)
    added, expected_sum = total.clone(), total.clone()
    kernels.dropout_add_(added, x, mask)
    reference.dropout_add_(expected_sum, x, mask)
    torch.testing.assert_close(added, expected_sum)


@pytest.mark.parametrize("width", [1, 64, 512])
def test_sum_slots(kernels, dtype, width: int) -> None:
    rows = torch.tensor([*[0, 1, 2] * 40, 5, 3, 7], device=DEVICE)  # nobody gathers rows 4 and 6
    values = random(len(rows), width, dtype=dtype)
    order = rows.argsort(stable=True).int()
    offsets = torch.cat((rows.new_zeros(1), rows.bincount(minlength=9).cumsum(0))).int()
    expected = torch.zeros(9, width, dtype=torch.float64, device=DEVICE).index_add_(0, rows, values.double())
    assert_near(kernels.sum_slots(values, order, offsets), expected, dtype)
    assert_near(reference.sum_slots(values, order, offsets), expected, dtype)


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("width", [3, 640, 65024])
def test_cross_entropy(kernels, dtype, num_rows: int, width: int) -> None:
    logits = random(num_rows, width, dtype=torch.float32, scale=4.0)
    labels = torch.arange(num_rows, device=DEVICE, dtype=torch.int32) * 977 % width
    losses, grad = kernels.cross_entropy(logits, labels, dtype)
    expected_losses, expected_grad = reference.cross_entropy(logits.double(), labels, torch.float64)
    torch.testing.assert_close(losses.double(), expected_losses, atol=1e-5, rtol=1e-6)
    assert_near(grad, expected_grad, dtype)


@pytest.mark.parametrize("num_rows", [1, 33, 1030])
def test_label_head(dtype, num_rows: int) -> None:
    hidden, norm, head = random(num_rows, 64, dtype=dtype), random(64, dtype=dtype), random(500, 64, dtype=dtype)
    labels = torch.arange(num_rows, device=DEVICE, dtype=torch.int32) % 500
    weights = torch.linspace(0.1, 1, num_rows, device=DEVICE)
    results = []
    for wide in (False, True):
        tensors = [tensor.double() if wide else tensor for tensor in (hidden, norm, head)]
        leaf = tensors[0].clone().requires_grad_()
        losses = label_head(leaf, tensors[1], 1e-5, tensors[2], labels)
        (losses * weights).sum().backward()
        results.append((losses.detach(), leaf.grad))
    assert error(results[0][0], results[1][0]) < TOLERANCE[dtype]
    assert error(results[0][1], results[1][1]) < 2 * TOLERANCE[dtype]


def test_wide_product_keeps_its_sums(kernels, dtype) -> None:
    left, right = random(33, 129, dtype=dtype), random(129, 17, dtype=dtype, seed=1)
    if INTERPRETED and dtype != torch.float32:
        pytest.skip("needs a CUDA GPU: torch multiplies into fp32 there alone")
    assert error(kernels.wide_product(left, right), left.double() @ right.double()) < 2e-6


@needs_gpu
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", [(32, 2, 128), (4, 1, 32)])
@pytest.mark.parametrize("is_shared", [False, True])
def test_flash_attention(half: torch.dtype, heads: tuple[int, int, int], is_shared: bool) -> None:
    num_heads, groups, size = heads
    queries, prefix = [5, 1, 64, 129, 17], 40 if is_shared else 0
    keys = [length + prefix for length in queries]
    bounds = [torch.tensor([0, *lengths], device=DEVICE).cumsum(0).int() for lengths in (queries, keys)]
    segments = Segments(*bounds, max(queries), max(keys))
    query = random(sum(queries), num_heads, size, dtype=half)
    key, value = (random(sum(keys), groups, size, dtype=half, seed=seed) for seed in (1, 2))
    grad = random(sum(queries), num_heads, size, dtype=half, seed=3)
    assert has_flash_kernel(query)
    assert not has_flash_kernel(query.double())
    scale = size**-0.5
    output, log_sum_exp = attention_forward(query, key, value, segments, scale)
    wide = [tensor.double() for tensor in (query, key, value)]
    expected, nothing = attention_forward(*wide, segments, scale)
    assert error(output, expected) < 2 * TOLERANCE[half]
    results = attention_backward(grad, query, key, value, output, log_sum_exp, segments, scale)
    expected_grads = attention_backward(grad.double(), *wide, expected, nothing, segments, scale)
    for result, expected_grad in zip(results, expected_grads, strict=True):
        assert error(result, expected_grad) < 2 * TOLERANCE[half]


@needs_gpu
@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0), reason="needs a GPU that multiplies fp8"
)
@pytest.mark.parametrize("num_rows", ROWS)
def test_fp8(kernels, num_rows: int) -> None:
    x, weight = random(num_rows, 144, dtype=torch.bfloat16), random(272, 144, dtype=torch.bfloat16, seed=1)
    scales = torch.linspace(0.5, 2, 144, device=DEVICE)
    for columns in (None, scales):
        values, row_scales = kernels.quantize_rows(x, columns)
        expected_values, expected_scales = reference.quantize_rows(x, columns)
        torch.testing.assert_close(row_scales, expected_scales)
        assert error(values.float() * row_scales, expected_values.float() * expected_scales) < 0.01
    assert torch.equal(kernels.transpose_bytes(values).view(torch.uint8), values.view(torch.uint8).T)
    bias = random(272, dtype=torch.bfloat16, seed=2)
    exact, rounded = DenseLinear(weight.double(), bias.double()), Fp8Linear.quantize(weight, bias)
    residual = random(num_rows, 272, dtype=torch.bfloat16, seed=4)
    grad = random(num_rows, 272, dtype=torch.bfloat16, seed=3)
    on_cpu = Fp8Linear(rounded.values.cpu(), rounded.scales.cpu(), bias.cpu())
    product, back = rounded.product(x, residual), rounded.input_gradient(grad)
    assert error(product.cpu(), on_cpu.product(x.cpu(), residual.cpu())) < 0.01
    assert error(back.cpu(), on_cpu.input_gradient(grad.cpu())) < 0.01
    assert error(product, exact.product(x.double(), residual.double())) < 0.05
    assert error(back, exact.input_gradient(grad.double())) < 0.05


@pytest.mark.parametrize("num_outputs", [2, 50, 4608])
@pytest.mark.parametrize("num_inputs", [64, 100, 4096, 13696])
def test_gemv(kernels, dtype, num_inputs: int, num_outputs: int) -> None:
    x, norm = random(1, num_inputs, dtype=dtype), random(num_inputs, dtype=dtype, seed=1)
    weight = random(num_outputs, num_inputs, dtype=dtype, seed=2, scale=num_inputs**-0.5)
    bias, low, b = (random(*size, dtype=dtype, seed=3) for size in [(num_outputs,), (1, 16), (num_outputs, 16)])
    for is_gated in (False, True):
        residual = random(1, num_outputs // 2 if is_gated else num_outputs, dtype=dtype, seed=4)
        result = kernels.gemv(
            x, weight, bias=bias, norm=(norm, 1e-5), adapter=(low, b), residual_1N=residual, is_gated=is_gated
        )
        expected = reference.gemv(
            x.double(),
            weight.double(),
            bias=bias.double(),
            norm=(norm.double(), 1e-5),
            adapter=(low.double(), b.double()),
            residual_1N=residual.double(),
            is_gated=is_gated,
        )
        assert_near(result, expected, dtype)
    assert_near(kernels.gemv(x, weight), reference.gemv(x.double(), weight.double()), dtype)
    wide = kernels.gemv(x, weight, dtype=torch.float32)
    assert_near(wide, reference.gemv(x.double(), weight.double()), torch.float32)


@pytest.mark.parametrize("held", [torch.int8, pytest.param(torch.float8_e4m3fn, marks=needs_gpu)], ids=str)
@pytest.mark.parametrize("is_gated", [False, True])
def test_gemv_of_eight_bits(kernels, dtype, held: torch.dtype, is_gated: bool) -> None:
    x, weight = random(1, 300, dtype=dtype), (20 * random(46, 300, dtype=torch.float32, seed=1)).to(held)
    scales = random(46, dtype=torch.float32, seed=2, scale=0.01)
    result = kernels.gemv(x, weight, scales=scales, is_gated=is_gated)
    expected = reference.gemv(x.double(), weight.double(), scales=scales.double(), is_gated=is_gated)
    assert_near(result, expected, dtype)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("is_gated", [False, True])
@pytest.mark.parametrize("num_outputs", [8, 86, 4608])
@pytest.mark.parametrize("num_inputs", [64, 192, 4096, 8256, 13696])
def test_gemv_of_nf4(kernels, dtype, num_inputs: int, num_outputs: int, is_gated: bool) -> None:
    """As near to its twin as the product of weights dequantised to its dtype is, and the twin near bitsandbytes."""
    functional = pytest.importorskip("bitsandbytes.functional", reason="needs bitsandbytes")
    quantised = random(num_outputs, num_inputs, dtype=dtype, seed=1, scale=num_inputs**-0.5)
    values, state = functional.quantize_4bit(quantised, blocksize=64, compress_statistics=True, quant_type="nf4")
    nested = state.state2
    weight = reference.Nf4Weight(values, state.absmax, nested.code, nested.absmax, state.offset)
    x, norm = random(1, num_inputs, dtype=dtype), random(num_inputs, dtype=dtype, seed=2)
    bias, low, b = (random(*size, dtype=dtype, seed=3) for size in [(num_outputs,), (1, 16), (num_outputs, 16)])
    residual = random(1, num_outputs // 2 if is_gated else num_outputs, dtype=dtype, seed=4)
    beside = {"bias": bias, "norm": (norm, 1e-5), "adapter": (low, b), "residual_1N": residual, "is_gated": is_gated}
    wide = {
        "bias": bias.double(),
        "norm": (norm.double(), 1e-5),
        "adapter": (low.double(), b.double()),
        "residual_1N": residual.double(),
        "is_gated": is_gated,
    }
    expected = reference.gemv_nf4(x.double(), weight, **wide)
    dense = functional.dequantize_4bit(values, state)
    assert error(expected, reference.gemv(x.double(), dense.double(), **wide)) < TOLERANCE[dtype]
    normed = reference.rms_norm(x, norm, 1e-5)
    eager = reference.gemv(normed, dense, **{**beside, "norm": None})
    allowed = max(1.5 * error(eager, expected), TOLERANCE[dtype])
    assert error(kernels.gemv_nf4(x, weight, **beside), expected) < allowed
    plain = reference.gemv_nf4(x.double(), weight)
    allowed = max(1.5 * error(reference.gemv(x, dense), plain), TOLERANCE[dtype])
    assert error(kernels.gemv_nf4(x, weight), plain) < allowed


SHAPES = {"ChatGLM3": (32, 2, 128), "one group": (4, 1, 64), "a group for each head": (3, 3, 80)}


@pytest.mark.parametrize("num_rows", [1, 3, 70])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_paged_attention(kernels, dtype, shape: tuple[int, int, int], num_rows: int) -> None:
    """Lengths of one key, at and around the borders of blocks, and long ones; values not written are infinite."""
    heads, groups, size = shape
    num_blocks, width = 300, 70
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([1, 15, 16, 17, 64, 65, 700, width * 16])[torch.arange(num_rows) % 8]
    tables = torch.randint(num_blocks, (num_rows, width), generator=generator)
    is_read = torch.zeros(num_blocks * 16, dtype=torch.bool)
    for row, length in enumerate(lengths.tolist()):
        position = torch.arange(length)
        is_read[tables[row, position // 16] * 16 + position % 16] = True
    mixed = random(num_rows, heads + 2 * groups, size, dtype=dtype)
    key, value = (random(num_blocks * 16, groups, size, dtype=dtype, seed=seed) for seed in (1, 2))
    wide = [tensor.double() for tensor in (mixed[:, :heads], key, value)]
    for tensor in (key, value):
        tensor[~is_read.to(DEVICE)] = float("inf")
    places = tables.to(DEVICE, torch.int32), lengths.to(DEVICE, torch.int32)
    result = kernels.paged_attention(mixed[:, :heads], key, value, *places, size**-0.5)
    assert_near(result, reference.paged_attention(*wide, *places, size**-0.5), dtype)


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_store_rotated(kernels, dtype, shape: tuple[int, int, int], num_rows: int) -> None:
    heads, groups, size = shape
    mixed = random(num_rows, heads + 2 * groups, size, dtype=dtype)
    cos, sin = (random(num_rows, size // 4, dtype=dtype, seed=seed) for seed in (1, 2))
    cache = [random(1000, groups, size, dtype=dtype, seed=seed) for seed in (3, 4)]
    slots = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:num_rows].to(DEVICE)
    wide = [tensor.double() for tensor in (mixed, cos, sin, *cache)]
    reference.store_rotated(*wide[:3], slots, *wide[3:])
    kernels.store_rotated(mixed, cos, sin, slots, *cache)
    assert_near(mixed[:, : heads + groups], wide[0][:, : heads + groups], dtype)
    for result, expected in zip(cache, wide[3:], strict=True):
        assert_near(result, expected, dtype)
        untouched = torch.ones(1000, dtype=torch.bool, device=DEVICE).index_fill_(0, slots, False)
        assert torch.equal(result[untouched].double(), expected[untouched])
