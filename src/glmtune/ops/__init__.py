"""The numeric building blocks of the model.

Every op is specified in plain torch by `reference`; that version runs on any device, and faster ones must match it.
`back_end` is the one place where the version is chosen.
"""

from glmtune.ops.attention import FLASH_CAPABILITY, takes_flash_kernel
from glmtune.ops.frozen_linear import DenseLinear, DequantizedLinear, Fp8Linear, FrozenLinear, Scratch
from glmtune.ops.fused_layer import LayerCall, LayerWeights, fused_layer
from glmtune.ops.host_table import HostTable
from glmtune.ops.label_head import label_head
from glmtune.ops.projection import Adapter, Projection
from glmtune.ops.reference import apply_rotary, rms_norm, rotary_cos_sin, swiglu
from glmtune.ops.segment_attention import segment_attention
from glmtune.ops.segments import Segments

__all__ = [
    "FLASH_CAPABILITY",
    "Adapter",
    "DenseLinear",
    "DequantizedLinear",
    "Fp8Linear",
    "FrozenLinear",
    "HostTable",
    "LayerCall",
    "LayerWeights",
    "Projection",
    "Scratch",
    "Segments",
    "apply_rotary",
    "fused_layer",
    "label_head",
    "rms_norm",
    "rotary_cos_sin",
    "segment_attention",
    "swiglu",
    "takes_flash_kernel",
]
