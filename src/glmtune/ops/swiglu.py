"""SwiGLU in Triton: element by element, in fp32."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit
def _forward_kernel(gate_up_ptr, output_ptr, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < width
    gate = tl.load(gate_up_ptr + row * 2 * width + columns, mask, 0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * 2 * width + width + columns, mask, 0.0).to(tl.float32)
    output = gate * tl.sigmoid(gate) * up
    tl.store(output_ptr + row * width + columns, output.to(output_ptr.dtype.element_ty), mask)


@triton.jit
def _backward_kernel(
    grad_ptr, gate_up_ptr, result_ptr, output_ptr, width, WITH_OUTPUT: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < width
    wide_row = row * 2 * width
    gate = tl.load(gate_up_ptr + wide_row + columns, mask, 0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + wide_row + width + columns, mask, 0.0).to(tl.float32)
    grad = tl.load(grad_ptr + row * width + columns, mask, 0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    gate_grad = grad * up * (sigmoid + silu * (1 - sigmoid))
    tl.store(result_ptr + wide_row + columns, gate_grad.to(result_ptr.dtype.element_ty), mask)
    tl.store(result_ptr + wide_row + width + columns, (grad * silu).to(result_ptr.dtype.element_ty), mask)
    if WITH_OUTPUT:
        tl.store(output_ptr + row * width + columns, (silu * up).to(output_ptr.dtype.element_ty), mask)


def swiglu(gate_up: Tensor) -> Tensor:
    """As `reference.swiglu`, for [T, 2 x F], without a gradient."""
    gate_up = gate_up.contiguous()
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    output = gate_up.new_empty(num_rows, width)
    _forward_kernel[(num_rows, triton.cdiv(width, _BLOCK))](gate_up, output, width, BLOCK=_BLOCK)
    return output


def swiglu_backward(grad: Tensor, gate_up: Tensor, with_output: bool) -> tuple[Tensor, Tensor | None]:
    """As `reference.swiglu_backward`."""
    grad, gate_up = grad.contiguous(), gate_up.contiguous()
    num_rows, width = grad.shape
    result = torch.empty_like(gate_up)
    output = torch.empty_like(grad) if with_output else None
    _backward_kernel[(num_rows, triton.cdiv(width, _BLOCK))](
        grad, gate_up, result, grad if output is None else output, width, WITH_OUTPUT=with_output, BLOCK=_BLOCK
    )
    return result, output
