"""The one place where the back end of the fused ops is chosen."""

from functools import cache
from importlib import import_module, util
from types import ModuleType

from torch import Tensor

from glmtune.ops import reference


def back_end(x: Tensor) -> ModuleType:
    """The module whose ops a tensor is computed with: Triton kernels on CUDA, plain torch elsewhere and in fp64.

    Both have the same functions; `reference` specifies them.
    """
    return _kernels() if x.is_cuda and x.element_size() < 8 else reference


@cache
def _kernels() -> ModuleType:
    return import_module("glmtune.ops.kernels") if util.find_spec("triton") else reference
