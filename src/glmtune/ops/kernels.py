"""The Triton versions of the fused ops of `reference`, under the same names."""

import torch
from torch import Tensor

from glmtune.ops.cross_entropy import cross_entropy
from glmtune.ops.dropout import dropout, dropout_add_
from glmtune.ops.fp8 import quantize_rows, scaled_product, transpose_bytes
from glmtune.ops.gather import gather_rows, sum_slots
from glmtune.ops.gemv import gemv
from glmtune.ops.gemv_nf4 import gemv_nf4
from glmtune.ops.int8 import scale_rows
from glmtune.ops.paged_attention import paged_attention, store_rotated
from glmtune.ops.rms_norm import rms_norm, rms_norm_backward
from glmtune.ops.rotary import rotate_
from glmtune.ops.swiglu import swiglu, swiglu_backward

__all__ = [
    "cross_entropy",
    "dropout",
    "dropout_add_",
    "gather_rows",
    "gemv",
    "gemv_nf4",
    "paged_attention",
    "quantize_rows",
    "rms_norm",
    "rms_norm_backward",
    "rotate_",
    "scale_rows",
    "scaled_product",
    "store_rotated",
    "sum_slots",
    "swiglu",
    "swiglu_backward",
    "transpose_bytes",
    "wide_product",
]


def wide_product(left: Tensor, right: Tensor) -> Tensor:
    """As `reference.wide_product`; the tensor cores' fp32 accumulators are returned unrounded."""
    return left @ right if left.dtype == torch.float32 else torch.mm(left, right, out_dtype=torch.float32)
