"""Gathering rows in Triton.

In the backward pass one program sums all copies of a row, so the result is deterministic, without atomics.
"""

import torch
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


@triton.jit
def _gather_kernel(table_ptr, ids_ptr, output_ptr, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_column = columns < width
    source = tl.load(ids_ptr + row).to(tl.int64)
    values = tl.load(table_ptr + source * width + columns, is_column, 0.0)
    tl.store(output_ptr + row * width + columns, values, is_column)


def gather_rows(table_VH: Tensor, ids_T: Tensor) -> Tensor:
    """As `reference.gather_rows`; the table is on the device, or in host memory mapped for it."""
    width = table_VH.shape[1]
    output = torch.empty(len(ids_T), width, dtype=table_VH.dtype, device=ids_T.device)
    block = min(triton.next_power_of_2(width), 1024)
    _gather_kernel[(len(ids_T), triton.cdiv(width, block))](table_VH, ids_T, output, width, BLOCK=block)
    return output
