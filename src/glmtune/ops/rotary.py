"""Rotary positions in Triton, in place: only the rotated half of the rotated heads is touched."""

import triton
import triton.language as tl
from torch import Tensor

_BLOCK_ROWS = 32


@triton.jit
def _kernel(
    heads_ptr,
    cos_ptr,
    sin_ptr,
    num_rows,
    row_stride,
    head_stride,
    num_pairs,
    INVERSE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    pairs = tl.arange(0, BLOCK_PAIRS)
    mask = (rows < num_rows)[:, None] & (pairs < num_pairs)[None, :]
    angle = rows[:, None] * num_pairs + pairs[None, :]
    cos = tl.load(cos_ptr + angle, mask, 0.0).to(tl.float32)
    sin = tl.load(sin_ptr + angle, mask, 0.0).to(tl.float32)
    if INVERSE:
        sin = -sin
    even_ptr = heads_ptr + rows.to(tl.int64)[:, None] * row_stride + tl.program_id(1) * head_stride + 2 * pairs[None, :]
    even = tl.load(even_ptr, mask, 0.0).to(tl.float32)
    odd = tl.load(even_ptr + 1, mask, 0.0).to(tl.float32)
    tl.store(even_ptr, (even * cos - odd * sin).to(heads_ptr.dtype.element_ty), mask)
    tl.store(even_ptr + 1, (odd * cos + even * sin).to(heads_ptr.dtype.element_ty), mask)


def rotate_(heads_TND: Tensor, cos_Tr: Tensor, sin_Tr: Tensor, num_rotated: int, inverse: bool = False) -> None:
    """As `reference.rotate_`."""
    num_rows, num_pairs = cos_Tr.shape
    _kernel[(triton.cdiv(num_rows, _BLOCK_ROWS), num_rotated)](
        heads_TND,
        cos_Tr,
        sin_Tr,
        num_rows,
        heads_TND.stride(0),
        heads_TND.stride(1),
        num_pairs,
        INVERSE=inverse,
        BLOCK_ROWS=_BLOCK_ROWS,
        BLOCK_PAIRS=triton.next_power_of_2(num_pairs),
    )
