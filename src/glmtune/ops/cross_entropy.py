"""Cross entropy in Triton: one program per row reads its logits twice, the second time from the cache."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 8192


@triton.jit
def _kernel(logits_ptr, labels_ptr, losses_ptr, grad_ptr, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * width
    grad_ptr += row * width
    label = tl.load(labels_ptr + row)
    maximum = tl.full([], float("-inf"), tl.float32)
    total = tl.full([], 0.0, tl.float32)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        logits = tl.load(logits_ptr + columns, columns < width, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(logits, axis=0))
        total = total * tl.exp(maximum - new_maximum) + tl.sum(tl.exp(logits - new_maximum), axis=0)
        maximum = new_maximum
    tl.store(losses_ptr + row, maximum + tl.log(total) - tl.load(logits_ptr + label))
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        logits = tl.load(logits_ptr + columns, columns < width, float("-inf"))
        grad = tl.exp(logits - maximum) / total - (columns == label).to(tl.float32)
        tl.store(grad_ptr + columns, grad.to(grad_ptr.dtype.element_ty), columns < width)


def cross_entropy(logits_TV: Tensor, labels_T: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """As `reference.cross_entropy`, for fp32 logits."""
    logits = logits_TV.contiguous()
    num_rows, width = logits.shape
    losses = logits.new_empty(num_rows)
    grad = torch.empty_like(logits, dtype=dtype)
    block = min(_BLOCK, triton.next_power_of_2(width))
    _kernel[(num_rows,)](logits, labels_T, losses, grad, width, BLOCK=block, num_warps=min(max(block // 512, 1), 16))
    return losses, grad
