"""The usual keys by topic, for `glmtune train --keys`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from glmtune.config.sections import describe_keys

# Keys of LoraConfig and TrainingArguments without a default of ours that people set often: their default there, which a
# test compares, and their description.
OFTEN_SET: Mapping[str, tuple[Any, str]] = MappingProxyType(
    {
        "lora.use_dora": (
            False,
            "DoRA: learn direction and magnitude separately; slower, and not on a quantised base.",
        ),
        "lora.use_rslora": (False, "Divide by the square root of r instead of by r."),
        "lora.init_lora_weights": (
            True,
            "How the adapter is initialised, such as pissa or olora; true is the usual "
            "way, which does not change the model at first.",
        ),
        "lora.layers_to_transform": (None, "Numbers of the layers to adapt; all if left out."),
        "lora.modules_to_save": (None, "Whole modules to train besides the adapter; not on a quantised base."),
        "train.max_steps": (-1, "Total number of optimiser steps; above 0, it replaces num_train_epochs."),
        "train.warmup_steps": (
            0,
            "Warm-up steps, in which the learning rate rises; below 1, a fraction of all steps.",
        ),
        "train.lr_scheduler_type": ("linear", "How the learning rate falls: linear, cosine, constant ..."),
        "train.weight_decay": (0.0, "Weight decay of the optimiser."),
        "train.max_grad_norm": (1.0, "Gradients with a larger norm are scaled down to it."),
        "train.optim": ("adamw_torch_fused", "The optimiser."),
        "train.seed": (42, "Seed of the order of samples, of dropout and of the adapter's first weights."),
        "train.eval_steps": (None, "Optimiser steps between two evaluations; by default save_steps."),
        "train.per_device_eval_batch_size": (None, "Batch size of evaluation; by default that of training."),
        "train.load_best_model_at_end": (
            False,
            "Leave the best adapter in the run folder rather than the last; on with early_stopping_patience.",
        ),
        "train.resume_from_checkpoint": (
            None,
            "Continue from the newest intact checkpoint (true), or from that in this folder.",
        ),
        "train.use_cpu": (False, "Train on the CPU even if there is a GPU."),
    }
)
_RATE = ("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "optim", "seed")
_SIZE = ("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps")
_FOLDER = ("output_dir", "save_steps", "save_total_limit", "resume_from_checkpoint", "save_on_each_node")
_EVALUATION = (
    *("eval_steps", "per_device_eval_batch_size", "eval_generate", "early_stopping_patience"),
    "load_best_model_at_end",
)
_LOG = ("logging_steps", "report_to")
_MEMORY = (
    *("max_tokens_per_device", "gradient_checkpointing", "offload_checkpoints", "cuda_graphs", "shared_prefix"),
    "use_cpu",
)


def grouped_keys() -> dict[str, dict[str, tuple[Any, str]]]:
    """Default and description of all usual keys, by topic."""
    described = {**describe_keys(), **OFTEN_SET}

    def section(name: str) -> dict[str, tuple[Any, str]]:
        return {key: about for key, about in described.items() if key.startswith(f"{name}.")}

    def train(*names: str) -> dict[str, tuple[Any, str]]:
        return {f"train.{name}": described[f"train.{name}"] for name in names}

    return {
        "Base model": section("model"),
        "Data": section("data"),
        "Prompt": section("prompt"),
        "Adapter": section("lora"),
        "Length of the run and size of a step": train(*_SIZE),
        "Learning rate and optimiser": train(*_RATE),
        "Run folder, checkpoints and resuming": train(*_FOLDER),
        "Evaluation and early stopping": train(*_EVALUATION),
        "Log": train(*_LOG),
        "Memory and speed": train(*_MEMORY),
    }
