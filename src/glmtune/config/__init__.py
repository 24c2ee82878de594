"""The run's configuration: five sections, from a YAML file and `section.key=value` overrides.

    model   the base                           our own keys
    data    the training data                  our own keys
    prompt  prompt format and system prompt    our own keys
    lora    the adapter                        the names of `peft.LoraConfig`
    train   the training loop                  the names of `transformers.TrainingArguments`

Importing this package is cheap; checking the names under `lora` and `train` imports peft and transformers, which a run
needs anyway.
"""

from glmtune.config.embedded import embedded_base, embedded_config, embedded_data, say_base, say_data
from glmtune.config.keys import LORA_DEFAULTS, OWN_TRAIN_KEYS, TRAIN_DEFAULTS
from glmtune.config.listing import OFTEN_SET, grouped_keys
from glmtune.config.reading import load_arguments, load_config, validate_names
from glmtune.config.refused_keys import WHY_NOT_SHARDED
from glmtune.config.secrets import without_secrets
from glmtune.config.sections import (
    DataSection,
    ModelSection,
    PromptSection,
    RunConfig,
    describe_keys,
    value_types,
)

__all__ = [
    "LORA_DEFAULTS",
    "OFTEN_SET",
    "OWN_TRAIN_KEYS",
    "TRAIN_DEFAULTS",
    "WHY_NOT_SHARDED",
    "DataSection",
    "ModelSection",
    "PromptSection",
    "RunConfig",
    "describe_keys",
    "embedded_base",
    "embedded_config",
    "embedded_data",
    "grouped_keys",
    "load_arguments",
    "load_config",
    "say_base",
    "say_data",
    "validate_names",
    "value_types",
    "without_secrets",
]
