"""Base models and their tokenizers."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from glmtune.config import embedded_base
from glmtune.errors import ConfigError, GlmtuneError, ModelError
from glmtune.files import read_json_object
from glmtune.hub import is_hub_id, local_base, reach_hub
from glmtune.loading.base_weights import check_finite
from glmtune.loading.devices import DeviceMap, Dtype, one_device, resolve_dtype
from glmtune.loading.formats import Quantize, check_format, linear_sizes, quantizers
from glmtune.models.base_folder import TOKENIZER_JSON, check_json_files, require_files
from glmtune.models.families import family_at, family_of
from glmtune.models.host_embedding import HostEmbedding
from glmtune.models.tokenizer import Tokenizer


def load_base(
    path: str | Path | None,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    *,
    quantize: Quantize = "none",
) -> tuple[PreTrainedModel, Tokenizer]:
    """Loads a base model and its tokenizer.

    Args:
        path: A folder in the official layout or a hub id; None for the tiny base in the package.
        dtype: As for `load`.
        device_map: As for `load`; for a quantised base, None or one device's name.
        quantize: The format of the layers; each weight is quantised as it is read.

    Returns:
        The model, which stops at the end of a turn, and the tokenizer.

    Raises:
        ModelError: Something is missing or damaged, or is of no family here.
        ConfigError: The device cannot compute in the format, or its package is not installed.
    """
    path = embedded_base() if path is None else local_base(path, with_weights=True)
    if Path(path).is_dir():
        require_files(Path(path), CONFIG_NAME, *family_at(path).tokenizer_files)
    tokenizer = load_tokenizer(path)
    torch_dtype = resolve_dtype(dtype, device_map)
    return load_model(path, tokenizer, torch_dtype, device_map, quantize=quantize), tokenizer


def load_model(
    path: str | Path | None,
    tokenizer: Tokenizer,
    dtype: torch.dtype,
    device_map: DeviceMap = None,
    *,
    quantize: Quantize = "none",
    offloads_embedding: bool = False,
) -> PreTrainedModel:
    """Loads a base model whose tokenizer has been loaded.

    Args:
        path: As for `load_base`.
        tokenizer: The base's tokenizer, which knows the tokens that end a turn.
        dtype: The compute dtype, and that of weights that are not quantised.
        device_map: As for `load_base`; where the embedding stays on the host, None or one device's name, too.
        quantize: As for `load_base`.
        offloads_embedding: Whether the token embedding stays in host memory.

    Returns:
        The model, which stops at the end of a turn.

    Raises:
        ModelError: As for `load_base`.
        ConfigError: As for `load_base`.
    """
    path = embedded_base() if path is None else local_base(path, with_weights=True)
    with model_errors(path):
        device = one_device(device_map)
        if device is not None:
            model = load_by_weight(path, dtype, device, quantize=quantize, offloads_embedding=offloads_embedding)
        elif quantize == "none" and not offloads_embedding:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, device_map=device_map)
            for name, weight in model.named_parameters():
                if not weight.is_meta:  # offloaded
                    check_finite(f"{path}: {name}", weight)
        else:
            raise ConfigError(
                f"device_map={device_map!r}: a quantised base, or an embedding on the host, needs a single device"
            )
    check_family(path, model.config)
    # Official folders name </s> alone; a model that ends its turn with a role token would then talk on.
    model.generation_config.eos_token_id = tokenizer.stop_token_ids
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def load_by_weight(
    path: str | Path, dtype: torch.dtype, device: torch.device, *, quantize: Quantize, offloads_embedding: bool
) -> PreTrainedModel:
    """Loads a base weight by weight: beside what stays, one file is mapped and one weight at a time is on the device.

    Args:
        path: A folder in the official layout or a hub id.
        dtype: The compute dtype, and that of weights that are not quantised.
        device: The device to load to.
        quantize: The format of the layers.
        offloads_embedding: Whether the token embedding stays in the host's memory.

    Returns:
        The model, in evaluation mode.

    Raises:
        ModelError: Something is missing or damaged, or does not fit the format.
        ConfigError: The device cannot compute in the format, or its package is not installed; or embedding and output
            layer are tied.
    """
    family = family_at(path)
    folder = family.checked_folder(str(path))
    config = family.read_config(folder)
    if offloads_embedding and family.shape(config).is_tied:
        raise ConfigError(
            "model.offload_embedding: this base's output layer shares its embedding, which therefore has to stay "
            "on the device"
        )
    with torch.device("meta"):
        model = family.model_class(config).to(dtype)
    check_format(quantize, linear_sizes(model), dtype, device)
    put_quantized = quantizers(model, quantize)
    on_host = family.embedding_weight if offloads_embedding else None
    names = set()
    for name, stored in family.read_weights(folder):
        names.add(name)
        weight = stored.to("cpu" if name == on_host else device, dtype, copy=True)
        del stored
        check_finite(f"{folder}: {name}", weight)
        if name == on_host:
            model.set_input_embeddings(HostEmbedding(weight))
        elif name in put_quantized:
            put_quantized[name](weight)
        else:
            module_name, _, parameter_name = name.rpartition(".")
            model.get_submodule(module_name).register_parameter(parameter_name, nn.Parameter(weight))
        del weight  # before the next one is read
    # As in transformers, an output layer that has weights of its own keeps them.
    if family.shape(config).is_tied and family.head_weight not in names:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    config.dtype = dtype
    if (folder / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model.name_or_path = model.config.name_or_path = str(path)
    return model.eval()


def read_base_config(path: str | Path | None) -> PretrainedConfig:
    """Reads a base's configuration alone.

    Args:
        path: A folder in the official layout or a hub id; None for the tiny base in the package.

    Raises:
        ModelError: There is none, or it is another architecture's.
    """
    path = embedded_base() if path is None else local_base(path, with_weights=False)
    with model_errors(path):
        if Path(path).is_dir():
            return family_at(path).read_config(Path(path))
        _check_hub_id(path)
        reach_hub(str(path))
        config = AutoConfig.from_pretrained(path)
    check_family(path, config)
    return config


def check_family(path: str | Path, config: PretrainedConfig) -> None:
    """Makes sure that a configuration is one of a family here.

    Args:
        path: Where it comes from, for the message.
        config: The configuration.

    Raises:
        ModelError: It is not.
    """
    try:
        family_of(config)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def load_tokenizer(path: str | Path | None) -> Tokenizer:
    """Loads the tokenizer of a base model.

    Args:
        path: A folder in the official layout or a hub id; None for the tiny base in the package.

    Raises:
        ModelError: It is missing or damaged, or is of no family here.
    """
    path = embedded_base() if path is None else path
    if not Path(path).is_dir():
        _check_hub_id(path)
    path = local_base(path, with_weights=False)
    with model_errors(path):
        if Path(path).is_dir():
            _check_tokenizer_files(Path(path))
        else:
            reach_hub(str(path))
        tokenizer = AutoTokenizer.from_pretrained(path)
    expected = family_at(path).tokenizer_class
    if not isinstance(tokenizer, expected):
        raise ModelError(f"{path}: expected a tokenizer of class {expected.__name__}; found {type(tokenizer).__name__}")
    found: Tokenizer = tokenizer
    return found


def _check_hub_id(path: str | Path) -> None:
    if not is_hub_id(str(path)):
        raise ModelError(f"base model {path}: there is no such folder. Set model.path to the folder of the model")


def _check_tokenizer_files(folder: Path) -> None:
    """Finds what AutoTokenizer would trip over before it comes to the family's tokenizer."""
    family = family_at(folder)
    if not all((folder / name).is_file() for name in family.tokenizer_files):
        require_files(folder, CONFIG_NAME, *family.tokenizer_files)
    check_json_files(folder, TOKENIZER_JSON)
    file = folder / "tokenizer_config.json"
    expected = family.tokenizer_class.__name__
    name = read_json_object(file, ModelError).get("tokenizer_class", expected)
    if name != expected:
        raise ModelError(f"{file}: tokenizer_class is {name!r}, expected {expected!r}")
    if (folder / CONFIG_NAME).is_file():  # AutoTokenizer reads it too
        family.read_config(folder)


@contextmanager
def model_errors(path: str | Path) -> Iterator[None]:
    """Turns what transformers raises for a folder that it cannot load into a ModelError."""
    try:
        yield
    except GlmtuneError:
        raise
    except (OSError, ValueError, KeyError, ImportError, torch.OutOfMemoryError) as error:
        where = (
            "cannot be loaded"
            if Path(path).is_dir()
            else "no such folder here, and it could not be downloaded from the hub"
        )
        raise ModelError(f"base model {path}: {where}: {error}") from error
