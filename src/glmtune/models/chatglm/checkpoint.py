"""Checks a ChatGLM base's folder from its file headers, before any weight is read."""

import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import torch

from glmtune.errors import ModelError
from glmtune.files import read_json_object
from glmtune.hub import download_base, local_base
from glmtune.models.base_folder import MODEL_JSON, check_json_files, require_files
from glmtune.models.chatglm.configuration import ChatGLMConfig
from glmtune.models.weight_files import check_weights

# A buffer in the official files; the model here computes it itself.
IGNORED_WEIGHT = "transformer.rotary_pos_emb.inv_freq"
EMBEDDING_WEIGHT = "transformer.embedding.word_embeddings.weight"
HEAD_WEIGHT = "transformer.output_layer.weight"


def resolve_and_check(
    model_class: Any, name: str | os.PathLike[str], kwargs: MutableMapping[str, Any]
) -> str | os.PathLike[str]:
    """Finds the folder that `from_pretrained` is to load, downloading a hub id, and checks its weights.

    Args:
        model_class: The model class that is being loaded.
        name: A folder or a hub id.
        kwargs: The keyword arguments of `from_pretrained`. Those that only concern the download are removed once it is
            done.

    Returns:
        The folder, or `name` itself if there is nothing to check here: weights given as `state_dict`, or a folder with
        only an adapter, which transformers resolves to its base.

    Raises:
        ModelError: The folder does not exist, or its weights do not fit; all faults in one message.
    """
    if kwargs.get("state_dict") is not None or kwargs.get("gguf_file"):
        return name
    folder = Path(name)
    if folder.is_file():
        raise ModelError(f"{folder} is a file; give the folder that contains it")
    if not folder.is_dir():
        folder = Path(local_base(str(name), with_weights=True))
    if not folder.is_dir():
        folder = download_base(str(name), kwargs)
    root = folder / kwargs.get("subfolder", "")
    if (root / "adapter_config.json").is_file() and not (root / "config.json").is_file():
        return name
    config = kwargs.get("config")
    if not isinstance(config, ChatGLMConfig):
        config = read_config(root)
    check_json_files(root, MODEL_JSON)
    check_weights(
        root,
        _expected_shapes(model_class, config),
        optional={HEAD_WEIGHT} if config.tie_word_embeddings else (),
        ignored={IGNORED_WEIGHT},
        use_safetensors=kwargs.get("use_safetensors"),
    )
    return name if Path(name).is_dir() else folder


def read_config(folder: Path) -> ChatGLMConfig:
    """Reads a folder's `config.json`.

    Raises:
        ModelError: There is none, it is no JSON object, it is another architecture's, or its values are invalid.
    """
    require_files(folder, "config.json")
    file = folder / "config.json"
    values = read_json_object(file, ModelError)
    if values.get("model_type") != ChatGLMConfig.model_type:
        raise ModelError(f"{file}: model_type is {values.get('model_type')!r}, expected 'chatglm'")
    return ChatGLMConfig.from_dict(values)


def _expected_shapes(model_class: Any, config: ChatGLMConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all parameters, named as in a full checkpoint."""
    with torch.device("meta"):
        parameters = model_class(config).state_dict()
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    prefix = "" if any(name.startswith("transformer.") for name in shapes) else "transformer."
    return {prefix + name: shape for name, shape in shapes.items()}
