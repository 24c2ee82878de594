"""Keys under `lora` and `train`: defaults, those of our own, and what they are for."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

LORA_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"r": 8, "lora_alpha": 32, "lora_dropout": 0.1, "target_modules": ["query_key_value"]}
)
TRAIN_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "output_dir": "./output/ChatGLM",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "logging_steps": 10,
        "num_train_epochs": 3,
        "gradient_checkpointing": "auto",
        "save_steps": 100,
        "learning_rate": 1e-4,
        "save_on_each_node": True,
        "report_to": "none",
    }
)

# Keys under `train` that TrainingArguments does not have.
OWN_TRAIN_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "early_stopping_patience": "Stop after this many evaluations in a row without a better metric.",
        "max_tokens_per_device": "Most tokens of one forward pass; by default what per_device_train_batch_size of the "
        "longest samples have, or less if the GPU's memory asks for it. A step of more is split, with the same result.",
        "offload_checkpoints": "Keep checkpointed layers' inputs in the host's memory: true, false, or as it fits.",
        "cuda_graphs": "Record small passes as CUDA graphs, which takes memory: true, false, or as it fits.",
        "shared_prefix": "Compute what samples of a step begin with alike only once: true, false, or by default "
        "wherever lora_dropout is 0, where it is exact.",
    }
)

# Types of our keys under `train` that are no whole numbers.
OWN_TRAIN_HINTS: Mapping[str, Any] = MappingProxyType(
    dict.fromkeys(("shared_prefix", "offload_checkpoints", "cuda_graphs"), bool | None)
)


PASSED_KEYS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "lora": {
            "r": "Rank of the adapter.",
            "lora_alpha": "Scale of the adapter: its output is multiplied by lora_alpha / r.",
            "lora_dropout": "Dropout on the adapter's input.",
            "target_modules": "Layers to adapt: a list of names, a regular expression, or all-linear.",
        },
        "train": {
            "output_dir": "The run folder.",
            "per_device_train_batch_size": "Samples of an optimiser step, times gradient_accumulation_steps.",
            "gradient_accumulation_steps": "Samples of an optimiser step, times per_device_train_batch_size.",
            "logging_steps": "Optimiser steps between two log lines.",
            "num_train_epochs": "Passes over the data.",
            "gradient_checkpointing": "Recompute activations in the backward pass: true, false, a number of layers, "
            "or auto for as few as fit.",
            "save_steps": "Optimiser steps between two checkpoints.",
            "learning_rate": "Peak learning rate.",
            "save_on_each_node": "Save on every node of a cluster rather than on the first.",
            "report_to": "Experiment trackers, such as tensorboard or wandb.",
        },
    }
)
