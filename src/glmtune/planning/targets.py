"""The layers that LoRA adapts where the configuration leaves them to the base's family."""

from glmtune.config import RunConfig
from glmtune.loading.bases import read_base_config
from glmtune.models.families import family_of


def with_targets(config: RunConfig) -> RunConfig:
    """The configuration with `lora.target_modules=auto` replaced by the names that the base's family adapts.

    Args:
        config: The configuration.

    Raises:
        ModelError: The base's configuration cannot be read, or is of no family here.
    """
    if config.lora.get("target_modules") != "auto":
        return config
    targets = family_of(read_base_config(config.model.path)).lora_targets
    return config.model_copy(update={"lora": {**config.lora, "target_modules": [*targets]}})
