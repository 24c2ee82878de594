"""Loads a folder for inference: base, adapter, tokenizer, template and system prompt."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel

from glmtune.adapters.adapter_files import CONFIG_NAME as ADAPTER_CONFIG_NAME
from glmtune.adapters.adapter_files import load_adapter_weights, read_adapter_config
from glmtune.adapters.inheritance import prompt_record
from glmtune.adapters.lora import make_lora_config, put_on
from glmtune.adapters.run_folder import RunManifest, find_adapter
from glmtune.config import embedded_base
from glmtune.errors import AdapterError, ModelError
from glmtune.hub import is_hub_id
from glmtune.loading.base_weights import is_trained_base
from glmtune.loading.bases import load_base, read_base_config
from glmtune.loading.devices import GIB, DeviceMap, Dtype, default_device, free_device_bytes, resolve_dtype
from glmtune.loading.formats import FORMATS, Quantize, check_quantize, has_bitsandbytes, unquantizable
from glmtune.loading.shape import BaseShape, base_bytes
from glmtune.models.families import family_of
from glmtune.models.tokenizer import Tokenizer
from glmtune.prompts import Template

_logger = logging.getLogger(__name__)
# Caches, activations and logits of a conversation: 28 KB a token at ChatGLM3-6B's shape, and some hundreds of MB.
_ROOM_FOR_A_CHAT = 3 * 2**28


@dataclass(frozen=True)
class Loaded:
    """A model ready for inference, with its prompt settings.

    Attributes:
        model: The base, or the base with its adapter; in evaluation mode.
        tokenizer: The base's tokenizer.
        template: The prompt template that the adapter was trained with.
        system: The system prompt that it was trained with.
        base_path: Where the base came from: a folder or a hub id.
        adapter_path: Where the adapter came from; None for a base alone.
        join: The separator between `instruction` and `input` in training.
        quantize: The format of the base's layers.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: Tokenizer
    template: Template
    system: str | None
    base_path: str
    adapter_path: Path | None
    join: str = "\n"
    quantize: Quantize = "none"


def load(
    path: str | Path,
    *,
    model_path: str | Path | None = None,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    quantize: Quantize | Literal["auto"] = "auto",
) -> Loaded:
    """Loads a run, a checkpoint, an adapter or a base.

    Args:
        path: A run folder, a `checkpoint-N` in one, an adapter folder of stock PEFT, a base folder, or a base's hub id.
        model_path: The base, if it is no longer at the path that the adapter recorded.
        dtype: The dtype of the base; `auto` is bfloat16 on a GPU that computes in it, else float16 on a GPU, else
            float32. Adapters are float32 in any case.
        device_map: As for `from_pretrained`; None for the first GPU, or the CPU where there is none.
        quantize: The format of the base's layers; `auto` is `none`, or if that does not fit on the GPU, the first of
            `int8` and `nf4` that does, with a warning. A quantised model can be used for inference and trained with an
            adapter, but neither saved nor merged; `glmtune.merge` uses the original.

    Returns:
        Model, tokenizer and prompt settings.

    Raises:
        ModelError: There is no such folder, or the base cannot be loaded.
        AdapterError: The adapter is damaged, does not fit the base, or its base cannot be found.
        ConfigError: There is no such device or format, or the adapter does not go with the format.
    """
    adapter_path = find_adapter(path)
    if adapter_path is None:
        if model_path is not None:
            raise ModelError(f"{path} is a base model itself; --model is for an adapter whose base has moved")
        base_path = _expand(path)
        if quantize == "auto":
            quantize = _fitting_format(base_path, dtype, device_map)
        model, tokenizer = load_base(base_path, dtype, device_map, quantize=quantize)
        return _loaded(model, tokenizer, base_path, None, quantize)

    manifest = RunManifest.read(adapter_path)
    config = read_adapter_config(adapter_path)
    base_path = find_base(adapter_path, model_path)
    lora = config.to_dict()
    with base_of(adapter_path, base_path):
        if quantize == "auto":
            quantize = "none" if unquantizable(lora) else _fitting_format(base_path, dtype, device_map)
        check_quantize(quantize, lora)
        model, tokenizer = load_base(base_path, dtype, device_map, quantize=quantize)
        if not is_trained_base(manifest, base_path):
            _logger.warning(
                "%s: the weights of %s are not those that the adapter was trained on, so replies may be worse or make "
                "no sense. Pass the right base with --model",
                adapter_path,
                base_path,
            )
    return _loaded(_load_adapter(model, adapter_path, config), tokenizer, base_path, adapter_path, quantize)


def _loaded(
    model: PreTrainedModel | PeftModel,
    tokenizer: Tokenizer,
    base_path: str,
    adapter_path: Path | None,
    quantize: Quantize,
) -> Loaded:
    template, system, join = prompt_record(adapter_path, base_path, tokenizer)
    # They are part of turning text into ids, and must be available wherever the tokenizer is.
    tokenizer.init_kwargs |= {"prompt_template": template, "system_prompt": system}
    return Loaded(model.eval(), tokenizer, template, system, base_path, adapter_path, join, quantize)


def _fitting_format(path: str, dtype: Dtype, device_map: DeviceMap) -> Quantize:
    """The most exact format in which a base fits on the GPU that it is loaded to; `none` without a GPU."""
    if not torch.cuda.is_available() or device_map is not None or not has_bitsandbytes():
        return "none"
    with torch.device("meta"):
        config = read_base_config(path)
        base = family_of(config).model_class(config)
    shape, free = BaseShape.of(base, resolve_dtype(dtype)), free_device_bytes(torch.device(default_device()))
    quantize = fitting_format(shape, free)
    if quantize != "none":
        _logger.warning(
            "the base does not fit into %.1f GiB in full precision; it is loaded in %s", free / GIB, quantize
        )
    return quantize


def fitting_format(base: BaseShape, free_bytes: int) -> Quantize:
    """The most exact automatic format in which a base fits, with room for a conversation; else the smallest."""
    names = [each.name for each in FORMATS.values() if each.is_automatic]
    return next((name for name in names if base_bytes(base, name) + _ROOM_FOR_A_CHAT <= free_bytes), names[-1])


def _expand(path: str | Path) -> str:
    """A folder with its ~ replaced; a hub id as it is."""
    return str(Path(path).expanduser()) if Path(path).expanduser().exists() else str(path)


def find_base(adapter_path: Path, model_path: str | Path | None = None) -> str:
    """Finds the base of an adapter.

    Args:
        adapter_path: The adapter's folder.
        model_path: The base, if it is no longer at the path that the adapter recorded.

    Returns:
        A folder or a hub id: the one given, else the run's, else the one that PEFT noted.

    Raises:
        AdapterError: The adapter names no base, or the base no longer exists.
    """
    if model_path is not None:
        return _expand(model_path)
    if manifest := RunManifest.read(adapter_path):
        base_path = str(embedded_base()) if manifest.base_path is None else manifest.base_path
    else:
        base_path = read_adapter_config(adapter_path).base_model_name_or_path or ""
    if (Path(base_path).is_dir() and base_path) or is_hub_id(base_path):
        return base_path
    looked_for = f"its base model is not in {base_path}" if base_path else "it names no base"
    raise AdapterError(f"{adapter_path}: {looked_for}. Say where it is: --model FOLDER")


@contextmanager
def base_of(adapter_path: Path, base_path: str) -> Iterator[None]:
    """Names the adapter in the error for a base that is not available.

    Raises:
        AdapterError: In place of a ModelError from within, where the base is no folder here.
    """
    try:
        yield
    except ModelError as error:
        if Path(base_path).is_dir():
            raise
        message = str(error).rstrip(".")
        if "\n" in message:  # ends with a line to copy
            raise AdapterError(f"{adapter_path}: its {message}\nSay where it is: --model FOLDER") from error
        raise AdapterError(f"{adapter_path}: its {message}. Say where it is: --model FOLDER") from error


def _load_adapter(model: PreTrainedModel, adapter_path: Path, config: LoraConfig) -> PeftModel:
    """Puts a saved adapter on its base."""
    base_dtype = model.dtype
    config.inference_mode = True
    # Checks the targets, with an error that lists what there is.
    checked = ("target_modules", "modules_to_save", "layers_to_transform")
    try:
        make_lora_config(model, {name: value for name, value in config.to_dict().items() if name in checked})
        peft_model = put_on(model, config)
    except AdapterError as error:
        raise AdapterError(f"{adapter_path / ADAPTER_CONFIG_NAME}: {error}") from error
    load_adapter_weights(peft_model, adapter_path)
    for name, parameter in peft_model.named_parameters():
        # Whole modules that were trained along meet activations of the base's type, with no autocast around them.
        if ".modules_to_save." in name:
            parameter.data = parameter.data.to(base_dtype)
    return peft_model
