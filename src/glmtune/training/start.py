"""What a run starts from: an adapter, where it is not to start from nothing, and the prompt that goes with it."""

from dataclasses import MISSING, fields
from pathlib import Path

from peft import LoraConfig

from glmtune.config import LORA_DEFAULTS, RunConfig
from glmtune.errors import ConfigError, summarise_faults
from glmtune.models.chatglm import ChatGLMTokenizer
from glmtune.tuning.adapter_files import read_adapter_config
from glmtune.tuning.inheritance import prompt_record
from glmtune.tuning.lora import init_for_loading
from glmtune.tuning.run_folder import find_adapter

# What an adapter's file says of itself that is no matter of its weights.
_NOT_OF_WEIGHTS = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "init_lora_weights", "lora_dropout", "peft_type",
    "peft_version", "revision", "runtime_config", "task_type",
}  # fmt: skip


def from_adapter(config: RunConfig) -> RunConfig:
    """Fills in what the adapter that a run starts from is: rank, scale, layers and so on.

    Args:
        config: The configuration; returned as it is without `model.adapter_path`.

    Raises:
        ConfigError: The path is a base, or keys under `lora` ask for another adapter; all in one message.
        AdapterError: The adapter is damaged, or its start cannot be brought back.
    """
    if config.model.adapter_path is None:
        return config
    folder = find_adapter(config.model.adapter_path)
    if folder is None:
        raise ConfigError(f"model.adapter_path: {config.model.adapter_path} is a base model, not an adapter")
    adapter = read_adapter_config(folder)
    own = {}
    for field in fields(LoraConfig):
        value = getattr(adapter, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if field.name not in _NOT_OF_WEIGHTS and (value != default or field.name in LORA_DEFAULTS):
            own[field.name] = sorted(value) if isinstance(value, set) else value
    faults = [
        f"lora.{key}={value!r} was asked for, and the adapter in {folder} has {own.get(key)!r}. Leave it out"
        for key, value in config.lora.items()
        if key not in _NOT_OF_WEIGHTS and value not in (own.get(key), LORA_DEFAULTS.get(key))
    ]
    if faults:
        raise ConfigError(summarise_faults("the adapter to start from", faults))
    kept = {key: value for key, value in config.lora.items() if key == "lora_dropout"}
    lora = {**kept, **own, "init_lora_weights": init_for_loading(adapter.init_lora_weights)}
    model = config.model.model_copy(update={"adapter_path": str(folder)})
    return config.model_copy(update={"model": model, "lora": lora})


def with_prompt(config: RunConfig, tokenizer: ChatGLMTokenizer) -> RunConfig:
    """Fills in what the configuration leaves open of the prompt, by the rule that loading and merging go by too.

    Args:
        config: The configuration.
        tokenizer: The base's tokenizer.

    Raises:
        AdapterError: The record of the adapter or of the base is damaged.
    """
    adapter = None if config.model.adapter_path is None else Path(config.model.adapter_path)
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
