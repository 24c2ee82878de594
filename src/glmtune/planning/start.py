"""The starting point of a run: an existing adapter, if any, and its prompt settings."""

import logging
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from glmtune.adapters.adapter_files import read_adapter_config
from glmtune.adapters.inheritance import prompt_record
from glmtune.adapters.lora import ALL_LINEAR, comparable_setting, init_for_loading, spell_out
from glmtune.adapters.run_folder import RunManifest, find_adapter
from glmtune.config import LORA_DEFAULTS, RunConfig, embedded_base
from glmtune.errors import ConfigError, summarise_faults
from glmtune.loading.base_weights import is_trained_base
from glmtune.loading.bases import load_tokenizer, read_base_config
from glmtune.models.families import family_of
from glmtune.models.tokenizer import Tokenizer
from glmtune.planning.resume import EarlierRun, find_earlier_run
from glmtune.planning.targets import with_targets

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
        config: The configuration, with adapter and prompt filled in; settings that the plan decides may still be open.
        tokenizer: The base's tokenizer.
        earlier: The run that is resumed; None for a new one.
    """

    config: RunConfig
    tokenizer: Tokenizer
    earlier: EarlierRun | None


def read_start(config: RunConfig, *, may_overwrite: bool = False) -> Start:
    """Reads what a run starts from, and fills in what it takes over from it: the adapter's settings and the prompt.

    Args:
        config: The configuration.
        may_overwrite: Whether a new run may be meant for a folder that holds one already, since it is only planned.

    Raises:
        ConfigError: `model.adapter_path` is a base, keys under `lora` ask for another adapter than that one, or the run
            folder holds a run already.
        TrainingError: There is no complete checkpoint with its run's manifest to resume from.
        ModelError: The base's tokenizer is missing or damaged.
        AdapterError: The adapter is damaged, its start cannot be brought back, or a record of the prompt is damaged.
    """
    is_new = config.train.get("resume_from_checkpoint") in (None, False)
    earlier = None if is_new and may_overwrite else find_earlier_run(config.train)
    tokenizer = load_tokenizer(config.model.path or embedded_base())
    config = with_targets(_with_prompt(_from_adapter(config, earlier), tokenizer, earlier))
    return Start(config, tokenizer, earlier)


def _from_adapter(config: RunConfig, earlier: EarlierRun | None) -> RunConfig:
    """Fills in the settings of the adapter that a run starts from: rank, scale, layers and so on.

    A resumed run has its weights from its checkpoint and the rest from its manifest; the adapter may have been deleted.
    """
    if config.model.adapter_path is None:
        return config
    given = Path(config.model.adapter_path).expanduser().absolute()
    recorded = None if earlier is None else earlier.manifest.setting("model.adapter_path")
    if earlier is not None and recorded and given in (Path(recorded), Path(recorded).parent):
        return _filled(config, recorded, dict(earlier.manifest.section("lora")))
    folder = find_adapter(given)
    if folder is None:
        raise ConfigError(f"model.adapter_path: {config.model.adapter_path} is a base model, not an adapter")
    adapter = read_adapter_config(folder)
    own: dict[str, Any] = {}
    for field in fields(LoraConfig):
        value = getattr(adapter, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if field.name not in _NOT_OF_WEIGHTS and (value != default or field.name in LORA_DEFAULTS):
            own[field.name] = sorted(value) if isinstance(value, set) else value
    own["init_lora_weights"] = init_for_loading(adapter.init_lora_weights)
    if not is_trained_base(RunManifest.read(folder), config.model.path or str(embedded_base())):
        _logger.warning(
            "model.adapter_path: the weights of %s are not those that %s was trained on. Set model.path to the right "
            "base",
            config.model.path or "the built-in base",
            folder,
        )
    return _filled(config, str(folder), own)


def _filled(config: RunConfig, adapter_path: str, own: dict[str, Any]) -> RunConfig:
    """The configuration with an adapter's own settings, after checking that those given agree with them."""
    asked = dict(config.lora)
    if asked.get("target_modules") == ALL_LINEAR:  # adapters name their layers
        asked["target_modules"] = _linear_layers(config.model.path)
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


def _linear_layers(base_path: str | None) -> str | list[str]:
    base_config = read_base_config(base_path)
    with torch.device("meta"):
        return spell_out(family_of(base_config).model_class(base_config), ALL_LINEAR)


def _with_prompt(config: RunConfig, tokenizer: Tokenizer, earlier: EarlierRun | None) -> RunConfig:
    """Fills in what the configuration leaves open of the prompt, by the rule that loading and merging go by too."""
    adapter = None if config.model.adapter_path is None else Path(config.model.adapter_path)
    if adapter is not None and earlier is not None:  # which has a record of what it has inherited from it
        adapter = earlier.checkpoint
    inherited = prompt_record(adapter, config.model.path, tokenizer)
    prompt: dict[str, str | None] = {}
    data: dict[str, str] = {}
    if config.prompt.template == "auto":
        prompt["template"] = inherited.template
    if "system" not in config.prompt.model_fields_set:
        prompt["system"] = inherited.system
    if "join" not in config.data.model_fields_set:
        data["join"] = inherited.join
    return config.model_copy(
        update={"prompt": config.prompt.model_copy(update=prompt), "data": config.data.model_copy(update=data)}
    )
