"""RMSNorm in Triton: one program per row reads it once, and the backward pass needs no saved tensor but the input."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from glmtune.ops.dropout import mask_arguments, masked
from glmtune.ops.reference import Mask


@triton.jit(do_not_specialize=["stream"])
def _forward_kernel(
    x_ptr,
    weight_ptr,
    output_ptr,
    eps,
    width,
    seed_ptr,
    stream,
    scale,
    THRESHOLD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    index, is_column = row * width + columns, columns < width
    x = tl.load(x_ptr + index, is_column, 0.0).to(tl.float32)
    weight = tl.load(weight_ptr + columns, is_column, 0.0).to(tl.float32)
    normed = x * tl.rsqrt(tl.sum(x * x, axis=0) / width + eps) * weight
    if THRESHOLD >= 0:
        normed = normed.to(output_ptr.dtype.element_ty).to(tl.float32)  # dropout applies to the rounded output
        normed = masked(normed, index, seed_ptr, stream, scale, THRESHOLD)
    tl.store(output_ptr + index, normed.to(output_ptr.dtype.element_ty), is_column)


@triton.jit(do_not_specialize=["stream"])
def _backward_kernel(
    grad_ptr,
    x_ptr,
    weight_ptr,
    residual_ptr,
    masked_ptr,
    output_ptr,
    eps,
    width,
    seed_ptr,
    stream,
    scale,
    HAS_RESIDUAL: tl.constexpr,
    THRESHOLD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    index, is_column = row * width + columns, columns < width
    x = tl.load(x_ptr + index, is_column, 0.0).to(tl.float32)
    grad = tl.load(grad_ptr + index, is_column, 0.0).to(tl.float32)
    if THRESHOLD >= 0:
        masked_grad = tl.load(masked_ptr + index, is_column, 0.0).to(tl.float32)
        grad += masked(masked_grad, index, seed_ptr, stream, scale, THRESHOLD)
    weight = tl.load(weight_ptr + columns, is_column, 0.0).to(tl.float32)
    inverse_rms = tl.rsqrt(tl.sum(x * x, axis=0) / width + eps)
    normed, scaled = x * inverse_rms, grad * weight
    result = inverse_rms * (scaled - normed * (tl.sum(normed * scaled, axis=0) / width))
    if HAS_RESIDUAL:
        result += tl.load(residual_ptr + index, is_column, 0.0).to(tl.float32)
    tl.store(output_ptr + index, result.to(output_ptr.dtype.element_ty), is_column)


def rms_norm(x: Tensor, weight: Tensor, eps: float, mask: Mask | None = None) -> Tensor:
    """As `reference.rms_norm`, for [T, H], without a gradient."""
    x = x.contiguous()
    output = torch.empty_like(x)
    num_rows, width = x.shape
    block, num_warps = _shape(width)
    seed, stream, scale, threshold = mask_arguments(mask, x)
    _forward_kernel[(num_rows,)](
        x, weight, output, eps, width, seed, stream, scale, THRESHOLD=threshold, BLOCK=block, num_warps=num_warps
    )
    return output


def rms_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual_grad: Tensor | None,
    masked_grad: Tensor | None = None,
    mask: Mask | None = None,
) -> Tensor:
    """As `reference.rms_norm_backward`."""
    grad, x = grad.contiguous(), x.contiguous()
    output = torch.empty_like(x)
    num_rows, width = x.shape
    block, num_warps = _shape(width)
    seed, stream, scale, threshold = mask_arguments(mask, x)
    _backward_kernel[(num_rows,)](
        grad,
        x,
        weight,
        x if residual_grad is None else residual_grad.contiguous(),
        x if masked_grad is None else masked_grad.contiguous(),
        output,
        eps,
        width,
        seed,
        stream,
        scale,
        HAS_RESIDUAL=residual_grad is not None,
        THRESHOLD=threshold,
        BLOCK=block,
        num_warps=num_warps,
    )
    return output


def _shape(width: int) -> tuple[int, int]:
    """Block size and number of warps for rows of a width: up to 16 elements per thread."""
    block = triton.next_power_of_2(width)
    return block, min(max(block // 512, 1), 16)
