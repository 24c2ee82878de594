"""The run's configuration: five sections, from a YAML file and `section.key=value` overrides.

    model   the base                      keys of our own
    data    what is learnt                keys of our own
    prompt  how it is put to the model    keys of our own
    lora    the adapter                   the names of `peft.LoraConfig`
    train   the loop                      the names of `transformers.TrainingArguments`

Importing this module is cheap; checking the names under `lora` and `train` imports peft and transformers, which a run
needs anyway.
"""

from glmtune.config.embedded import embedded_base, embedded_data, say_base
from glmtune.config.keys import LORA_DEFAULTS, OWN_TRAIN_KEYS, TRAIN_DEFAULTS
from glmtune.config.reading import load_arguments, load_config, validate_names
from glmtune.config.refused_keys import WHY_NOT_SHARDED
from glmtune.config.sections import (
    DataSection,
    KeyDescription,
    ModelSection,
    PromptSection,
    RunConfig,
    describe_keys,
)

__all__ = [
    "LORA_DEFAULTS",
    "OWN_TRAIN_KEYS",
    "TRAIN_DEFAULTS",
    "WHY_NOT_SHARDED",
    "DataSection",
    "KeyDescription",
    "ModelSection",
    "PromptSection",
    "RunConfig",
    "describe_keys",
    "embedded_base",
    "embedded_data",
    "load_arguments",
    "load_config",
    "say_base",
    "validate_names",
]
