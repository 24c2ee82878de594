"""An adapter on disk: `adapter_config.json` and `adapter_model.safetensors`, as stock PEFT reads them.

What is saved always applies to the base as it was published. pissa and olora move part of the base's weights into the
adapter (A0, B0) and train on from there; the difference is a plain adapter of twice the rank:

    W + s (B A - B0 A0)  =  W + s [B | -B0] [A ; A0]

The halves can be separated again, so a run resumes from the same file that other tools load.
"""

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from glmtune.adapters.lora import init_for_loading
from glmtune.errors import AdapterError, summarise_faults
from glmtune.files import read_json_object, storage_faults, write_json, write_tensors

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
OLD_WEIGHTS_NAME = "adapter_model.bin"
_ALWAYS_WRITTEN = (
    "base_model_name_or_path",
    "inference_mode",
    "lora_alpha",
    "lora_dropout",
    "peft_type",
    "r",
    "target_modules",
    "task_type",
)


def save_adapter(
    model: PeftModel,
    folder: str | Path,
    initial_weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Saves the adapter of a model for the base as published.

    Args:
        model: A model from `attach_lora`.
        folder: Where to; made if need be.
        initial_weights: What `initial_adapter_weights` gave after attaching.

    Raises:
        StorageError: They cannot be written.
    """
    folder = Path(folder)
    weights = adapter_weights(model)
    config = copy.deepcopy(model.peft_config["default"])
    config.inference_mode = True
    if initial_weights:
        weights = _to_plain_lora(weights, initial_weights)
        _double_rank(config)
    with storage_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / WEIGHTS_NAME, {name: weight.contiguous() for name, weight in weights.items()})
        write_json(folder / CONFIG_NAME, _config_values(config))


def adapter_weights(model: PeftModel) -> dict[str, Tensor]:
    """Copies on the CPU of a model's adapter weights, under their names in an adapter file."""
    # Embeddings are never resized here; left to itself, PEFT would ask a hub whether they were.
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: weight.detach().to("cpu", copy=True) for name, weight in weights.items()}


def load_adapter_weights(
    model: PeftModel, folder: str | Path, initial_weights: Mapping[str, Tensor] | None = None
) -> None:
    """Fills the adapter of a model from a folder, after checking that names and shapes agree.

    Args:
        model: A model with an adapter that is configured like the one on disk.
        folder: A folder that `save_adapter` or PEFT wrote.
        initial_weights: From `initial_adapter_weights`, if the run in memory is a pissa or olora run.

    Raises:
        AdapterError: The file is damaged, or its weights do not fit or are not finite; all of them in one message.
    """
    weights = read_adapter_weights(model, folder, is_doubled=bool(initial_weights))
    if initial_weights:
        weights = {name: _first_half(name, weight) for name, weight in weights.items()}
    set_peft_model_state_dict(model, weights)


def read_adapter_weights(model: PeftModel, folder: str | Path, *, is_doubled: bool = False) -> dict[str, Tensor]:
    """Reads an adapter's weights, after checking that names and shapes agree with a model's.

    Args:
        model: A model with an adapter that is configured like the one on disk; its weights are not used and may be on
            the meta device.
        folder: A folder that `save_adapter` or PEFT wrote.
        is_doubled: Whether the file has twice the rank, as pissa and olora runs write it.

    Returns:
        The weights by their names in the file.

    Raises:
        AdapterError: As for `load_adapter_weights`.
    """
    folder = Path(folder)
    expected = {
        name: tuple(weight.shape)
        for name, weight in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }
    if is_doubled:
        expected = {name: _doubled_shape(name, shape) for name, shape in expected.items()}
    _check_weights(folder, expected)
    weights = _read_weights(folder)
    _check_values(folder, weights)
    return weights


def read_initial_weights(folder: str | Path) -> dict[str, Tensor]:
    """The A0 and B0 of a pissa or olora run, from a checkpoint of it."""
    initial = {}
    for name, weight in _read_weights(Path(folder)).items():
        if ".lora_A." in name:
            initial[name] = weight[weight.shape[0] // 2 :].contiguous()
        elif ".lora_B." in name:
            initial[name] = -weight[:, weight.shape[1] // 2 :].contiguous()
    return initial


def read_adapter_config(folder: str | Path) -> LoraConfig:
    """Reads `adapter_config.json` of any PEFT version.

    Returns:
        The configuration to put the saved adapter on its base with, its `init_lora_weights` from `init_for_loading`.

    Raises:
        AdapterError: It is missing or damaged, describes something other than LoRA, or an adapter that cannot be put
            on its base again; see `init_for_loading`.
    """
    file = Path(folder) / CONFIG_NAME
    values = read_json_object(file, AdapterError)
    try:
        checked = _ConfigFile.model_validate(values)
    except ValidationError as error:
        keys = dict.fromkeys(str(fault["loc"][0]) for fault in error.errors())
        raise AdapterError(
            summarise_faults(f"{file} is damaged", [f"{file}: {_say_key(k, values)}" for k in keys])
        ) from error
    if checked.peft_type != "LORA":
        raise AdapterError(f"{file}: expected a LoRA adapter, peft_type LORA; found {checked.peft_type}")
    try:
        init = init_for_loading(checked.init_lora_weights)
        config = LoraConfig.from_pretrained(str(folder))
    except (AdapterError, OSError, ValueError, TypeError, ImportError) as error:
        raise AdapterError(f"{file}: {error}") from error
    config.init_lora_weights = init
    return config


class _ConfigFile(BaseModel):
    """The keys of `adapter_config.json` that decide what the adapter computes, with types that PEFT does not check."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    peft_type: str = Field(description="a PEFT method, such as LORA")
    task_type: str | None = Field(None, description="a PEFT task, such as CAUSAL_LM")
    auto_mapping: dict[str, Any] | None = Field(None, description="names of classes, by their keys")
    revision: str | None = Field(None, description="a revision of the base on its hub")
    base_model_name_or_path: str | None = Field(None, description="the folder or hub id of the base")
    r: int = Field(8, ge=1, description="a whole number above 0")
    lora_alpha: int | float = Field(8, description="a number")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="a number from 0 to below 1")
    bias: Literal["none", "all", "lora_only"] = Field("none", description="none, all or lora_only")
    target_modules: list[str] | str | None = Field(None, description="a list of names, or a regular expression")
    exclude_modules: list[str] | str | None = Field(None, description="a list of names, or a regular expression")
    modules_to_save: list[str] | None = Field(None, description="a list of names")
    layers_to_transform: list[int] | int | None = Field(None, description="a list of layers, by their numbers")
    layers_pattern: list[str] | str | None = Field(None, description="a name, or a list of names")
    layer_replication: list[list[int]] | None = Field(None, description="a list of pairs of layers")
    target_parameters: list[str] | None = Field(None, description="a list of names")
    trainable_token_indices: list[int] | dict[str, list[int]] | None = Field(None, description="lists of token ids")
    alora_invocation_tokens: list[int] | None = Field(None, description="a list of token ids")
    megatron_config: dict[str, Any] | None = Field(None, description="settings by their names")
    rank_pattern: dict[str, int] | None = Field(None, description="whole numbers by the names of layers")
    alpha_pattern: dict[str, int | float] | None = Field(None, description="numbers by the names of layers")
    fan_in_fan_out: bool = Field(False, description="true or false")
    use_rslora: bool = Field(False, description="true or false")
    use_dora: bool = Field(False, description="true or false")
    lora_bias: bool = Field(False, description="true or false")
    init_lora_weights: bool | str = Field(True, description="true, false or the name of an initialisation")


def _say_key(key: str, values: Mapping[str, Any]) -> str:
    """The fault of a key of `adapter_config.json`."""
    found = f"found {values[key]!r:.80}" if key in values else "it is missing"
    return f"{key}: expected {_ConfigFile.model_fields[key].description}; {found}"


def _config_values(config: LoraConfig) -> dict[str, Any]:
    """The contents of `adapter_config.json`: the keys that other tools need, and those that differ from the defaults.

    Versions of PEFT before 0.14 refuse unknown keys, and the official code runs on such versions.
    """
    defaults = LoraConfig().to_dict()
    values = {
        name: value for name, value in config.to_dict().items() if name in _ALWAYS_WRITTEN or value != defaults[name]
    }
    return {name: sorted(value) if isinstance(value, set) else value for name, value in sorted(values.items())}


def _to_plain_lora(weights: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> dict[str, Tensor]:
    plain = dict(weights)
    for name, before in initial.items():
        is_a = ".lora_A." in name
        plain[name] = torch.cat([weights[name], before if is_a else -before], dim=0 if is_a else 1)
    return plain


def _double_rank(config: LoraConfig) -> None:
    """Makes a configuration describe twice the rank at the same scaling."""
    factor = math.sqrt(2) if config.use_rslora else 2
    config.init_lora_weights = True
    config.r *= 2
    config.lora_alpha *= factor
    config.rank_pattern = {name: 2 * rank for name, rank in (config.rank_pattern or {}).items()}
    config.alpha_pattern = {name: factor * alpha for name, alpha in (config.alpha_pattern or {}).items()}


def _doubled_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if ".lora_A." in name:
        return (2 * shape[0], *shape[1:])
    return (shape[0], 2 * shape[1]) if ".lora_B." in name else shape


def _first_half(name: str, weight: Tensor) -> Tensor:
    if ".lora_A." in name:
        return weight[: weight.shape[0] // 2]
    return weight[:, : weight.shape[1] // 2] if ".lora_B." in name else weight


def _check_weights(folder: Path, expected: Mapping[str, tuple[int, ...]]) -> None:
    found = _read_shapes(folder)
    faults = [f"{name} is missing" for name in expected if name not in found]
    faults += [f"{name} is not part of this adapter" for name in found if name not in expected]
    faults += [
        f"{name}: expected shape {list(shape)}; found {list(found[name])}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if faults:
        raise AdapterError(
            f"{summarise_faults(f'{folder} does not fit the base model or its own adapter_config.json', faults)}\n"
            "Is this the base that the adapter was trained on? If not, pass the right one with --model."
        )


def _check_values(folder: Path, weights: Mapping[str, Tensor]) -> None:
    faults = []
    for name, weight in weights.items():
        if not weight.is_floating_point():
            faults.append(f"{name}: expected floating-point numbers; found {str(weight.dtype).removeprefix('torch.')}")
        elif not torch.isfinite(weight.float()).all():
            faults.append(f"{name} holds NaN or infinite numbers")
    if faults:
        file = _weights_file(folder)
        raise AdapterError(
            f"{summarise_faults(f'{file} cannot be used', [f'{file}: {fault}' for fault in faults], limit=5)}\n"
            "Its training went wrong, or the file is damaged; use an earlier checkpoint, or train again."
        )


def _weights_file(folder: Path) -> Path:
    """The file that an adapter's weights are read from."""
    file, old_file = folder / WEIGHTS_NAME, folder / OLD_WEIGHTS_NAME
    return old_file if old_file.is_file() and not file.is_file() else file


def _read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name; of safetensors only the header is read."""
    file = folder / WEIGHTS_NAME
    if not file.is_file():
        return {name: tuple(weight.shape) for name, weight in _read_weights(folder).items()}
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{file} is damaged or cut short: {error}") from error


def _read_weights(folder: Path) -> dict[str, Tensor]:
    file = _weights_file(folder)
    try:
        if file.name == WEIGHTS_NAME:
            return load_file(file)
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise AdapterError(f"{folder} has neither {WEIGHTS_NAME} nor {OLD_WEIGHTS_NAME}") from error
    except (SafetensorError, OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise AdapterError(f"{file} is damaged or cut short: {error}") from error
    if not isinstance(weights, dict) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise AdapterError(f"{file}: expected weights by name; found a {type(weights).__name__} of something else")
    return weights
