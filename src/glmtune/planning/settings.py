"""The settings that a plan chooses: how to read them from a configuration and a plan, and how to write them."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from glmtune.adapters.run_folder import RunManifest
from glmtune.config import RunConfig
from glmtune.errors import ConfigError
from glmtune.loading.formats import check_adapter
from glmtune.planning.planner import Candidate, SearchSpace


class Setting(NamedTuple):
    """A setting that changes a run's memory and speed, but not what it learns.

    Attributes:
        key: Its key, with the section.
        name: What `SearchSpace` calls its choices, and `MemorySettings` or `StepShape` the one chosen.
        needs: The requirement for switching it on, if there is one.
    """

    key: str
    name: str
    needs: str = ""

    def configured(self, config: RunConfig, num_layers: int) -> Any:
        """The value in a configuration; None if it is left open.

        Args:
            config: The configuration.
            num_layers: Layers of the base, which `gradient_checkpointing=true` stands for.
        """
        value = _read(config, self.key)
        if value == "auto":
            return None
        if self.name == "num_checkpointed":
            return num_layers if value is True else min(int(value or 0), num_layers)
        return value

    def spell(self, value: Any) -> str:
        """The setting with this value, as written on the command line."""
        if self.name == "num_checkpointed" and value == 0:
            value = False
        return f"{self.key}={str(value).lower()}"


FORMAT = Setting("model.quantize", "quantize")
SETTINGS = (
    FORMAT,
    Setting(
        "model.offload_embedding",
        "offloads_embedding",
        "fused layers, and an embedding that is not shared with the output layer",
    ),
    Setting("train.max_tokens_per_device", "max_tokens"),
    Setting("train.gradient_checkpointing", "num_checkpointed"),
    Setting("train.offload_checkpoints", "offloads_checkpoints", "fused layers"),
    Setting(
        "train.cuda_graphs",
        "uses_graphs",
        "fused layers, 16 bits on an Ampere or newer GPU, and torch's own AdamW or SGD",
    ),
)


def decide(whole: SearchSpace, config: RunConfig, num_layers: int, why_not_fused: str | None = None) -> SearchSpace:
    """Restricts the choices to those that the user's settings allow.

    Args:
        whole: All choices, without the user's settings.
        config: The configuration.
        num_layers: Layers of the base.
        why_not_fused: Why the layers cannot be fused; None if they can.

    Raises:
        ConfigError: The settings ask for something impossible.
    """
    decided: dict[str, Any] = {}
    for setting in SETTINGS:
        value = setting.configured(config, num_layers)
        if value is None:
            continue
        if setting.needs and value not in vars(whole)[setting.name]:
            why = f"; here, {why_not_fused}" if why_not_fused else ""
            raise ConfigError(f"{setting.spell(value)} is not possible: it requires {setting.needs}{why}")
        decided[setting.name] = (value,)
    if "quantize" in decided:
        check_adapter(decided["quantize"][0], config.lora)
    if decided.get("offloads_checkpoints") == (True,):
        if decided.get("num_checkpointed") == (0,):
            raise ConfigError(
                "train.offload_checkpoints=true: there is nothing to offload without gradient_checkpointing"
            )
        if decided.get("uses_graphs") == (True,):
            raise ConfigError("train.cuda_graphs=true cannot be used with train.offload_checkpoints=true")
        decided.setdefault("num_checkpointed", range(1, num_layers + 1))
        decided["uses_graphs"] = (False,)
    elif decided.get("num_checkpointed") == (0,):
        decided["offloads_checkpoints"] = (False,)
    return replace(whole, **decided)


def with_settings(config: RunConfig, candidate: Candidate, settings: Iterable[Setting] = SETTINGS) -> RunConfig:
    """The configuration with a plan's choices filled in."""
    chosen = _chosen(candidate)
    return _filled(config, {setting.key: chosen[setting.name] for setting in settings})


def as_before(config: RunConfig, before: RunManifest, settings: Iterable[Setting] = SETTINGS) -> RunConfig:
    """The configuration with open settings taken from an earlier run.

    Args:
        config: The configuration.
        before: The earlier run's manifest.
        settings: The settings to take over.
    """
    filled = {}
    for setting in settings:
        value = before.setting(setting.key)
        if _read(config, setting.key) in (None, "auto") and value not in (None, "auto"):
            filled[setting.key] = value
    return _filled(config, filled)


def spell(candidate: Candidate) -> list[str]:
    """A plan's settings, as on the command line."""
    chosen = _chosen(candidate)
    return [setting.spell(chosen[setting.name]) for setting in SETTINGS]


def _chosen(candidate: Candidate) -> dict[str, Any]:
    return {**asdict(candidate.settings), "max_tokens": candidate.step.max_tokens}


def _read(config: RunConfig, key: str) -> Any:
    section, _, name = key.partition(".")
    return config.model.model_dump().get(name) if section == "model" else config.train.get(name)


def _filled(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """A copy with some values set, by full key."""
    by_section: dict[str, dict[str, Any]] = {"model": {}, "train": {}}
    for key, value in values.items():
        section, _, name = key.partition(".")
        by_section[section][name] = value
    update = {
        "model": config.model.model_copy(update=by_section["model"]),
        "train": {**config.train, **by_section["train"]},
    }
    return config.model_copy(update=update)
