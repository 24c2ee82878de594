"""Matrix-vector products in Triton for decoding a single stream, where each weight is read once and used once.

Norm, SwiGLU, residual, bias and LoRA's B need no launch of their own, and int8 and fp8 are multiplied without being
dequantised into memory. With these kernels a single stream of ChatGLM3-6B decodes at 0.9 of what reading the weights
once per token allows on an H100 (benchmarks/results/decode.csv).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["num_outputs"])
def _kernel(
    x_ptr,
    weight_ptr,
    scale_ptr,
    bias_ptr,
    norm_ptr,
    low_ptr,
    b_ptr,
    residual_ptr,
    output_ptr,
    num_outputs,
    eps,
    K: tl.constexpr,
    C: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    IS_GATED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    outputs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_output = outputs < num_outputs
    inputs = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    up_total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    squares = tl.zeros((BLOCK_K,), tl.float32)
    pointers = weight_ptr + outputs.to(tl.int64)[:, None] * K + inputs[None, :]
    for start in range(0, K, BLOCK_K):
        is_input = start + inputs < K
        mask = is_output[:, None] & is_input[None, :]
        x = tl.load(x_ptr + start + inputs, is_input, 0.0).to(tl.float32)
        if HAS_NORM:
            squares += x * x
            x *= tl.load(norm_ptr + start + inputs, is_input, 0.0).to(tl.float32)
        weight = tl.load(pointers + start, mask, 0.0, eviction_policy="evict_first").to(tl.float32)
        total += weight * x[None, :]
        if IS_GATED:
            up = tl.load(pointers + start + num_outputs.to(tl.int64) * K, mask, 0.0, eviction_policy="evict_first")
            up_total += up.to(tl.float32) * x[None, :]
    inverse_rms = tl.rsqrt(tl.sum(squares, axis=0) / K + eps) if HAS_NORM else 1.0
    y = finish(total, inverse_rms, outputs, is_output, scale_ptr, bias_ptr, low_ptr, b_ptr, C, HAS_SCALE, HAS_BIAS)
    if IS_GATED:
        up_rows = outputs + num_outputs
        up = finish(
            up_total, inverse_rms, up_rows, is_output, scale_ptr, bias_ptr, low_ptr, b_ptr, C, HAS_SCALE, HAS_BIAS
        )
        y = y * tl.sigmoid(y) * up
    if HAS_RESIDUAL:
        y += tl.load(residual_ptr + outputs, is_output, 0.0).to(tl.float32)
    tl.store(output_ptr + outputs, y.to(output_ptr.dtype.element_ty), is_output)


@triton.jit
def finish(
    total,
    inverse_rms,
    rows,
    is_row,
    scale_ptr,
    bias_ptr,
    low_ptr,
    b_ptr,
    C: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """The sums of products as outputs of the layer: scaled, with bias and adapter."""
    y = tl.sum(total, axis=1) * inverse_rms
    if HAS_SCALE:
        y *= tl.load(scale_ptr + rows, is_row, 0.0).to(tl.float32)
    if HAS_BIAS:
        y += tl.load(bias_ptr + rows, is_row, 0.0).to(tl.float32)
    if C > 0:
        ranks = tl.arange(0, C)
        low = tl.load(low_ptr + ranks).to(tl.float32)
        b = tl.load(b_ptr + rows.to(tl.int64)[:, None] * C + ranks[None, :], is_row[:, None], 0.0).to(tl.float32)
        y += tl.sum(b * low[None, :], axis=1)
    return y


def gemv(
    x_1K: Tensor,
    weight_NK: Tensor,
    *,
    scales: Tensor | None = None,
    bias: Tensor | None = None,
    norm: tuple[Tensor, float] | None = None,
    adapter: tuple[Tensor, Tensor] | None = None,
    residual_1N: Tensor | None = None,
    is_gated: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """As `reference.gemv`."""
    num_rows, num_inputs = weight_NK.shape
    num_outputs = num_rows // 2 if is_gated else num_rows
    output = torch.empty(1, num_outputs, dtype=dtype or x_1K.dtype, device=x_1K.device)
    norm_weight, eps = norm if norm is not None else (x_1K, 0.0)
    low, b = adapter if adapter is not None else (x_1K, x_1K)
    block_n, block_k, num_warps = _blocks(num_inputs, weight_NK.element_size(), is_gated)
    _kernel[(triton.cdiv(num_outputs, block_n),)](
        x_1K,
        weight_NK,
        or_else(scales, x_1K),
        or_else(bias, x_1K),
        norm_weight,
        low,
        b,
        or_else(residual_1N, x_1K),
        output,
        num_outputs,
        eps,
        K=num_inputs,
        C=0 if adapter is None else b.shape[1],
        HAS_SCALE=scales is not None,
        HAS_BIAS=bias is not None,
        HAS_NORM=norm is not None,
        HAS_RESIDUAL=residual_1N is not None,
        IS_GATED=is_gated,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        num_warps=num_warps,
    )
    return output


def _blocks(num_inputs: int, num_bytes: int, is_gated: bool) -> tuple[int, int, int]:
    """Outputs and inputs at once, and warps: about the fastest of 48 on an H100 for ChatGLM3-6B's matrices."""
    block_n, block_k, num_warps = (2, 4096, 4) if num_bytes == 1 and is_gated else (1, 2048, 8)
    return block_n, min(triton.next_power_of_2(num_inputs), block_k), num_warps


def or_else(tensor: Tensor | None, other: Tensor) -> Any:
    """A tensor, or another in its place for a kernel that does not read it."""
    return other if tensor is None else tensor
