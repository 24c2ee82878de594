"""Settings of PEFT and transformers that are refused here, each with the reason."""

from collections.abc import Mapping
from types import MappingProxyType

WHY_NOT_SHARDED = (
    "spreads a model over GPUs none of which could hold it alone. That is not supported, and not needed: the base is "
    "frozen, and with model.quantize=nf4 ChatGLM3-6B trains on a GPU of 6 GB. To train on several GPUs, each with the "
    "whole model, start it with torchrun --nproc_per_node=N -m glmtune.cli train"
)

REFUSED_KEYS: Mapping[str, str] = MappingProxyType(
    {
        **{f"train.{key}": WHY_NOT_SHARDED for key in ("fsdp", "fsdp_config", "deepspeed", "parallelism_config")},
        "train.auto_find_batch_size": "would change how many samples a step has; use train.max_tokens_per_device",
        "train.label_smoothing_factor": "is not supported: the loss is the plain cross entropy of packed rows",
        "train.include_num_input_tokens_seen": "is not supported; tokens/s is always logged",
        "train.torch_empty_cache_steps": "is not supported; the command line uses expandable memory segments instead",
        "train.use_liger_kernel": "is not supported: it does not know ChatGLM, whose layers are fused here anyway",
        "train.neftune_noise_alpha": "is not supported: its noise is scaled for padded "
        "batches, and there are none here",
        "train.logging_nan_inf_filter": "hides NaN losses; glmtune keeps it false",
        "train.restore_callback_states_from_checkpoint": "would restore an old patience; what early stopping "
        "has counted is always restored",
        "lora.inference_mode": "freezes the adapter, so that nothing is trained",
    }
)
