"""The sections of a configuration, with the keys and allowed values of each."""

import shlex
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationInfo, field_validator

from glmtune.config.key_checks import path_fault, plain_types
from glmtune.config.keys import LORA_DEFAULTS, OWN_TRAIN_HINTS, OWN_TRAIN_KEYS, PASSED_KEYS, TRAIN_DEFAULTS
from glmtune.config.secrets import is_secret
from glmtune.prompts import Template


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)


def _check_path(value: object) -> object:
    """Refuses an empty path, which would silently select the built-in base or data."""
    paths = list(value) if isinstance(value, list | dict) else [value]
    if not paths or any(path is None or (isinstance(path, str) and not path.strip()) for path in paths):
        raise ValueError("expected a path, found an empty one. Leave the key out to get its default")
    for path in paths:
        if isinstance(path, str) and (fault := path_fault(path)):
            raise ValueError(fault)
    return value


class ModelSection(_Section):
    """The base model.

    Attributes:
        path: Folder in the official layout, or a hub id; None for the tiny base in the package.
        dtype: Dtype of the frozen base; `auto` is bfloat16 or float16 on a GPU, float32 on the CPU.
        quantize: Format of its layers during training; `auto` is `none`, or `int8` or `nf4` if that does not fit on
            the GPU.
        offload_embedding: Whether the token embedding stays in host memory; None to do so only where needed.
        adapter_path: An adapter to start a new run from; None for a fresh one.
    """

    path: str | None = Field(
        default=None, description="Base model: folder or hub id; the tiny built-in base if left out."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Dtype of the frozen base: auto, float32, bfloat16 or float16."
    )
    quantize: Literal["auto", "none", "int8", "nf4", "fp8"] = Field(
        default="auto",
        description="Quantise the frozen base: none, int8, nf4, fp8 (Hopper or newer), or auto, which is int8 or "
        "nf4 only where none does not fit on the GPU.",
    )
    offload_embedding: bool | None = Field(
        default=None,
        description="Keep the token embedding in host memory: true, false, or by default only where needed.",
    )
    adapter_path: str | None = Field(
        default=None,
        description="Adapter to start a new run from: a run, a checkpoint or an adapter folder.",
    )

    _paths = field_validator("path", "adapter_path", mode="before")(_check_path)


class DataSection(_Section):
    """The data.

    Attributes:
        path: A file, several, or a hub data set; a mapping gives each a weight. None for the example persona in the
            package.
        eval_path: Like `path`, for evaluation.
        eval_fraction: Fraction of the samples to hold out for evaluation, if there is no `eval_path`.
        max_length: Maximum number of tokens in a sample; None for no limit.
        overlong: Whether longer samples are truncated or left out.
        faulty: Whether a faulty row is an error or is left out.
        fields: Maps standard column names to those of the file, such as `{"output": "answer"}`.
        loss_weight: Whether the loss of a step is the mean over its tokens, or over the means of its samples.
        join: Text between an instruction and its input.
        num_workers: Number of processes that read and tokenise; None for as many as are worthwhile.
    """

    path: str | list[str] | dict[str, float] | None = Field(
        default=None,
        description="Data file or files, or a hub data set, each with a weight if wanted: general.json:0.2,mine.json; "
        "the built-in example persona if left out.",
    )
    eval_path: str | list[str] | None = Field(default=None, description="Data to evaluate on.")
    eval_fraction: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="Fraction of the samples to hold out for evaluation, such as 0.05."
    )
    max_length: int | None = Field(
        default=512, ge=8, description="Maximum number of tokens in a sample; longer ones are truncated."
    )
    overlong: Literal["cut", "drop"] = Field(
        default="cut", description="Samples longer than data.max_length: cut truncates them, drop leaves them out."
    )
    faulty: Literal["stop", "skip"] = Field(
        default="stop", description="Faulty rows: stop reports all of them and ends, skip leaves them out."
    )
    fields: dict[str, str] = Field(default={}, description="Names of your columns, such as data.fields.output=answer.")
    loss_weight: Literal["token", "sample"] = Field(
        default="token", description="What has equal weight in the loss of a step: each token, or each sample."
    )
    join: str = Field(default="\n", description="Text between instruction and input.")
    num_workers: int | None = Field(default=None, ge=1, description="Processes that read and tokenise the data.")

    _paths = field_validator("path", "eval_path", mode="before")(_check_path)

    @field_validator("join", mode="before")
    @classmethod
    def _read_join(cls, join: object) -> object:
        """`data.join=` means nothing in between; `data.join=\\n` is a newline, which a shell cannot easily pass."""
        if join is None:
            return ""
        return join.replace("\\n", "\n").replace("\\t", "\t") if isinstance(join, str) else join


class PromptSection(_Section):
    """The prompt.

    Attributes:
        template: `chatglm3` or `chatglm2` (official), or `tutorial` (the tutorial's training text); `auto` for that of
            the adapter to start from, else of the run that the base was merged from, else of the base's family.
        system: System prompt for every conversation that has none of its own.
    """

    template: Literal["auto", Template] = Field(
        default="auto", description="Prompt format: chatglm3, chatglm2 (official), tutorial, or auto: the base's own."
    )
    system: str | None = Field(default=None, description="System prompt for conversations that have none.")


class RunConfig(_Section):
    """The complete configuration of a training run.

    Attributes:
        model: The base model.
        data: The data.
        prompt: The prompt.
        lora: Arguments of `peft.LoraConfig`, with `LORA_DEFAULTS` filled in.
        train: Arguments of `transformers.TrainingArguments`, and `OWN_TRAIN_KEYS`, with `TRAIN_DEFAULTS` filled in.
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
        """Fills in defaults; if the run starts from an adapter, all but dropout come from that adapter instead."""
        model = info.data.get("model")
        if model is not None and model.adapter_path is not None:
            given = {key: value for key, value in lora.items() if value != "auto"}
            return {"lora_dropout": LORA_DEFAULTS["lora_dropout"], **given}
        return {**LORA_DEFAULTS, **lora}

    @field_validator("train")
    @classmethod
    def _fill_train(cls, train: dict[str, Any]) -> dict[str, Any]:
        return {**TRAIN_DEFAULTS, **train}

    def setting(self, key: str) -> Any:
        """A setting by its full key, such as `data.join`; None if there is none."""
        section, _, name = key.partition(".")
        return dict(dict(self)[section]).get(name)

    def with_settings(self, values: Mapping[str, Any]) -> "RunConfig":
        """A copy with other settings, by full key."""
        update: dict[str, Any] = {}
        for key, value in values.items():
            section, _, name = key.partition(".")
            update.setdefault(section, {})[name] = value
        for section, changed in update.items():
            before = dict(self)[section]
            is_passed = isinstance(before, dict)
            update[section] = {**before, **changed} if is_passed else before.model_copy(update=changed)
        return self.model_copy(update=update)

    def keep_arguments(self, file: Sequence[str], overrides: Sequence[str]) -> None:
        """Remembers the arguments that the run was started with, for `command`."""
        self._arguments = (*file, *overrides)

    def command(self, *overrides: str) -> str:
        """The command line that starts this run, with `overrides` replacing earlier ones for the same key.

        Secrets are left out: they have to be given again.
        """
        replaced = {override.partition("=")[0] for override in overrides}
        keys = [argument.partition("=")[0] for argument in self._arguments]
        kept = [
            argument
            for key, argument in zip(keys, self._arguments, strict=True)
            if key not in replaced and not (key != argument and is_secret(key))
        ]
        return shlex.join(["glmtune", "train", *kept, *overrides])


OWN_SECTIONS: Mapping[str, type[_Section]] = MappingProxyType(
    {"model": ModelSection, "data": DataSection, "prompt": PromptSection}
)


def value_types() -> dict[str, tuple[type, ...]]:
    """The types that values of our own keys have in JSON, apart from null, by full key."""
    hints = {
        f"{name}.{key}": field.annotation
        for name, section in OWN_SECTIONS.items()
        for key, field in section.model_fields.items()
    }
    hints |= {f"train.{key}": hint for key, hint in OWN_TRAIN_HINTS.items()}
    return {key: plain_types(hint) for key, hint in hints.items()}


def describe_keys() -> dict[str, tuple[Any, str]]:
    """Default and description of our own keys, and of those under `lora` and `train` with a default of ours."""
    described: dict[str, tuple[Any, str]] = {
        f"{name}.{key}": (field.default, field.description or "")
        for name, section in OWN_SECTIONS.items()
        for key, field in section.model_fields.items()
    }
    for name, defaults in (("lora", LORA_DEFAULTS), ("train", TRAIN_DEFAULTS)):
        described |= {f"{name}.{key}": (defaults[key], text) for key, text in PASSED_KEYS[name].items()}
    return described | {f"train.{key}": (None, text) for key, text in OWN_TRAIN_KEYS.items()}
