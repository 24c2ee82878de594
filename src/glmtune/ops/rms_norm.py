"""RMSNorm in Triton, one program a row: the row is read once, and nothing but the input is needed for the backward."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _forward_kernel(x_ptr, weight_ptr, output_ptr, eps, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    x = tl.load(x_ptr + row * width + columns, mask, 0.0).to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask, 0.0).to(tl.float32)
    inverse_rms = tl.rsqrt(tl.sum(x * x, axis=0) / width + eps)
    tl.store(output_ptr + row * width + columns, (x * inverse_rms * weight).to(output_ptr.dtype.element_ty), mask)


@triton.jit
def _backward_kernel(
    grad_ptr, x_ptr, weight_ptr, residual_ptr, output_ptr, eps, width, HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    x = tl.load(x_ptr + row * width + columns, mask, 0.0).to(tl.float32)
    grad = tl.load(grad_ptr + row * width + columns, mask, 0.0).to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask, 0.0).to(tl.float32)
    inverse_rms = tl.rsqrt(tl.sum(x * x, axis=0) / width + eps)
    normed, scaled = x * inverse_rms, grad * weight
    result = inverse_rms * (scaled - normed * (tl.sum(normed * scaled, axis=0) / width))
    if HAS_RESIDUAL:
        result += tl.load(residual_ptr + row * width + columns, mask, 0.0).to(tl.float32)
    tl.store(output_ptr + row * width + columns, result.to(output_ptr.dtype.element_ty), mask)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `reference.rms_norm`, for [T, H], without a gradient."""
    x = x.contiguous()
    output = torch.empty_like(x)
    num_rows, width = x.shape
    block, num_warps = _shape(width)
    _forward_kernel[(num_rows,)](x, weight, output, eps, width, BLOCK=block, num_warps=num_warps)
    return output


def rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float, residual_grad: Tensor | None) -> Tensor:
    """As `reference.rms_norm_backward`."""
    grad, x = grad.contiguous(), x.contiguous()
    residual = x if residual_grad is None else residual_grad.contiguous()
    output = torch.empty_like(x)
    num_rows, width = x.shape
    block, num_warps = _shape(width)
    _backward_kernel[(num_rows,)](
        grad,
        x,
        weight,
        residual,
        output,
        eps,
        width,
        HAS_RESIDUAL=residual_grad is not None,
        BLOCK=block,
        num_warps=num_warps,
    )
    return output


def _shape(width: int) -> tuple[int, int]:
    """Block size and warps for rows of a width: up to 16 elements a thread."""
    block = triton.next_power_of_2(width)
    return block, min(max(block // 512, 1), 16)
