"""The starting point of a run: an existing adapter, if any, and its prompt settings."""

import logging
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import PretrainedConfig

from glmtune.adapters.adapter_files import read_adapter_config
from glmtune.adapters.inheritance import prompt_record
from glmtune.adapters.lora import ALL_LINEAR, comparable_setting, init_for_loading, spell_out
from glmtune.adapters.run_folder import RunManifest, find_adapter
from glmtune.config import LORA_DEFAULTS, RunConfig
from glmtune.errors import ConfigError, summarise_faults
from glmtune.loading.base_weights import is_trained_base
from glmtune.loading.bases import load_tokenizer, read_base_config
from glmtune.loading.formats import check_adapter
from glmtune.models.families import family_of
from glmtune.models.tokenizer import Tokenizer
from glmtune.planning.resume import EarlierRun, find_earlier_run
from glmtune.planning.settings import FORMAT

# Keys of an adapter's configuration that do not concern its weights.
_NOT_OF_WEIGHTS = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout", "peft_type", "peft_version",
    "revision", "runtime_config", "task_type",
}  # fmt: skip
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """The starting point of a run.

    Attributes:
        config: The configuration, with adapter, prompt, and the format of a run that is resumed filled in; settings
            that the plan decides may still be open.
        base_config: The base's configuration.
        tokenizer: The base's tokenizer.
        earlier: The run that is resumed; None for a new one.
    """

    config: RunConfig
    base_config: PretrainedConfig
    tokenizer: Tokenizer
    earlier: EarlierRun | None


def read_start(config: RunConfig, *, may_overwrite: bool = False) -> Start:
    """Reads what a run starts from, and fills in what it takes over from it: the adapter's settings and the prompt.

    Args:
        config: The configuration.
        may_overwrite: Whether a new run may be meant for a folder that holds one already, since it is only planned.

    Raises:
        ConfigError: `model.adapter_path` is a base, keys under `lora` ask for another adapter than that one or for one
            that the format does not go with, or the run folder holds a run already.
        TrainingError: There is no complete checkpoint with its run's manifest to resume from.
        ModelError: The base's tokenizer or configuration is missing or damaged.
        AdapterError: The adapter is damaged, its start cannot be brought back, or a record of the prompt is damaged.
    """
    is_new = config.train.get("resume_from_checkpoint") in (None, False)
    earlier = None if is_new and may_overwrite else find_earlier_run(config.train)
    base_path = config.model.path
    tokenizer = load_tokenizer(base_path)
    base_config = read_base_config(base_path)
    base_config.name_or_path = str(base_path)  # PEFT warns of a base without a name
    config = with_targets(_with_prompt(_from_adapter(config, base_config, earlier), tokenizer, earlier), base_config)
    if earlier is not None and config.model.quantize == "auto":
        config = config.with_settings({FORMAT.key: earlier.manifest.setting(FORMAT.key) or "auto"})
    if config.model.quantize != "auto":
        check_adapter(config.model.quantize, config.lora)
    return Start(config, base_config, tokenizer, earlier)


def with_targets(config: RunConfig, base_config: PretrainedConfig) -> RunConfig:
    """The configuration with `lora.target_modules=auto` replaced by the names that the base's family adapts."""
    if config.lora.get("target_modules") != "auto":
        return config
    return config.with_settings({"lora.target_modules": [*family_of(base_config).lora_targets]})


def _from_adapter(config: RunConfig, base_config: PretrainedConfig, earlier: EarlierRun | None) -> RunConfig:
    """Fills in the settings of the adapter that a run starts from: rank, scale, layers and so on.

    A resumed run has its weights from its checkpoint and the rest from its manifest; the adapter may have been deleted.
    """
    if config.model.adapter_path is None:
        return config
    given = Path(config.model.adapter_path).expanduser().absolute()
    recorded = None if earlier is None else earlier.manifest.setting("model.adapter_path")
    if earlier is not None and recorded and given in (Path(recorded), Path(recorded).parent):
        return _filled(config, base_config, recorded, dict(earlier.manifest.section("lora")))
    folder = find_adapter(given)
    if folder is None:
        raise ConfigError(f"model.adapter_path: {config.model.adapter_path} is a base model, not an adapter")
    adapter = read_adapter_config(folder)
    own: dict[str, Any] = {}
    for field in fields(LoraConfig):
        value = vars(adapter)[field.name]
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if field.name not in _NOT_OF_WEIGHTS and (value != default or field.name in LORA_DEFAULTS):
            own[field.name] = sorted(value) if isinstance(value, set) else value
    own["init_lora_weights"] = init_for_loading(adapter.init_lora_weights)
    if not is_trained_base(RunManifest.read(folder), config.model.path):
        _logger.warning(
            "model.adapter_path: the weights of %s are not those that %s was trained on. Set model.path to the right "
            "base",
            config.model.path or "the built-in base",
            folder,
        )
    return _filled(config, base_config, str(folder), own)


def _filled(config: RunConfig, base_config: PretrainedConfig, adapter_path: str, own: dict[str, Any]) -> RunConfig:
    """The configuration with an adapter's own settings, after checking that those given agree with them."""
    asked = dict(config.lora)
    if asked.get("target_modules") == ALL_LINEAR:  # adapters name their layers
        asked["target_modules"] = _linear_layers(base_config)
    faults = [
        f"lora.{key}={value!r} was requested, but the adapter in {adapter_path} has {comparable_setting(own, key)!r}. "
        "Leave it out"
        for key, value in config.lora.items()
        if key not in _NOT_OF_WEIGHTS and comparable_setting(asked, key) != comparable_setting(own, key)
    ]
    if faults:
        raise ConfigError(summarise_faults("the adapter to start from", faults))
    lora = {**own, "lora_dropout": config.lora["lora_dropout"]}
    model = config.model.model_copy(update={"adapter_path": adapter_path})
    return config.model_copy(update={"model": model, "lora": lora})


def _linear_layers(base_config: PretrainedConfig) -> str | list[str]:
    with torch.device("meta"):
        return spell_out(family_of(base_config).model_class(base_config), ALL_LINEAR)


def _with_prompt(config: RunConfig, tokenizer: Tokenizer, earlier: EarlierRun | None) -> RunConfig:
    """Fills in what the configuration leaves open of the prompt, by the rule that loading and merging go by too."""
    adapter = None if config.model.adapter_path is None else Path(config.model.adapter_path)
    if adapter is not None and earlier is not None:  # which has a record of what it has inherited from it
        adapter = earlier.checkpoint
    inherited = prompt_record(adapter, config.model.path, tokenizer)
    values: dict[str, str | None] = {}
    if config.prompt.template == "auto":
        values["prompt.template"] = inherited.template
    if "system" not in config.prompt.model_fields_set:
        values["prompt.system"] = inherited.system
    if "join" not in config.data.model_fields_set:
        values["data.join"] = inherited.join
    return config.with_settings(values)
