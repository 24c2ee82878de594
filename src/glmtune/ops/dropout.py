"""Dropout in Triton; the mask is a hash of seed and position, recomputed wherever it is needed."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from glmtune.ops.reference import Mask, dropout_threshold

_BLOCK = 2048


@triton.jit
def _hash_uint32(value):
    """As `reference.hash_uint32`: Chris Wellons' lowbias32."""
    value = (value ^ (value >> 16)) * 0x7FEB352D
    value = (value ^ (value >> 15)) * 0x846CA68B
    return value ^ (value >> 16)


@triton.jit
def masked(x, index, seed_ptr, stream, scale, THRESHOLD: tl.constexpr):
    """Elements `x` at `index`, dropped or scaled, as in `reference.dropout`; other kernels call it too."""
    seed = _hash_uint32((tl.load(seed_ptr) + stream.to(tl.int64) * 0x9E3779B9).to(tl.uint32))
    is_kept = _hash_uint32(index.to(tl.uint32) ^ seed).to(tl.int64) >= THRESHOLD
    return tl.where(is_kept, x * scale, 0.0)


@triton.jit(do_not_specialize=["stream"])
def _forward_kernel(
    x_ptr, output_ptr, num_elements, seed_ptr, stream, scale, THRESHOLD: tl.constexpr, BLOCK: tl.constexpr
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_element = index < num_elements
    x = tl.load(x_ptr + index, is_element, 0.0).to(tl.float32)
    output = masked(x, index, seed_ptr, stream, scale, THRESHOLD)
    tl.store(output_ptr + index, output.to(output_ptr.dtype.element_ty), is_element)


@triton.jit(do_not_specialize=["stream"])
def _add_kernel(
    total_ptr, grad_ptr, num_elements, seed_ptr, stream, scale, THRESHOLD: tl.constexpr, BLOCK: tl.constexpr
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_element = index < num_elements
    grad = tl.load(grad_ptr + index, is_element, 0.0).to(tl.float32)
    total = tl.load(total_ptr + index, is_element, 0.0).to(tl.float32)
    total += masked(grad, index, seed_ptr, stream, scale, THRESHOLD)
    tl.store(total_ptr + index, total.to(total_ptr.dtype.element_ty), is_element)


def mask_arguments(mask: Mask | None, placeholder: Tensor) -> tuple[Tensor, int, float, int]:
    """A mask as kernel arguments: seed, stream, scale of the kept elements, threshold (-1 without a mask)."""
    if mask is None:
        return placeholder, 0, 1.0, -1
    return mask.seed, mask.stream, 1 / (1 - mask.probability), dropout_threshold(mask.probability)


def dropout(x: Tensor, mask: Mask) -> Tensor:
    """As `reference.dropout`."""
    x = x.contiguous()
    output = torch.empty_like(x)
    _launch(_forward_kernel, x, output, mask)
    return output


def dropout_add_(total: Tensor, grad: Tensor, mask: Mask) -> None:
    """As `reference.dropout_add_`; `total` must be contiguous."""
    _launch(_add_kernel, total, grad.contiguous(), mask)


def _launch(kernel: Any, first: Tensor, second: Tensor, mask: Mask) -> None:
    num_elements = first.numel()
    seed, stream, scale, threshold = mask_arguments(mask, first)
    kernel[(triton.cdiv(num_elements, _BLOCK),)](
        first, second, num_elements, seed, stream, scale, THRESHOLD=threshold, BLOCK=_BLOCK
    )
