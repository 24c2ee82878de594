"""fp8 (e4m3) on Hopper and newer: row-wise quantisation in Triton, matrix products by cuBLAS with row-wise scales."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

_LARGEST = torch.finfo(torch.float8_e4m3fn).max
_TILE = 64


@triton.jit
def _quantize_kernel(
    x_ptr,
    column_scales_ptr,
    values_ptr,
    scales_ptr,
    width,
    LARGEST: tl.constexpr,
    HAS_COLUMN_SCALES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    x = tl.load(x_ptr + row * width + columns, mask, 0.0).to(tl.float32)
    if HAS_COLUMN_SCALES:
        x *= tl.load(column_scales_ptr + columns, mask, 0.0)
    scale = tl.maximum(tl.max(tl.abs(x), axis=0), 1e-12) / LARGEST
    tl.store(values_ptr + row * width + columns, (x / scale).to(tl.float8e4nv), mask)
    tl.store(scales_ptr + row, scale)


@triton.jit
def _transpose_kernel(x_ptr, output_ptr, num_rows, num_columns, TILE: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    columns = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    mask = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
    tile = tl.load(x_ptr + rows[:, None] * num_columns + columns[None, :], mask, 0)
    target = output_ptr + columns[:, None] * num_rows + rows[None, :]
    tl.store(target, tl.trans(tile), (columns < num_columns)[:, None] & (rows < num_rows)[None, :])


def quantize_rows(x: Tensor, column_scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As `reference.quantize_rows`."""
    x = x.contiguous()
    num_rows, width = x.shape
    values = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    scales = x.new_empty(num_rows, 1, dtype=torch.float32)
    block = triton.next_power_of_2(width)
    _quantize_kernel[(num_rows,)](
        x,
        scales if column_scales is None else column_scales,
        values,
        scales,
        width,
        LARGEST=_LARGEST,
        HAS_COLUMN_SCALES=column_scales is not None,
        BLOCK=block,
        num_warps=min(max(block // 1024, 1), 16),
    )
    return values, scales


def scaled_product(
    x_TK: Tensor,
    x_scales_T1: Tensor,
    weight_NK: Tensor,
    weight_scales_N: Tensor | None,
    bias_N: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """As `reference.scaled_product`; both widths must be multiples of 16."""
    scales = x_scales_T1.new_ones(weight_NK.shape[0]) if weight_scales_N is None else weight_scales_N
    return F.scaled_mm(
        x_TK,
        weight_NK.T,
        x_scales_T1,
        F.ScalingType.RowWise,
        scales.unsqueeze(0),
        F.ScalingType.RowWise,
        bias=bias_N,
        output_dtype=dtype,
        use_fast_accum=True,
    )


def transpose_bytes(x: Tensor) -> Tensor:
    """As `reference.transpose_bytes`."""
    num_rows, num_columns = x.shape
    output = x.new_empty(num_columns, num_rows)
    grid = (triton.cdiv(num_rows, _TILE), triton.cdiv(num_columns, _TILE))
    _transpose_kernel[grid](x.view(torch.uint8), output.view(torch.uint8), num_rows, num_columns, TILE=_TILE)
    return output
