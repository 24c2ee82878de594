"""SwiGLU in Triton: elementwise, in fp32."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from glmtune.ops.dropout import mask_arguments, masked
from glmtune.ops.reference import Mask

_BLOCK = 1024


@triton.jit
def _forward_kernel(gate_up_ptr, output_ptr, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_column = columns < width
    gate = tl.load(gate_up_ptr + row * 2 * width + columns, is_column, 0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * 2 * width + width + columns, is_column, 0.0).to(tl.float32)
    output = gate * tl.sigmoid(gate) * up
    tl.store(output_ptr + row * width + columns, output.to(output_ptr.dtype.element_ty), is_column)


@triton.jit(do_not_specialize=["stream"])
def _backward_kernel(
    grad_ptr,
    gate_up_ptr,
    masked_ptr,
    result_ptr,
    output_ptr,
    width,
    seed_ptr,
    stream,
    scale,
    WITH_OUTPUT: tl.constexpr,
    THRESHOLD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    index, is_column = row * width + columns, columns < width
    wide_row = row * 2 * width
    gate = tl.load(gate_up_ptr + wide_row + columns, is_column, 0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + wide_row + width + columns, is_column, 0.0).to(tl.float32)
    grad = tl.load(grad_ptr + index, is_column, 0.0).to(tl.float32)
    if THRESHOLD >= 0:
        masked_grad = tl.load(masked_ptr + index, is_column, 0.0).to(tl.float32)
        grad += masked(masked_grad, index, seed_ptr, stream, scale, THRESHOLD)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    gate_grad = grad * up * (sigmoid + silu * (1 - sigmoid))
    tl.store(result_ptr + wide_row + columns, gate_grad.to(result_ptr.dtype.element_ty), is_column)
    tl.store(result_ptr + wide_row + width + columns, (grad * silu).to(result_ptr.dtype.element_ty), is_column)
    if WITH_OUTPUT:
        output = silu * up
        if THRESHOLD >= 0:
            output = output.to(output_ptr.dtype.element_ty).to(tl.float32)
            output = masked(output, index, seed_ptr, stream, scale, THRESHOLD)
        tl.store(output_ptr + index, output.to(output_ptr.dtype.element_ty), is_column)


def swiglu(gate_up: Tensor) -> Tensor:
    """As `reference.swiglu`, for [T, 2 x F], without a gradient."""
    gate_up = gate_up.contiguous()
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    output = gate_up.new_empty(num_rows, width)
    _forward_kernel[(num_rows, triton.cdiv(width, _BLOCK))](gate_up, output, width, BLOCK=_BLOCK)
    return output


def swiglu_backward(
    grad: Tensor,
    gate_up: Tensor,
    with_output: bool,
    masked_grad: Tensor | None = None,
    mask: Mask | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As `reference.swiglu_backward`."""
    grad, gate_up = grad.contiguous(), gate_up.contiguous()
    num_rows, width = grad.shape
    result = torch.empty_like(gate_up)
    output = torch.empty_like(grad) if with_output else None
    seed, stream, scale, threshold = mask_arguments(mask, grad)
    _backward_kernel[(num_rows, triton.cdiv(width, _BLOCK))](
        grad,
        gate_up,
        grad if masked_grad is None else masked_grad.contiguous(),
        result,
        grad if output is None else output,
        width,
        seed,
        stream,
        scale,
        WITH_OUTPUT=with_output,
        THRESHOLD=threshold,
        BLOCK=_BLOCK,
    )
    return result, output
