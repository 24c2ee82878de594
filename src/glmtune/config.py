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
import shlex
import typing
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, ValidationInfo, field_validator

from glmtune.errors import ConfigError, summarise_faults
from glmtune.key_checks import check_value
from glmtune.replaced_keys import REPLACED_LORA_KEYS, REPLACED_TRAIN_KEYS
from glmtune.yaml_text import parse_value, read_yaml

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

WHY_NOT_SHARDED = (
    "spreads a model over GPUs of which none could hold it alone. That is not supported, and not needed: the base is "
    "frozen, and with model.quantize=nf4 ChatGLM3-6B trains on a GPU of 6 GB. To train on several GPUs, each with the "
    "whole model, start it with torchrun --nproc_per_node=N -m glmtune.cli train"
)

_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        **{f"train.{key}": WHY_NOT_SHARDED for key in ("fsdp", "fsdp_config", "deepspeed", "parallelism_config")},
        "train.auto_find_batch_size": "would change how many samples a step has; use train.max_tokens_per_device",
        "train.label_smoothing_factor": "is not supported: the loss is the plain cross entropy of packed rows",
        "train.include_num_input_tokens_seen": "is not supported; tokens/s is always logged",
        "train.torch_empty_cache_steps": "is not supported; the command line lets memory grow in pieces instead",
        "train.use_liger_kernel": "is not supported: it knows no ChatGLM, whose layers are fused here anyway",
        "train.neftune_noise_alpha": "is not supported: its noise is scaled by padded batches, and there are none",
        "train.logging_nan_inf_filter": "hides NaN losses; glmtune keeps it false",
        "train.restore_callback_states_from_checkpoint": "would bring back an old patience; what early stopping has "
        "counted is always brought back",
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


# Keys that mean something when they are given nothing: no system prompt, nothing between instruction and input.
_MAY_BE_EMPTY = ("prompt.system", "data.join")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)


def _check_path(value: object) -> object:
    """A path that is given is no empty one: that would silently stand for the toy in the package."""
    paths = value if isinstance(value, list) else [value]
    if not paths or any(path is None or (isinstance(path, str) and not path.strip()) for path in paths):
        raise ValueError("expected a path, and it is empty. Leave the key out for its default")
    for path in paths:
        if isinstance(path, str) and (fault := path_fault(path)):
            raise ValueError(fault)
    return value


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

    _paths = field_validator("path", "adapter_path", mode="before")(_check_path)


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

    _paths = field_validator("path", "eval_path", mode="before")(_check_path)

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
        template: `chatglm3` or `chatglm2` (official), or `tutorial` (the tutorial's training text); `auto` for that of
            the adapter to start from, else of the run that the base was merged from, else of the base's family.
        system: System prompt put before every conversation that has none of its own.
    """

    template: Literal["auto", "chatglm3", "chatglm2", "tutorial"] = Field(
        default="auto", description="Prompt format: chatglm3, chatglm2 (official), tutorial, or auto: the base's own."
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
    def _fill_lora(cls, lora: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """Fills in defaults; all but dropout are those of the adapter, where the run starts from one."""
        model = info.data.get("model")
        if model is not None and model.adapter_path is not None:
            return {"lora_dropout": LORA_DEFAULTS["lora_dropout"], **lora}
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


def say_base(path: str | None) -> str:
    """Which base is used, as a line; in so many words where it is the built-in one."""
    if path is not None:
        return f"base: {path}"
    return "base: the tiny built-in one, a toy to try things on (model.path is not set)"


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
    values = {} if path is None else read_yaml(Path(path))
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


def _apply_override(values: dict[str, Any], override: str) -> str | None:
    """Sets one `section.key=value` in place; returns the fault where that cannot be done."""
    # Python puts lone surrogates for bytes of an argument that it could not decode.
    if any("\ud800" <= letter <= "\udfff" for letter in override):
        return f"{override!r} has bytes that are not UTF-8; set the terminal to UTF-8, or use a YAML file"
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or len(parts) < 2 or not all(parts):
        return f"{override!r} is not an override; write section.key=value, such as train.max_steps=10"
    if not text.strip() and key.strip() not in _MAY_BE_EMPTY:
        return f"{key.strip()} is empty; was a shell variable not set? Leave the key out for its default"
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
        elif name in _REFUSED and value:
            faults.append(f"{name} {_REFUSED[name]}. Leave it out")
        else:
            checked[key], fault = _check_passed_value(name, value, known.get(key), Target.__dataclass_fields__.get(key))
            fault = fault or _refusal(name, checked[key])
            faults += [fault] if fault else []
    return {**values, **checked}, faults


def _check_passed_value(name: str, value: Any, hint: Any, field: Any) -> tuple[Any, str | None]:
    """As `check_value`, for our own keys and meanings too."""
    key = name.partition(".")[2]
    if name == "train.gradient_checkpointing":
        return _check_checkpointing(name, value)
    if name == "train.resume_from_checkpoint":
        is_good = isinstance(value, bool | str | None) and value != ""
        return value, None if is_good else f"{name}: expected true, or a checkpoint's folder; found {value!r:.80}"
    if name == "lora.target_modules" and value is not None:  # what is said of it names the model's layers
        return value, None
    return check_value(name, value, hint or _OWN_HINTS.get(key, int | None), field)


def _check_checkpointing(name: str, value: Any) -> tuple[Any, str | None]:
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if value in ("auto", True, False, None) or (isinstance(value, int) and 0 <= value < 1000):
        return value, None
    return value, f"{name}: expected true, false, auto or a number of layers; found {value!r:.80}"


def _refusal(name: str, value: Any) -> str | None:
    """Why a value is not taken though it is of the right type."""
    if name == "train.optim" and str(value).startswith(("schedule_free", "lomo", "adalomo")):
        return f"{name}={value} is not supported: it wants a loop of its own"
    if name == "train.output_dir":
        fault = path_fault(value) if value else f"expected a folder; found {value!r}"
        return f"{name}: {fault}" if fault else None
    return None


def path_fault(value: str) -> str | None:
    """What is wrong with a path before anybody looks for it."""
    try:
        Path(value).expanduser()
    except RuntimeError:
        return f"{value} is in the home of a user whom there is not"
    return "a path cannot hold a null character" if "\0" in value else None
