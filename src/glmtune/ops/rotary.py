"""Rotary positions in Triton, in place: one program per row and all its heads; only rotated channels are accessed."""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _kernel(
    heads_ptr,
    cos_ptr,
    sin_ptr,
    row_stride,
    head_stride,
    num_heads,
    num_pairs,
    INVERSE: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    pairs = tl.arange(0, BLOCK_PAIRS)
    cos = tl.load(cos_ptr + row * num_pairs + pairs, pairs < num_pairs, 0.0).to(tl.float32)[None, :]
    sin = tl.load(sin_ptr + row * num_pairs + pairs, pairs < num_pairs, 0.0).to(tl.float32)[None, :]
    if INVERSE:
        sin = -sin
    heads, channels = tl.arange(0, BLOCK_HEADS), tl.arange(0, 2 * BLOCK_PAIRS)
    pointers = heads_ptr + row * row_stride + heads[:, None] * head_stride + channels[None, :]
    mask = (heads < num_heads)[:, None] & (channels < 2 * num_pairs)[None, :]
    x = tl.load(pointers, mask, 0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(x, (BLOCK_HEADS, BLOCK_PAIRS, 2)))
    turned = tl.join(even * cos - odd * sin, odd * cos + even * sin)
    turned = tl.reshape(turned, (BLOCK_HEADS, 2 * BLOCK_PAIRS))
    tl.store(pointers, turned.to(heads_ptr.dtype.element_ty), mask)


def rotate_(heads_TND: Tensor, cos_Tr: Tensor, sin_Tr: Tensor, num_rotated: int, inverse: bool = False) -> None:
    """As `reference.rotate_`."""
    num_rows, num_pairs = cos_Tr.shape
    _kernel[(num_rows,)](
        heads_TND,
        cos_Tr,
        sin_Tr,
        heads_TND.stride(0),
        heads_TND.stride(1),
        num_rotated,
        num_pairs,
        INVERSE=inverse,
        BLOCK_HEADS=triton.next_power_of_2(num_rotated),
        BLOCK_PAIRS=triton.next_power_of_2(num_pairs),
    )
