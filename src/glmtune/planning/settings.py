"""The settings that a plan chooses, one row each: key, choices, what they need, how they are read, written and said."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from glmtune.errors import ConfigError
from glmtune.loading.formats import Quantize
from glmtune.planning.memory import MemoryEstimate, MemorySettings, StepShape

# The values to choose among by the name of the setting; a single one where the user has decided.
Choices = Mapping[str, Sequence[Any]]


class _Conditions(NamedTuple):
    """What a run's choices depend on; the arguments of `possible_choices`."""

    formats: Sequence[Quantize]
    num_layers: int
    is_fused: bool
    is_tied: bool
    can_graph: bool
    pass_limits: Sequence[int]


@dataclass(frozen=True)
class _Setting:
    """A setting that changes a run's memory and speed, but not what it learns.

    Attributes:
        key: Its key, with the section.
        name: Its name in `Choices`, and in `MemorySettings` or `StepShape`.
        choices: The values that a run may have under its conditions; without a GPU, the first one is taken.
        says: What a plan says of a value; nothing where it is empty.
        needs: The requirement for switching it on, if there is one.
        read: Turns a value of the configuration into one of the choices; also takes the number of layers.
        write: Turns one of the choices into a value of the configuration.
        alternatives: Which of the choices are tried instead of a value to save memory.
        excludes: Settings that switching it on changes, with their values.
        is_departure: Whether switching it on has to make the run faster by a little to be chosen.
    """

    key: str
    name: str
    choices: Callable[[_Conditions], Sequence[Any]]
    says: Callable[[Any], str]
    needs: str = ""
    read: Callable[[Any, int], Any] = lambda value, _num_layers: value
    write: Callable[[Any], Any] = lambda value: value
    alternatives: Callable[[Any, Sequence[Any]], Sequence[Any]] = lambda value, choices: [
        each for each in choices if each != value
    ]
    excludes: Mapping[str, Any] = field(default_factory=dict)
    is_departure: bool = False

    def spell(self, value: Any) -> str:
        """The setting with this value, as written on the command line."""
        return f"{self.key}={str(self.write(value)).lower()}"


FORMAT = _Setting(
    "model.quantize",
    "quantize",
    lambda run: run.formats,
    says=lambda quantize: "base not quantised" if quantize == "none" else f"base {quantize}",
)
SETTINGS = (
    FORMAT,
    _Setting(
        "model.offload_embedding",
        "offloads_embedding",
        lambda run: (False, True) if run.is_fused and not run.is_tied else (False,),
        says=lambda offloads: "embedding in host memory" if offloads else "",
        needs="fused layers, and an embedding that is not shared with the output layer",
        is_departure=True,
    ),
    _Setting(
        "train.max_tokens_per_device",
        "max_tokens",
        lambda run: run.pass_limits,
        says=lambda limit: f"passes of at most {limit:,} tokens",
        alternatives=lambda limit, limits: [each for each in limits if each < limit][:1],
    ),
    _Setting(
        "train.gradient_checkpointing",
        "num_checkpointed",
        lambda run: range(run.num_layers + 1),
        says=lambda number: f"checkpointed layers: {number}",
        read=lambda value, num_layers: num_layers if value is True else min(int(value), num_layers),
        write=lambda value: value or False,
        alternatives=lambda number, numbers: [numbers[-1]] if number < numbers[-1] else [],
        is_departure=True,
    ),
    _Setting(
        "train.offload_checkpoints",
        "offloads_checkpoints",
        lambda run: (False, True) if run.is_fused else (False,),
        says=lambda offloads: "their inputs in host memory" if offloads else "",
        needs="fused layers",
        excludes={"uses_graphs": False},
        is_departure=True,
    ),
    _Setting(
        "train.cuda_graphs",
        "uses_graphs",
        lambda run: (True, False) if run.can_graph else (False,),
        says=lambda uses: "CUDA graphs" if uses else "no CUDA graphs",
        needs="fused layers, 16 bits on an Ampere or newer GPU, and torch's own AdamW or SGD",
    ),
)


@dataclass(frozen=True)
class Candidate:
    """Settings, with their estimated memory and time.

    Attributes:
        settings: The settings.
        step: The size and number of its passes.
        memory: The estimated device memory.
        seconds_per_step: The estimated time of an optimiser step.
    """

    settings: MemorySettings
    step: StepShape
    memory: MemoryEstimate
    seconds_per_step: float


def possible_choices(
    *,
    formats: Sequence[Quantize],
    num_layers: int,
    is_fused: bool,
    is_tied: bool,
    can_graph: bool,
    pass_limits: Sequence[int],
) -> Choices:
    """All choices that a run has, without the user's settings.

    Args:
        formats: Formats that base, adapter and device can work in, the most exact first; one is chosen only if nothing
            fits with those before it.
        num_layers: Layers of the base.
        is_fused: Whether the layers can be fused.
        is_tied: Whether the output layer is the token embedding.
        can_graph: Whether passes can be recorded as CUDA graphs.
        pass_limits: Most tokens of a pass, descending.
    """
    conditions = _Conditions(formats, num_layers, is_fused, is_tied, can_graph, pass_limits)
    return {setting.name: setting.choices(conditions) for setting in SETTINGS}


def in_format(choices: Choices, quantize: Quantize) -> Choices:
    """The same choices for a base in one format."""
    return {**choices, FORMAT.name: (quantize,)}


def given_settings(read: Callable[[str], Any]) -> dict[str, Any]:
    """The settings that are not left open, by key.

    Args:
        read: Looks a key up in a configuration, or in the record of an earlier run.
    """
    values = {setting.key: read(setting.key) for setting in SETTINGS}
    return {key: value for key, value in values.items() if value not in (None, "auto")}


def decide(whole: Choices, given: Mapping[str, Any], why_not_fused: str | None = None) -> Choices:
    """Restricts the choices to those that the user's settings allow.

    Args:
        whole: All choices, without the user's settings.
        given: The user's settings, by key.
        why_not_fused: Why the layers cannot be fused; None if they can.

    Raises:
        ConfigError: The settings ask for something impossible.
    """
    decided: dict[str, Sequence[Any]] = {}
    num_layers = max(whole["num_checkpointed"])
    for setting in SETTINGS:
        if setting.key not in given:
            continue
        value = setting.read(given[setting.key], num_layers)
        if setting.needs and value not in whole[setting.name]:
            why = f"; here, {why_not_fused}" if why_not_fused else ""
            raise ConfigError(f"{setting.spell(value)} is not possible: it requires {setting.needs}{why}")
        decided[setting.name] = (value,)
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
    return {**whole, **decided}


def chosen_settings(candidate: Candidate) -> dict[str, Any]:
    """A plan's settings, by key."""
    chosen = values_of(candidate)
    return {setting.key: chosen[setting.name] for setting in SETTINGS}


def spell(candidate: Candidate) -> list[str]:
    """A plan's settings, as on the command line."""
    return spell_values(values_of(candidate))


def spell_values(values: Mapping[str, Any]) -> list[str]:
    """Values by the names of their settings, as on the command line."""
    return [setting.spell(values[setting.name]) for setting in SETTINGS if setting.name in values]


def say_settings(candidate: Candidate) -> list[str]:
    """A plan's settings in words."""
    values = values_of(candidate)
    return [said for setting in SETTINGS if (said := setting.says(values[setting.name]))]


def values_of(candidate: Candidate) -> dict[str, Any]:
    """A plan's settings by their names in `Choices`."""
    return {**asdict(candidate.settings), "max_tokens": candidate.step.max_tokens}
