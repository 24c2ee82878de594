"""The families that there are, and which of them a model belongs to."""

from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PretrainedConfig

from glmtune.errors import ModelError
from glmtune.models.chatglm.family import ChatGLMFamily
from glmtune.models.family import Family

FAMILIES: tuple[Family, ...] = (ChatGLMFamily(),)


def family_of(owner: PretrainedConfig | nn.Module) -> Family:
    """Finds the family of a configuration or a model.

    Args:
        owner: A configuration; or a model, bare or within PEFT.

    Raises:
        ModelError: It belongs to none.
    """
    model = owner.get_base_model() if isinstance(owner, PeftModel) else owner
    config: Any = model.config if isinstance(model, nn.Module) else model
    for family in FAMILIES:
        if isinstance(config, family.config_class):
            return family
    known = " or ".join(family.config_class.model_type for family in FAMILIES)
    raise ModelError(f"expected model_type {known}; found {config.model_type}")
