"""What a configuration says of memory and speed, what a plan fills in, and what a resumed run takes over."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from glmtune.config import RunConfig
from glmtune.data.samples import SampleDataset
from glmtune.errors import ConfigError
from glmtune.loading.bases import read_base_config
from glmtune.loading.formats import Quantize, check_adapter
from glmtune.planning.memory import MemorySettings
from glmtune.planning.planner import Freedom, Plan

# The settings that a plan decides on.
_KEYS = (
    ("model", "quantize"),
    ("model", "offload_embedding"),
    ("train", "max_tokens_per_device"),
    ("train", "gradient_checkpointing"),
    ("train", "offload_checkpoints"),
    ("train", "cuda_graphs"),
)
# What they take, where that is not always there.
_NEEDS = {
    "model.offload_embedding": "fused layers, and an embedding that is not the output layer too",
    "train.offload_checkpoints": "fused layers",
    "train.cuda_graphs": "fused layers, 16 bits on an Ampere or newer GPU, and torch's own AdamW or SGD",
}


def decide(whole: Freedom, config: RunConfig, num_layers: int) -> Freedom:
    """What the user's settings leave of the freedom.

    Args:
        whole: What there would be if the user had decided nothing.
        config: The configuration.
        num_layers: Layers of the base.

    Raises:
        ConfigError: They ask for what cannot be.
    """
    train = config.train
    decided: dict[str, Any] = {}
    if config.model.quantize != "auto":
        check_adapter(config.model.quantize, config.lora)
        decided["quantize"] = (config.model.quantize,)
    checkpointing: Any = train.get("gradient_checkpointing")
    if checkpointing != "auto":
        number = num_layers if checkpointing is True else min(int(checkpointing or 0), num_layers)
        decided["num_checkpointed"] = (number,)
    if train.get("max_tokens_per_device") is not None:
        decided["max_tokens"] = (train["max_tokens_per_device"],)
    switches: Mapping[str, tuple[str, bool | None]] = {
        "model.offload_embedding": ("offloads_embedding", config.model.offload_embedding),
        "train.offload_checkpoints": ("offloads_checkpoints", train.get("offload_checkpoints")),
        "train.cuda_graphs": ("uses_graphs", train.get("cuda_graphs")),
    }
    for key, (name, value) in switches.items():
        if value is None:
            continue
        if value not in getattr(whole, name):
            raise ConfigError(f"{key}=true is not possible here: it takes {_NEEDS[key]}")
        decided[name] = (value,)
    if decided.get("offloads_checkpoints") == (True,):
        if decided.get("num_checkpointed") == (0,):
            raise ConfigError("train.offload_checkpoints=true: there are no checkpoints without gradient_checkpointing")
        if decided.get("uses_graphs") == (True,):
            raise ConfigError("train.cuda_graphs=true cannot be used with train.offload_checkpoints=true")
        decided.setdefault("num_checkpointed", range(1, num_layers + 1))
        decided["uses_graphs"] = (False,)
    elif decided.get("num_checkpointed") == (0,):
        decided["offloads_checkpoints"] = (False,)
    return replace(whole, **decided)


def plain_settings(config: RunConfig, train: SampleDataset) -> tuple[MemorySettings, int]:
    """What a configuration says, the plainest where it leaves something open: for runs that are not planned.

    Returns:
        The settings, and the most tokens of a pass.

    Raises:
        ConfigError: Settings contradict each other.
    """
    whole = Freedom(uses_graphs=(False,))
    decided = decide(whole, config, read_base_config(config.model.path).num_layers)
    limit = config.train.get("max_tokens_per_device")
    if limit is None:
        limit = config.train["per_device_train_batch_size"] * max(train.lengths)
    settings = MemorySettings(
        quantize=decided.quantize[0],
        offloads_embedding=decided.offloads_embedding[0],
        num_checkpointed=decided.num_checkpointed[0],
        offloads_checkpoints=decided.offloads_checkpoints[0],
    )
    return settings, limit


def with_quantize(config: RunConfig, quantize: Quantize) -> RunConfig:
    """The configuration with the format of the base filled in."""
    return _filled(config, {("model", "quantize"): quantize})


def with_settings(config: RunConfig, settings: MemorySettings, max_tokens: int) -> RunConfig:
    """The configuration with all that a plan decides on filled in."""
    return _filled(
        config,
        {
            ("model", "quantize"): settings.quantize,
            ("model", "offload_embedding"): settings.offloads_embedding,
            ("train", "max_tokens_per_device"): max_tokens,
            ("train", "gradient_checkpointing"): settings.num_checkpointed,
            ("train", "offload_checkpoints"): settings.offloads_checkpoints,
            ("train", "cuda_graphs"): settings.uses_graphs,
        },
    )


def as_before(config: RunConfig, before: Mapping[str, Any], keys: Iterable[tuple[str, str]] = _KEYS) -> RunConfig:
    """The configuration with what it leaves open as an earlier run had it.

    Args:
        config: The configuration.
        before: That of the earlier run's manifest.
        keys: What is taken over.
    """
    filled = {}
    for section, key in keys:
        present = config.model_dump()[section].get(key)
        value = before.get(section, {}).get(key, "none" if key == "quantize" else None)
        if present in (None, "auto") and value not in (None, "auto"):
            filled[section, key] = value
    return _filled(config, filled)


def _filled(config: RunConfig, values: Mapping[tuple[str, str], Any]) -> RunConfig:
    """A copy with some values set, by section and key."""
    model = {key: value for (section, key), value in values.items() if section == "model"}
    train = {key: value for (section, key), value in values.items() if section == "train"}
    update = {"model": config.model.model_copy(update=model), "train": {**config.train, **train}}
    return config.model_copy(update=update)


def spell(plan: Plan) -> list[str]:
    """A plan's settings, as on the command line."""
    settings = plan.settings
    return [
        f"model.quantize={settings.quantize}",
        f"model.offload_embedding={str(settings.offloads_embedding).lower()}",
        f"train.max_tokens_per_device={plan.step.max_tokens}",
        f"train.gradient_checkpointing={settings.num_checkpointed or 'false'}",
        f"train.offload_checkpoints={str(settings.offloads_checkpoints).lower()}",
        f"train.cuda_graphs={str(settings.uses_graphs).lower()}",
    ]
