"""Keys under `lora` and `train`: our defaults, our own keys, and their descriptions."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

LORA_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"r": 8, "lora_alpha": 32, "lora_dropout": 0.1, "target_modules": "auto"}
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
        "save_total_limit": 2,
        "learning_rate": 1e-4,
        "save_on_each_node": True,
        "report_to": "none",
    }
)

# Our own keys under `train`, which TrainingArguments does not have.
OWN_TRAIN_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "early_stopping_patience": "Stop after this many evaluations in a row without a better metric.",
        "eval_generate": "Answer this many of the evaluation samples at each evaluation, and log the metrics of the "
        "answers.",
        "max_tokens_per_device": "Maximum number of tokens in a forward pass; by default that of "
        "per_device_train_batch_size of the longest samples, or less if GPU memory is short. A larger step is split, "
        "with the same result.",
        "offload_checkpoints": "Keep checkpointed layers' inputs in host memory: true, false, or by default only "
        "where needed.",
        "cuda_graphs": "Capture small passes as CUDA graphs, which takes memory: true, false, or by default where "
        "there is room.",
        "shared_prefix": "Compute the prefix that samples of a step have in common only once: true, false, or by "
        "default only where lora_dropout is 0, where it is exact.",
    }
)

# Types of our own keys under `train`, and of the key that takes more here than in TrainingArguments.
OWN_TRAIN_HINTS: Mapping[str, Any] = MappingProxyType(
    {
        **dict.fromkeys(OWN_TRAIN_KEYS, int | None),
        **dict.fromkeys(("shared_prefix", "offload_checkpoints", "cuda_graphs"), bool | None),
        "gradient_checkpointing": bool | int | str | None,
    }
)


PASSED_KEYS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "lora": {
            "r": "Rank of the adapter.",
            "lora_alpha": "Scale of the adapter: its output is multiplied by lora_alpha / r.",
            "lora_dropout": "Dropout on the adapter's input.",
            "target_modules": "Layers to adapt: a list of names, a regular expression, all-linear, or auto: those "
            "of the base's family, usually the projections of queries, keys and values.",
        },
        "train": {
            "output_dir": "The run folder.",
            "per_device_train_batch_size": "Samples per optimiser step, to be multiplied by "
            "gradient_accumulation_steps.",
            "gradient_accumulation_steps": "Samples per optimiser step, to be multiplied by "
            "per_device_train_batch_size.",
            "logging_steps": "Optimiser steps between two log lines.",
            "num_train_epochs": "Number of passes over the data.",
            "gradient_checkpointing": "Recompute activations in the backward pass: true, false, a number of layers, "
            "or auto for the fewest with which the run fits.",
            "save_steps": "Optimiser steps between two checkpoints.",
            "save_total_limit": "Checkpoints to keep: the last ones, and the best where there is one; null for all.",
            "learning_rate": "Peak learning rate.",
            "save_on_each_node": "Save on every node of a cluster rather than on the first.",
            "report_to": "Experiment trackers, such as tensorboard or wandb.",
        },
    }
)
