"""The sections of a configuration and what each key in them may be."""

import shlex
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationInfo, field_validator

from glmtune.config.key_checks import path_fault
from glmtune.config.keys import LORA_DEFAULTS, OWN_TRAIN_KEYS, PASSED_KEYS, TRAIN_DEFAULTS
from glmtune.prompts import Template


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
            that does not fit on the GPU.
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
        "where none does not fit on the GPU.",
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

    template: Literal["auto", Template] = Field(
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

    def keep_arguments(self, file: Sequence[str], overrides: Sequence[str]) -> None:
        """Remembers what the run was started with, for `command`."""
        self._arguments = (*file, *overrides)

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
        described += [KeyDescription(f"{name}.{key}", defaults[key], text) for key, text in PASSED_KEYS[name].items()]
    return described + [KeyDescription(f"train.{key}", None, text) for key, text in OWN_TRAIN_KEYS.items()]
