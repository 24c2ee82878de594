"""The backward pass of gathering rows in Triton: each row sums its copies itself, so no atomics and no chance."""

import triton
import triton.language as tl
from torch import Tensor

_BLOCK_SLOTS, _BLOCK_COLUMNS = 16, 128


@triton.jit
def _kernel(
    values_ptr, order_ptr, offsets_ptr, sums_ptr, width, BLOCK_SLOTS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    is_column = columns < width
    begin, end = tl.load(offsets_ptr + row), tl.load(offsets_ptr + row + 1)
    total = tl.zeros([BLOCK_COLUMNS], tl.float32)
    for start in range(begin, end, BLOCK_SLOTS):
        slots = start + tl.arange(0, BLOCK_SLOTS)
        source = tl.load(order_ptr + slots, slots < end, 0).to(tl.int64)
        mask = (slots < end)[:, None] & is_column[None, :]
        total += tl.sum(tl.load(values_ptr + source[:, None] * width + columns[None, :], mask, 0.0).to(tl.float32), 0)
    tl.store(sums_ptr + row * width + columns, total.to(sums_ptr.dtype.element_ty), is_column)


def sum_slots(values_KC: Tensor, order_K: Tensor, offsets_T1: Tensor) -> Tensor:
    """As `reference.sum_slots`."""
    values = values_KC.contiguous()
    num_rows, width = len(offsets_T1) - 1, values.shape[1]
    sums = values.new_empty(num_rows, width)
    _kernel[(num_rows, triton.cdiv(width, _BLOCK_COLUMNS))](
        values, order_K, offsets_T1, sums, width, BLOCK_SLOTS=_BLOCK_SLOTS, BLOCK_COLUMNS=_BLOCK_COLUMNS
    )
    return sums
