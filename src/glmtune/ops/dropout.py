"""Dropout in Triton; the mask is a hash of seed and position, made again wherever it is needed."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from glmtune.ops.reference import dropout_threshold

_BLOCK = 2048


@triton.jit
def _hash_uint32(value):
    """As `reference._hash_uint32`: Chris Wellons' lowbias32."""
    value = (value ^ (value >> 16)) * 0x7FEB352D
    value = (value ^ (value >> 15)) * 0x846CA68B
    return value ^ (value >> 16)


@triton.jit
def _is_kept(index, seed_ptr, stream, THRESHOLD: tl.constexpr):
    seed = _hash_uint32((tl.load(seed_ptr) + stream.to(tl.int64) * 0x9E3779B9).to(tl.uint32))
    return _hash_uint32(index.to(tl.uint32) ^ seed).to(tl.int64) >= THRESHOLD


@triton.jit(do_not_specialize=["stream"])
def _forward_kernel(
    x_ptr, output_ptr, num_elements, seed_ptr, stream, scale, THRESHOLD: tl.constexpr, BLOCK: tl.constexpr
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < num_elements
    x = tl.load(x_ptr + index, mask, 0.0).to(tl.float32)
    output = tl.where(_is_kept(index, seed_ptr, stream, THRESHOLD), x * scale, 0.0)
    tl.store(output_ptr + index, output.to(output_ptr.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["stream"])
def _add_kernel(
    total_ptr, grad_ptr, num_elements, seed_ptr, stream, scale, THRESHOLD: tl.constexpr, BLOCK: tl.constexpr
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < num_elements
    grad = tl.load(grad_ptr + index, mask, 0.0).to(tl.float32)
    total = tl.load(total_ptr + index, mask, 0.0).to(tl.float32)
    total += tl.where(_is_kept(index, seed_ptr, stream, THRESHOLD), grad * scale, 0.0)
    tl.store(total_ptr + index, total.to(total_ptr.dtype.element_ty), mask)


def dropout(x: Tensor, probability: float, seed: Tensor, stream: int) -> Tensor:
    """As `reference.dropout`."""
    x = x.contiguous()
    output = torch.empty_like(x)
    _launch(_forward_kernel, x, output, probability, seed, stream)
    return output


def dropout_add_(total: Tensor, grad: Tensor, probability: float, seed: Tensor, stream: int) -> None:
    """As `reference.dropout_add_`; `total` must be contiguous."""
    _launch(_add_kernel, total, grad.contiguous(), probability, seed, stream)


def _launch(kernel, first: Tensor, second: Tensor, probability: float, seed: Tensor, stream: int) -> None:
    num_elements = first.numel()
    kernel[(triton.cdiv(num_elements, _BLOCK),)](
        first,
        second,
        num_elements,
        seed,
        stream,
        1 / (1 - probability),
        THRESHOLD=dropout_threshold(probability),
        BLOCK=_BLOCK,
    )
