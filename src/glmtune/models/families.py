"""The registered families, and the lookup of a model's family."""

from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PretrainedConfig

from glmtune.errors import ModelError
from glmtune.files import read_json_object
from glmtune.models.chatglm.family import ChatGLMFamily
from glmtune.models.family import Family, Shape

FAMILIES: tuple[Family, ...] = (ChatGLMFamily(),)


def family_of(owner: PretrainedConfig | nn.Module) -> Family:
    """Finds the family of a configuration or a model.

    Args:
        owner: A configuration, or a model, with or without PEFT.

    Raises:
        ModelError: It belongs to none.
    """
    config = _config_of(owner)
    for family in FAMILIES:
        if isinstance(config, family.config_class):
            return family
    known = " or ".join(family.config_class.model_type for family in FAMILIES)
    raise ModelError(f"expected model_type {known}; found {config.model_type}")


def shape_of(owner: PretrainedConfig | nn.Module) -> Shape:
    """The sizes of a model, as its family reads them from its configuration.

    Args:
        owner: As for `family_of`.

    Raises:
        ModelError: It belongs to no family.
    """
    return family_of(owner).shape(_config_of(owner))


def _config_of(owner: PretrainedConfig | nn.Module) -> Any:
    model = owner.get_base_model() if isinstance(owner, PeftModel) else owner
    return model.config if isinstance(model, nn.Module) else model


def family_at(path: str | Path) -> Family:
    """Finds the family that reads and checks a base.

    Args:
        path: A folder or a hub id.

    Returns:
        The family that its `config.json` names; the first one if it names none or is not downloaded yet. That family
        then reports what is wrong with the base.

    Raises:
        ModelError: `config.json` is no JSON object.
    """
    file = Path(path) / "config.json"
    named = read_json_object(file, ModelError).get("model_type") if file.is_file() else None
    return next((family for family in FAMILIES if family.config_class.model_type == named), FAMILIES[0])
