"""Properties of optimisers, by their transformers names."""

from transformers.training_args import OptimizerNames

ELEMENTWISE_OPTIMIZERS = (OptimizerNames.ADAMW_TORCH, OptimizerNames.ADAMW_TORCH_FUSED, OptimizerNames.SGD)


def is_elementwise(optim: str) -> bool:
    """Whether an optimiser is elementwise, and so takes the flat parameters that CUDA graphs need for gradients."""
    return optim.rpartition(".")[2].lower() in {name.value for name in ELEMENTWISE_OPTIMIZERS}


def state_bytes(optim: str) -> int:
    """Bytes of state that an optimiser keeps per parameter."""
    name = optim.rpartition(".")[2].lower()
    if "sgd" in name or "adafactor" in name:
        return 0
    if "8bit" in name:
        return 2
    if "ademamix" in name:
        return 12
    return 4 if "lion" in name or "rmsprop" in name or "adagrad" in name else 8
