"""The numeric building blocks of the model, and the one place where their back end is chosen.

Every op is specified in plain torch by `reference`; that version runs anywhere and is what any faster one must match.
"""

from glmtune.ops.reference import apply_rotary, rms_norm, rotary_cos_sin, swiglu

__all__ = ["apply_rotary", "rms_norm", "rotary_cos_sin", "swiglu"]
