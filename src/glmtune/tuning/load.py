"""From a folder to a model that can be asked: base, adapter, tokenizer, template and system prompt."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from ssl import SSLError
from typing import Any, Literal
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import torch
from huggingface_hub import hf_hub_url, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_OFFLINE
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from glmtune.config import embedded_base
from glmtune.errors import AdapterError, ConfigError, GlmtuneError, ModelError
from glmtune.files import read_json_object
from glmtune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration, ChatGLMTokenizer
from glmtune.models.chatglm.base_folder import TOKENIZER_FILES, TOKENIZER_JSON, check_json_files, require_files
from glmtune.models.chatglm.checkpoint import read_config, read_weights, resolve_and_check
from glmtune.models.chatglm.layers import HostEmbedding
from glmtune.prompts import Template
from glmtune.tuning.adapter_files import CONFIG_NAME as ADAPTER_CONFIG_NAME
from glmtune.tuning.adapter_files import load_adapter_weights, read_adapter_config
from glmtune.tuning.base_weights import check_finite, is_trained_base
from glmtune.tuning.inheritance import prompt_record
from glmtune.tuning.lora import make_lora_config, put_on
from glmtune.tuning.memory import GIB, BaseShape, base_bytes, free_device_bytes
from glmtune.tuning.quantize import (
    Quantize,
    Quantizer,
    check_format,
    check_quantize,
    has_bitsandbytes,
    unquantizable,
)
from glmtune.tuning.run_folder import RunManifest, find_adapter, is_hub_id

_logger = logging.getLogger(__name__)
_HUB_TIMEOUT_S = 5.0
# Caches, activations and logits of a conversation: 28 KB a token at ChatGLM3-6B's shape, and some hundreds of MB.
_ROOM_FOR_A_CHAT = 3 * 2**28

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DeviceMap = str | int | torch.device | dict[str, Any] | None


@dataclass(frozen=True)
class Loaded:
    """A model ready to be asked, with what it has to be asked with.

    Attributes:
        model: The base, or the base with its adapter; in evaluation mode.
        tokenizer: The base's tokenizer.
        template: The prompt template that the adapter was trained with.
        system: The system prompt that it was trained with.
        base_path: Where the base came from: a folder or a hub id.
        adapter_path: Where the adapter came from; None for a base alone.
        join: What stood between `instruction` and `input` in training.
        quantize: What the base's layers are held in.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: ChatGLMTokenizer
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
        model_path: The base, where it is not where the adapter says it was.
        dtype: How the base is held; `auto` is bfloat16 on a GPU that computes in it, else float16 on a GPU, else
            float32. Adapters are float32 in any case.
        device_map: As for `from_pretrained`; None for the first GPU, or the CPU where there is none.
        quantize: What the base's layers are held in; `auto` is `none`, or where that does not fit on the GPU, the first
            of `int8` and `nf4` that does, with a warning. Such a model can be asked and trained with an adapter, but
            neither saved nor merged; `glmtune.merge` takes the original.

    Returns:
        Model, tokenizer and what to ask with.

    Raises:
        ModelError: There is no such folder, or the base cannot be loaded.
        AdapterError: The adapter is damaged, does not fit the base, or its base is not to be found.
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
    tokenizer: ChatGLMTokenizer,
    base_path: str,
    adapter_path: Path | None,
    quantize: Quantize,
) -> Loaded:
    template, system, join = prompt_record(adapter_path, base_path, tokenizer)
    # They belong to how text becomes ids, and are to be there wherever the tokenizer is.
    tokenizer.init_kwargs |= {"prompt_template": template, "system_prompt": system}
    return Loaded(model.eval(), tokenizer, template, system, base_path, adapter_path, join, quantize)


def _fitting_format(path: str, dtype: Dtype, device_map: DeviceMap) -> Quantize:
    """The most exact format in which a base fits on the GPU that it is to be asked on; `none` elsewhere."""
    if not torch.cuda.is_available() or device_map is not None or not has_bitsandbytes():
        return "none"
    with torch.device("meta"):
        base = ChatGLMForConditionalGeneration(read_base_config(path))
    shape, free = BaseShape.of(base, resolve_dtype(dtype)), free_device_bytes(torch.device(default_device()))
    quantize = fitting_format(shape, free)
    if quantize != "none":
        _logger.warning("the base does not fit into %.1f GiB in full precision; it is held in %s", free / GIB, quantize)
    return quantize


def fitting_format(base: BaseShape, free_bytes: int) -> Quantize:
    """The most exact of `none`, `int8` and `nf4` in which a base fits, with room for a conversation."""
    formats: tuple[Quantize, ...] = ("none", "int8", "nf4")
    return next((f for f in formats if base_bytes(base, f) + _ROOM_FOR_A_CHAT <= free_bytes), formats[-1])


def _expand(path: str | Path) -> str:
    """A folder with its ~ replaced; a hub id as it is."""
    return str(Path(path).expanduser()) if Path(path).expanduser().exists() else str(path)


def load_base(
    path: str | Path | None,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    *,
    quantize: Quantize = "none",
    offloads_embedding: bool = False,
) -> tuple[PreTrainedModel, ChatGLMTokenizer]:
    """Loads a base model and its tokenizer.

    Args:
        path: A folder in the official layout or a hub id; None for the tiny base in the package.
        dtype: As for `load`.
        device_map: As for `load`; for the two settings below, None or one device's name.
        quantize: What the layers are held in; each weight is quantised as it is read.
        offloads_embedding: Whether the token embedding stays in the host's memory.

    Returns:
        The model, which stops at the end of a turn, and the tokenizer.

    Raises:
        ModelError: Something is missing or damaged, or is no ChatGLM.
        ConfigError: The device cannot compute in the format, or its package is not installed.
    """
    path = embedded_base() if path is None else path
    if Path(path).is_dir():
        require_files(Path(path), CONFIG_NAME, *TOKENIZER_FILES)
    tokenizer = load_tokenizer(path)
    torch_dtype = resolve_dtype(dtype, device_map)
    with _model_errors(path):
        device = _one_device(device_map)
        if device is not None:
            model = load_by_weight(path, torch_dtype, device, quantize=quantize, offloads_embedding=offloads_embedding)
        elif quantize == "none" and not offloads_embedding:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch_dtype, device_map=device_map)
            for name, weight in model.named_parameters():
                if not weight.is_meta:  # offloaded
                    check_finite(f"{path}: {name}", weight)
        else:
            raise ConfigError(
                f"device_map={device_map!r}: a quantised base, or an embedding on the host, wants one device"
            )
    if not isinstance(model, ChatGLMForConditionalGeneration):
        raise ModelError(f"{path}: expected model_type {ChatGLMConfig.model_type}; found {model.config.model_type}")
    # Official folders name </s> alone; a model that ends its turn with a role token would then talk on.
    model.generation_config.eos_token_id = tokenizer.stop_token_ids
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def _one_device(device_map: DeviceMap) -> torch.device | None:
    """The device that a device map names; None where it spreads a model over several."""
    if isinstance(device_map, dict):
        if list(device_map) != [""]:
            return None
        device_map = device_map[""]
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return None
    try:
        place: Any = default_device() if device_map is None else device_map
        device = torch.device(place)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(f"device_map={device_map!r}: there is no such device here ({error})") from error
    return device


def load_by_weight(
    path: str | Path, dtype: torch.dtype, device: torch.device, *, quantize: Quantize, offloads_embedding: bool
) -> ChatGLMForConditionalGeneration:
    """Loads a base weight by weight: beside what stays, one file is mapped and one weight at a time is on the device.

    Args:
        path: A folder in the official layout or a hub id.
        dtype: What is not quantised is held in, and computed in.
        device: Where to.
        quantize: What the layers are held in.
        offloads_embedding: Whether the token embedding stays in the host's memory.

    Returns:
        The model, in evaluation mode.

    Raises:
        ModelError: Something is missing or damaged, or does not fit the format.
        ConfigError: The device cannot compute in the format, or its package is not installed; or embedding and output
            layer are one.
    """
    folder = Path(resolve_and_check(ChatGLMForConditionalGeneration, str(path), {}))
    config = read_config(folder)
    if offloads_embedding and config.tie_word_embeddings:
        raise ConfigError("model.offload_embedding: this base's output layer is its embedding, which must be at hand")
    check_format(quantize, config, dtype, device)
    with torch.device("meta"):
        model = ChatGLMForConditionalGeneration(config).to(dtype)
    quantizer = Quantizer(model, quantize)
    on_host = "transformer.embedding.word_embeddings.weight" if offloads_embedding else None
    names = set()
    for name, stored in read_weights(folder):
        names.add(name)
        weight = stored.to("cpu" if name == on_host else device, dtype, copy=True)
        del stored
        check_finite(f"{folder}: {name}", weight)
        if name == on_host:
            model.set_input_embeddings(HostEmbedding(weight))
        elif quantizer.wants(name):
            quantizer.put(name, weight)
        else:
            module_name, _, parameter_name = name.rpartition(".")
            setattr(model.get_submodule(module_name), parameter_name, nn.Parameter(weight))
        del weight  # before the next one comes
    # As in transformers, an output layer that has weights of its own keeps them.
    if config.tie_word_embeddings and "transformer.output_layer.weight" not in names:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    config.dtype = dtype
    if (folder / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model.name_or_path = model.config._name_or_path = str(path)
    return model.eval()


def read_base_config(path: str | Path | None) -> ChatGLMConfig:
    """Reads a base's configuration alone.

    Args:
        path: A folder in the official layout or a hub id; None for the tiny base in the package.

    Raises:
        ModelError: There is none, or it is another architecture's.
    """
    path = embedded_base() if path is None else path
    with _model_errors(path):
        if Path(path).is_dir():
            return read_config(Path(path))
        _reach_hub(str(path))
        config = AutoConfig.from_pretrained(path)
    if not isinstance(config, ChatGLMConfig):
        raise ModelError(f"{path}: expected model_type {ChatGLMConfig.model_type}; found {config.model_type}")
    return config


def load_tokenizer(path: str | Path) -> ChatGLMTokenizer:
    """Loads the tokenizer of a base model.

    Args:
        path: A folder in the official layout or a hub id.

    Raises:
        ModelError: It is missing or damaged, or is not ChatGLM's.
    """
    if not Path(path).is_dir() and not is_hub_id(str(path)):
        raise ModelError(f"base model {path}: there is no such folder. Set model.path to where the model lies")
    with _model_errors(path):
        if Path(path).is_dir():
            _check_tokenizer_files(Path(path))
        else:
            _reach_hub(str(path))
        tokenizer = AutoTokenizer.from_pretrained(path)
    if not isinstance(tokenizer, ChatGLMTokenizer):
        raise ModelError(f"{path}: expected ChatGLM's tokenizer; found {type(tokenizer).__name__}")
    return tokenizer


def _check_tokenizer_files(folder: Path) -> None:
    """Finds what AutoTokenizer would trip over before it comes to ChatGLM's tokenizer."""
    require_files(folder, *TOKENIZER_FILES)
    check_json_files(folder, TOKENIZER_JSON)
    file = folder / "tokenizer_config.json"
    name = read_json_object(file, ModelError).get("tokenizer_class")
    if name != ChatGLMTokenizer.__name__:
        raise ModelError(f"{file}: tokenizer_class is {name!r}, expected {ChatGLMTokenizer.__name__!r}")
    if (folder / CONFIG_NAME).is_file():  # AutoTokenizer reads it too
        read_config(folder)


def default_device() -> str:
    """`cuda:0`, or another accelerator's name, or `cpu`."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return "cpu"
    return f"cuda:{torch.cuda.current_device()}" if accelerator.type == "cuda" else str(accelerator)


def resolve_dtype(dtype: Dtype, device_map: DeviceMap = None) -> torch.dtype:
    """The torch type that a dtype setting means on the device at hand.

    Args:
        dtype: The setting.
        device_map: Where the model goes; None for the default device.
    """
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    if not torch.cuda.is_available() or device_map == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def find_base(adapter_path: Path, model_path: str | Path | None = None) -> str:
    """Finds the base of an adapter.

    Args:
        adapter_path: The adapter's folder.
        model_path: The base, where it is not where the adapter says it was.

    Returns:
        A folder or a hub id: the one given, else the run's, else the one that PEFT noted.

    Raises:
        AdapterError: The adapter names no base, or it is not there any more.
    """
    if model_path is not None:
        return _expand(model_path)
    if manifest := RunManifest.read(adapter_path):
        base_path = str(embedded_base()) if manifest.base_path is None else manifest.base_path
    else:
        base_path = read_adapter_config(adapter_path).base_model_name_or_path or ""
    if (Path(base_path).is_dir() and base_path) or is_hub_id(base_path):
        return base_path
    looked_for = f"its base model was looked for in {base_path}, and is not there" if base_path else "it names no base"
    raise AdapterError(f"{adapter_path}: {looked_for}. Pass where it lies: --model FOLDER")


@contextmanager
def base_of(adapter_path: Path, base_path: str) -> Iterator[None]:
    """Says of a base that is not to be had which adapter wants it.

    Raises:
        AdapterError: In place of a ModelError from within, where the base is no folder here.
    """
    try:
        yield
    except ModelError as error:
        if Path(base_path).is_dir():
            raise
        raise AdapterError(
            f"{adapter_path}: its {str(error).rstrip('.')}. Pass where it lies: --model FOLDER"
        ) from error


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


@contextmanager
def _model_errors(path: str | Path) -> Iterator[None]:
    """Turns what transformers raises for a folder that it cannot load into a ModelError."""
    try:
        yield
    except GlmtuneError:
        raise
    except (OSError, ValueError, KeyError, ImportError, torch.OutOfMemoryError) as error:
        where = "cannot be loaded" if Path(path).is_dir() else "no such folder here, and not to be had from the hub"
        raise ModelError(f"base model {path}: {where}: {error}") from error


def _reach_hub(hub_id: str) -> None:
    """Knocks once at the hub, which would otherwise be tried for a minute where there is no network.

    Raises:
        OSError: It cannot be reached.
    """
    if HF_HUB_OFFLINE or isinstance(try_to_load_from_cache(hub_id, "config.json"), str):
        return
    try:
        urlopen(Request(hf_hub_url(hub_id, "config.json"), method="HEAD"), timeout=_HUB_TIMEOUT_S).close()
    except HTTPError:
        return  # an answer; whoever downloads says what it means, and may have a token
    except URLError as error:
        if not isinstance(error.reason, SSLError):  # nor of certificates: the hub's client may know others
            raise
