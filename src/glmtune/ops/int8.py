"""Dequantisation of int8 weights in Triton."""

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096


@triton.jit
def _kernel(values_ptr, scales_ptr, output_ptr, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_column = columns < width
    values = tl.load(values_ptr + row * width + columns, is_column, 0).to(tl.float32) * tl.load(scales_ptr + row)
    tl.store(output_ptr + row * width + columns, values.to(output_ptr.dtype.element_ty), is_column)


def scale_rows(values_NK: Tensor, scales_N: Tensor, output_NK: Tensor) -> None:
    """As `reference.scale_rows`."""
    num_rows, width = values_NK.shape
    block = min(_BLOCK, triton.next_power_of_2(width))
    _kernel[(num_rows, triton.cdiv(width, block))](values_NK, scales_N, output_NK, width, BLOCK=block)
