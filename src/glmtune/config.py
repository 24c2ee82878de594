"""The run's configuration: five sections, from a YAML file and `section.key=value` overrides.

    model   the base                      keys of our own
    data    what is learnt                keys of our own
    prompt  how it is put to the model    keys of our own
    lora    the adapter                   the names of `peft.LoraConfig`
    train   the loop                      the names of `transformers.TrainingArguments`

Importing this module is cheap; checking the names under `lora` and `train` imports peft and transformers, which a run
needs anyway.
"""

import difflib
import re
import shlex
import typing
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, TypeAdapter, ValidationError, field_validator

from glmtune.errors import ConfigError, summarise_faults
from glmtune.replaced_keys import REPLACED_LORA_KEYS, REPLACED_TRAIN_KEYS

LORA_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"r": 8, "lora_alpha": 32, "lora_dropout": 0.1, "target_modules": ["query_key_value"]}
)
TRAIN_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "output_dir": "./output/ChatGLM",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "logging_steps": 10,
        "num_train_epochs": 3,
        "gradient_checkpointing": "auto",
        "save_steps": 100,
        "learning_rate": 1e-4,
        "save_on_each_node": True,
        "report_to": "none",
    }
)

# Keys under `train` that TrainingArguments does not have.
OWN_TRAIN_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "early_stopping_patience": "Stop after this many evaluations in a row without a better metric.",
        "max_tokens_per_device": "Most tokens of one forward pass; by default what per_device_train_batch_size of the "
        "longest samples have, or less if the GPU's memory asks for it. A step of more is split, with the same result.",
        "offload_checkpoints": "Keep checkpointed layers' inputs in the host's memory: true, false, or as it fits.",
        "cuda_graphs": "Record small passes as CUDA graphs, which takes memory: true, false, or as it fits.",
        "shared_prefix": "Compute what samples of a step begin with alike only once: true, false, or by default "
        "wherever lora_dropout is 0, where it is exact.",
    }
)

# Types of our keys under `train` that are no whole numbers.
_OWN_HINTS: Mapping[str, Any] = MappingProxyType(
    dict.fromkeys(("shared_prefix", "offload_checkpoints", "cuda_graphs"), bool | None)
)

# The least that a number under `train` may be.
_LEAST: Mapping[str, int] = MappingProxyType(
    {
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "eval_accumulation_steps": 1,
        "early_stopping_patience": 1,
        "max_tokens_per_device": 1,
        "dataloader_num_workers": 0,
        "gradient_checkpointing": 0,
    }
)
# Numbers of steps, or a share of all steps where they are below 1.
_ABOVE_ZERO = ("logging_steps", "save_steps", "eval_steps", "num_train_epochs")

_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "train.auto_find_batch_size": "would change how many samples a step has; use train.max_tokens_per_device",
        "train.label_smoothing_factor": "is not supported: the loss is the plain cross entropy of packed rows",
        "train.include_num_input_tokens_seen": "is not supported; tokens/s is always logged",
        "train.torch_empty_cache_steps": "is not supported; the command line lets memory grow in pieces instead",
        "train.neftune_noise_alpha": "is not supported: its noise is scaled by padded batches, and there are none",
        "train.logging_nan_inf_filter": "hides NaN losses; glmtune keeps it false",
        "lora.inference_mode": "freezes the adapter, so that nothing is trained",
    }
)

_PASSED_KEYS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "lora": {
            "r": "Rank of the adapter.",
            "lora_alpha": "Scale of the adapter: its output is multiplied by lora_alpha / r.",
            "lora_dropout": "Dropout on the adapter's input.",
            "target_modules": "Layers to adapt: a list of names, a regular expression, or all-linear.",
        },
        "train": {
            "output_dir": "The run folder.",
            "per_device_train_batch_size": "Samples of an optimiser step, times gradient_accumulation_steps.",
            "gradient_accumulation_steps": "Samples of an optimiser step, times per_device_train_batch_size.",
            "logging_steps": "Optimiser steps between two log lines.",
            "num_train_epochs": "Passes over the data.",
            "gradient_checkpointing": "Recompute activations in the backward pass: true, false, a number of layers, "
            "or auto for as few as fit.",
            "save_steps": "Optimiser steps between two checkpoints.",
            "learning_rate": "Peak learning rate.",
            "save_on_each_node": "Save on every node of a cluster rather than on the first.",
            "report_to": "Experiment trackers, such as tensorboard or wandb.",
        },
    }
)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)


class ModelSection(_Section):
    """The base model.

    Attributes:
        path: Folder in the official layout, or a hub id; None for the tiny base in the package.
        dtype: How the frozen base is held; `auto` is bfloat16 or float16 on a GPU, float32 on the CPU.
        quantize: What its layers are held in while an adapter is trained; `auto` is `none`, but `int8` or `nf4` where
            that does not fit on the GPU, or is faster by a quarter.
        offload_embedding: Whether the token embedding stays in the host's memory; None for where it is needed.
        adapter_path: An adapter whose weights a new run starts from; None for a fresh one.
    """

    path: str | None = Field(
        default=None, description="Base model: folder or hub id; the tiny built-in base if left out."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Type of the frozen base: auto, float32, bfloat16 or float16."
    )
    quantize: Literal["auto", "none", "int8", "nf4", "fp8"] = Field(
        default="auto",
        description="Hold the frozen base in fewer bits: none, int8, nf4, fp8 (Hopper or newer), or auto: int8 or nf4 "
        "where none does not fit on the GPU, or would be slower by a quarter.",
    )
    offload_embedding: bool | None = Field(
        default=None, description="Keep the token embedding in the host's memory: true, false, or as it fits."
    )
    adapter_path: str | None = Field(
        default=None,
        description="Adapter to start a new run from: a run, a checkpoint or an adapter folder.",
    )


class DataSection(_Section):
    """The data.

    Attributes:
        path: A file, several, or a hub data set; None for the example persona in the package.
        eval_path: As `path`, to evaluate on.
        eval_fraction: Share of the samples to set apart for evaluation, where there is no `eval_path`.
        max_length: Most tokens a sample may have; None for no limit.
        fields: Column names of the file by the names that they stand for, such as `{"output": "answer"}`.
        loss_weight: Whether the loss is the mean over a step's tokens, or over the means of its samples.
        join: What stands between an instruction and its input.
        num_workers: Processes that read and tokenise; None for as many as pay.
    """

    path: str | list[str] | None = Field(
        default=None, description="Data file or files, or a hub data set; the built-in example persona if left out."
    )
    eval_path: str | list[str] | None = Field(default=None, description="Data to evaluate on.")
    eval_fraction: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="Share of the samples to set apart and evaluate on, such as 0.05."
    )
    max_length: int | None = Field(default=512, ge=8, description="Most tokens a sample may have; longer ones are cut.")
    fields: dict[str, str] = Field(default={}, description="Your column names: data.fields.output=answer.")
    loss_weight: Literal["token", "sample"] = Field(
        default="token", description="What counts the same in the loss of a step: each token, or each sample."
    )
    join: str = Field(default="\n", description="What stands between instruction and input.")
    num_workers: int | None = Field(default=None, ge=1, description="Processes that read and tokenise the data.")

    @field_validator("join", mode="before")
    @classmethod
    def _read_join(cls, join: object) -> object:
        """`data.join=` is nothing, and `data.join=\\n` the newline that a shell cannot easily pass."""
        if join is None:
            return ""
        return join.replace("\\n", "\n").replace("\\t", "\t") if isinstance(join, str) else join


class PromptSection(_Section):
    """The prompt.

    Attributes:
        template: `chatglm3` (official), or `tutorial` (the tutorial's training text).
        system: System prompt put before every conversation that has none of its own.
    """

    template: Literal["chatglm3", "tutorial"] = Field(
        default="chatglm3", description="Prompt format: chatglm3 (official) or tutorial."
    )
    system: str | None = Field(default=None, description="System prompt for conversations that have none.")


class RunConfig(_Section):
    """Everything that a training run is told.

    Attributes:
        model: The base model.
        data: The data.
        prompt: The prompt.
        lora: `peft.LoraConfig` by its own names, `LORA_DEFAULTS` filled in.
        train: `transformers.TrainingArguments` by its own names and `OWN_TRAIN_KEYS`, `TRAIN_DEFAULTS` filled in.
    """

    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    prompt: PromptSection = PromptSection()
    lora: dict[str, Any] = Field(default={}, validate_default=True)
    train: dict[str, Any] = Field(default={}, validate_default=True)
    _arguments: tuple[str, ...] = PrivateAttr(())

    @field_validator("lora")
    @classmethod
    def _fill_lora(cls, lora: dict[str, Any]) -> dict[str, Any]:
        return {**LORA_DEFAULTS, **lora}

    @field_validator("train")
    @classmethod
    def _fill_train(cls, train: dict[str, Any]) -> dict[str, Any]:
        return {**TRAIN_DEFAULTS, **train}

    def command(self, *overrides: str) -> str:
        """The command line that starts this run, with `overrides` taking the place of earlier ones for the same key."""
        replaced = {override.partition("=")[0] for override in overrides}
        kept = [argument for argument in self._arguments if argument.partition("=")[0] not in replaced]
        return shlex.join(["glmtune", "train", *kept, *overrides])


class KeyDescription(NamedTuple):
    """One configuration key, for a listing: its full name, its default and what it is for."""

    key: str
    default: Any
    description: str


def describe_keys() -> list[KeyDescription]:
    """Lists our own keys, and those under `lora` and `train` that have a default of ours."""
    described = [
        KeyDescription(f"{name}.{key}", field.default, field.description or "")
        for name, section in (("model", ModelSection), ("data", DataSection), ("prompt", PromptSection))
        for key, field in section.model_fields.items()
    ]
    for name, defaults in (("lora", LORA_DEFAULTS), ("train", TRAIN_DEFAULTS)):
        described += [KeyDescription(f"{name}.{key}", defaults[key], text) for key, text in _PASSED_KEYS[name].items()]
    return described + [KeyDescription(f"train.{key}", None, text) for key, text in OWN_TRAIN_KEYS.items()]


def embedded_base() -> Path:
    """The folder of the tiny base model that ships in the package."""
    return _embedded("base")


def embedded_data() -> Path:
    """The example persona data set that ships in the package."""
    return _embedded("persona.json")


def _embedded(name: str) -> Path:
    return Path(str(resources.files("glmtune"))) / "assets" / "tiny" / name


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads and checks the configuration of a training run.

    Paths in it are relative to the current directory.

    Args:
        path: A YAML file; None for the defaults alone.
        overrides: `section.key=value`, values in YAML; the last one for a key wins.

    Returns:
        The configuration, defaults filled in.

    Raises:
        ConfigError: The file cannot be read, or keys or values are wrong; all faults in one message.
    """
    values = {} if path is None else _read_yaml(Path(path))
    faults = [fault for override in overrides if (fault := _apply_override(values, override))]
    for section in ("lora", "train"):
        if isinstance(values.get(section), dict):
            values[section], section_faults = _check_passed_keys(section, values[section])
            faults += section_faults
    try:
        config = RunConfig.model_validate({key: {} if value is None else value for key, value in values.items()})
    except ValidationError as error:
        faults += [_say(fault) for fault in error.errors()]
    if faults:
        raise ConfigError(summarise_faults("configuration" if path is None else str(path), faults))
    config._arguments = (*([] if path is None else [str(path)]), *overrides)
    return config


def validate_names(config: RunConfig) -> None:
    """Checks the keys under `lora` and `train` of a configuration that was not made by `load_config`.

    Args:
        config: The configuration.

    Raises:
        ConfigError: Unknown or replaced keys, or values of the wrong type; all faults in one message.
    """
    faults = [fault for name in ("lora", "train") for fault in _check_passed_keys(name, config.model_dump()[name])[1]]
    if faults:
        raise ConfigError(summarise_faults("configuration", faults))


class _Loader(yaml.SafeLoader):
    """YAML as people write it.

    `1e-4` is a number; only true and false are booleans, so that `eval_strategy: no` is a word; a date is text; and a
    key given twice is an error.
    """

    yaml_implicit_resolvers = {
        letter: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":timestamp"))]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f'"{key}" is given twice', node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?i:true|false)$"), list("tTfF"))

# What constructing a value can raise besides YAMLError: `!!int x`, `!!bool x`, brackets by the thousand.
_YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, RecursionError)


def parse_value(text: str) -> Any:
    """Reads a value from a command line as `load_config` does: YAML in which only true and false are booleans.

    Args:
        text: The value as typed.

    Returns:
        A number, boolean, text, list or dictionary; None for an empty text.

    Raises:
        ConfigError: It is no YAML value; the message names the text.
    """
    try:
        return yaml.load(text, _Loader)
    except _YAML_ERRORS as error:
        raise ConfigError(f"{text!r} is not a YAML value; put it in quotes") from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except _YAML_ERRORS as error:
        raise ConfigError(f"{path}: not YAML in UTF-8: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections such as model: and data:; found a {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


def _apply_override(values: dict[str, Any], override: str) -> str | None:
    """Sets one `section.key=value` in place; returns the fault where that cannot be done."""
    # Python puts lone surrogates for bytes of an argument that it could not decode.
    if any("\ud800" <= letter <= "\udfff" for letter in override):
        return f"{override!r} has bytes that are not UTF-8; set the terminal to UTF-8, or use a YAML file"
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or len(parts) < 2 or not all(parts):
        return f"{override!r} is not an override; write section.key=value, such as train.max_steps=10"
    try:
        value = parse_value(text)
    except ConfigError as error:
        return f"{key}: {error}"
    section = values
    for part in parts[:-1]:
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            return f"{key}: {part} is a value, not a section"
    section[parts[-1]] = value
    return None


def _say(fault: Mapping[str, Any]) -> str:
    """One pydantic fault as a sentence."""
    # Members of a union and sections are told apart by their names: only the first two parts are keys.
    location = [str(part) for part in fault["loc"]][:2]
    key = ".".join(location)
    if fault["type"] != "extra_forbidden":
        return f"{key}: {fault['msg'][0].lower()}{fault['msg'][1:]}; found {fault['input']!r}"
    if len(location) == 1:
        return _say_unknown("", location[0], RunConfig.model_fields)
    sections: dict[str, type[BaseModel]] = {"model": ModelSection, "data": DataSection, "prompt": PromptSection}
    return _say_unknown(f"{location[0]}.", location[1], sections[location[0]].model_fields)


def _say_unknown(prefix: str, key: str, known: Iterable[str]) -> str:
    known = sorted(known)
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if nearest:
        return f"unknown key {prefix}{key}; did you mean {prefix}{nearest[0]}?"
    listing = f"; known keys: {', '.join(known)}" if len(known) < 20 else ""
    return f"unknown key {prefix}{key}{listing}"


def _check_passed_keys(section: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Checks keys and plain values under `lora` or `train` against the class that they are passed to.

    Returns:
        The values, those given as text read as the numbers they stand for, and the faults.
    """
    if section == "lora":
        from peft import LoraConfig as Target

    else:
        from transformers import TrainingArguments as Target

    replaced = {"lora": REPLACED_LORA_KEYS, "train": REPLACED_TRAIN_KEYS}[section]
    own: Mapping[str, str] = OWN_TRAIN_KEYS if section == "train" else {}
    hints = typing.get_type_hints(Target)
    known = {name: hints[name] for name in Target.__dataclass_fields__}
    checked: dict[str, Any] = {}
    faults = []
    for key, value in values.items():
        name = f"{section}.{key}"
        if key in replaced:
            faults.append(f"{name} is not a key here: {replaced[key]}")
        elif key not in known and key not in own:
            # gradient_checkpointing will one day be gone from TrainingArguments; it stays ours.
            if key not in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
                faults.append(_say_unknown(f"{section}.", key, [*known.keys() - replaced.keys(), *own]))
        else:
            checked[key], fault = _check_value(name, value, _OWN_HINTS.get(key) or known.get(key, int | None))
            fault = fault or _range_fault(name, checked[key])
            faults += [fault] if fault else []
    return {**values, **checked}, faults


def _check_value(name: str, value: Any, hint: Any) -> tuple[Any, str | None]:
    """Reads a value where its type is plain; anything richer is left to the class that gets it."""
    members = set(typing.get_args(hint)) if isinstance(hint, UnionType) or typing.get_origin(hint) else {hint}
    if name == "train.gradient_checkpointing" and isinstance(value, str) and value.isdecimal():
        value = int(value)
    is_number_of_layers = isinstance(value, int) and not isinstance(value, bool)
    is_more = name == "train.resume_from_checkpoint" or (
        name == "train.gradient_checkpointing" and (value == "auto" or is_number_of_layers)
    )
    if is_more or not members <= {int, float, bool, str, NoneType} or (value is None and NoneType in members):
        return value, None
    try:
        read = TypeAdapter(hint, config=ConfigDict(coerce_numbers_to_str=True)).validate_python(value)
    except ValidationError:
        expected = " or ".join(sorted(member.__name__ for member in members if member is not NoneType))
        if name == "train.gradient_checkpointing":
            expected = "true, false, auto or a number of layers"
        return value, f"{name}: expected {expected}; found {value!r}"
    return (read, None) if isinstance(value, str) or str in members or members <= {bool, NoneType} else (value, None)


def _range_fault(name: str, value: Any) -> str | None:
    """What is wrong with a value of the right type."""
    if name in _REFUSED and value:
        return f"{name} {_REFUSED[name]}. Leave it out"
    if name == "train.output_dir" and not value:
        return f"{name}: expected a folder; found {value!r}"
    if name == "train.optim" and str(value).startswith(("schedule_free", "lomo", "adalomo")):
        return f"{name}={value} is not supported: it wants a loop of its own"
    section, _, key = name.partition(".")
    if section == "train" and isinstance(value, int | float):
        if key in _LEAST and value < _LEAST[key]:
            return f"{name}: expected at least {_LEAST[key]}; found {value!r}"
        if key in _ABOVE_ZERO and not value > 0:
            return f"{name}: expected a number above 0; found {value!r}"
    return None
