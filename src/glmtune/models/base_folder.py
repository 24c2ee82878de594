"""The small files of a base model's folder, checked before transformers reads them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from glmtune.errors import ModelError
from glmtune.files import read_json_object

# The JSON files that are read, where they exist, for a model and for its tokenizer.
MODEL_JSON = ("config.json", "generation_config.json")
TOKENIZER_JSON = (
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
)


class _Keys(BaseModel):
    """The types of keys, each of which may be missing or null; other keys are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=(), arbitrary_types_allowed=True)


class _ConfigKeys(_Keys):
    """What transformers itself reads from `config.json`; the model's own keys are checked by its configuration."""

    architectures: list[str] | None = None
    attn_implementation: str | dict[str, str] | None = None
    auto_map: dict[str, Any] | None = None
    dtype: Literal["float64", "float32", "bfloat16", "float16"] | torch.dtype | None = None
    torch_dtype: Literal["float64", "float32", "bfloat16", "float16"] | torch.dtype | None = None
    id2label: dict[Any, Any] | None = None
    label2id: dict[str, Any] | None = None
    num_labels: int | None = None
    output_attentions: bool | None = None
    output_hidden_states: bool | None = None
    quantization_config: dict[str, Any] | None = None
    return_dict: bool | None = None
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None


class _GenerationKeys(_Keys):
    bos_token_id: int | list[int] | None = None
    cache_implementation: str | None = None
    do_sample: bool | None = None
    eos_token_id: int | list[int] | None = None
    max_length: int | None = None
    max_new_tokens: int | None = None
    num_beams: int | None = None
    pad_token_id: int | None = None
    repetition_penalty: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    use_cache: bool | None = None


class _TokenizerKeys(_Keys):
    added_tokens_decoder: dict[str, Any] | None = None
    auto_map: dict[str, Any] | list[Any] | None = None
    chat_template: str | list[Any] | dict[str, Any] | None = None
    clean_up_tokenization_spaces: bool | None = None
    encode_special_tokens: bool | None = None
    init_inputs: list[Any] | None = None
    model_input_names: list[str] | None = None
    model_max_length: float | None = None
    padding_side: Literal["left", "right"] | None = None
    tokenizer_class: str | None = None
    truncation_side: Literal["left", "right"] | None = None


_KEYS: dict[str, type[BaseModel]] = {
    "config.json": _ConfigKeys,
    "generation_config.json": _GenerationKeys,
    "tokenizer_config.json": _TokenizerKeys,
}


def check_keys(where: str | Path, values: Mapping[str, Any]) -> None:
    """Checks the types of values by their keys.

    Args:
        where: The file, whose name says which keys it has.
        values: Its contents.

    Raises:
        ModelError: At least one value is of the wrong type; all of them in one message.
    """
    try:
        _KEYS.get(Path(where).name, _Keys).model_validate(dict(values))
    except ValidationError as error:
        faults: dict[str, list[str]] = {}
        for fault in error.errors():  # one for each type that a value may have
            faults.setdefault(str(fault["loc"][0]), []).append(fault["msg"].removeprefix("Input should be "))
        phrases = [f"{key} is {values[key]!r:.80}, expected {' or '.join(types)}" for key, types in faults.items()]
        raise ModelError(f"{where}: {'; '.join(phrases)}") from error


def check_json_files(folder: Path, names: Sequence[str]) -> None:
    """Checks that JSON files which transformers will read are objects with values of the right types.

    Args:
        folder: The base's folder.
        names: The files, each of which may be missing.

    Raises:
        ModelError: A file is not; it names the file and the keys.
    """
    for name in names:
        file = folder / name
        if file.is_file():
            check_keys(file, read_json_object(file, ModelError))


def require_files(folder: Path, *names: str) -> None:
    """Checks that a folder holds certain files of a base model.

    Args:
        folder: The folder.
        *names: The required files.

    Raises:
        ModelError: A file is missing. If the folder holds an adapter, the message names its base.
    """
    missing = [name for name in names if not (folder / name).is_file()]
    if not missing:
        return
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = read_json_object(adapter, ModelError).get("base_model_name_or_path")
        raise ModelError(
            f"{folder} holds an adapter, expected a base model; "
            + (f"its base is {base}" if base else "it does not say of which base")
        )
    present = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
    raise ModelError(
        f"{folder} is not a complete base model: expected {', '.join(missing)} in it; found: {present}. "
        "Download what is missing, or set the path to the folder that holds it (config.json, the tokenizer's files and "
        "the weights)"
    )
