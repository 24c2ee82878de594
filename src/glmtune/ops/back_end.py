"""The one place where the back end of the fused ops is chosen."""

import logging
from functools import cache
from importlib import import_module, util
from types import ModuleType

import torch
from torch import Tensor

from glmtune.ops import reference

_logger = logging.getLogger(__name__)


def back_end(x: Tensor) -> ModuleType:
    """The module that implements the ops for a tensor: Triton kernels on CUDA, plain torch elsewhere and in fp64.

    Both have the same functions; `reference` specifies them.
    """
    return _kernels(x.device) if x.is_cuda and x.element_size() < 8 else reference


@cache
def _kernels(device: torch.device) -> ModuleType:
    """The Triton kernels, if a trial launch succeeds: they need a C compiler and a GPU that Triton supports."""
    if util.find_spec("triton") is None:
        return reference
    kernels = import_module("glmtune.ops.kernels")
    try:
        with torch.cuda.device(device):
            kernels.rms_norm(torch.ones(1, 16, device=device), torch.ones(16, device=device), 1e-5)
    except Exception as error:  # compiler, driver and Triton raise various types
        _logger.warning("Triton cannot compile here, so training will be slower: %s", error)
        return reference
    return kernels
