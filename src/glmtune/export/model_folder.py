"""The files of a model folder in the official layout."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards

from glmtune.errors import ConfigError, ModelError
from glmtune.files import read_json_object, write_json, write_tensors
from glmtune.hub import download_small_files, local_base
from glmtune.models.tokenizer import Tokenizer

_WEIGHTS = (
    "*.safetensors",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.h5",
    "*.msgpack",
    "*.gguf",
    "*.onnx",
    "*.index.json",
)
_REWRITTEN = ("config.json", "tokenizer_config.json", "generation_config.json")


def base_folder(base: str) -> Path:
    """The folder of a base's small files; for a hub id, the folder that they are downloaded to.

    Raises:
        ModelError: The hub cannot be reached, or has no such model.
    """
    folder = Path(local_base(base, with_weights=False))
    return folder if folder.is_dir() else download_small_files(base, _WEIGHTS)


def small_files(folder: Path) -> list[Path]:
    """All files of a base folder except weights, weight indexes and hidden files; not recursive."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith(".") and not any(path.match(pattern) for pattern in _WEIGHTS)
    )


def copy_small_files(base: Path, target: Path, tokenizer: Tokenizer, dtype: torch.dtype) -> None:
    """Copies everything but the weights of a base, and changes what has to be changed.

    `config.json` gets the new dtype; an `auto_map` whose code files are missing is left out, since it could not be
    resolved; `generation_config.json` gets all three ids that end a turn.

    Args:
        base: The base's folder.
        target: New folder for the merged model.
        tokenizer: The base's tokenizer.
        dtype: The dtype of the new weights.
    """
    for path in small_files(base):
        if path.name not in _REWRITTEN:
            shutil.copyfile(path, target / path.name)
    for name in ("config.json", "tokenizer_config.json"):
        if (base / name).is_file():
            values = read_json_object(base / name, ModelError)
            if not _has_code_files(values.get("auto_map"), base):
                values.pop("auto_map", None)
            if name == "config.json":
                key = "dtype" if "dtype" in values else "torch_dtype"
                values[key] = str(dtype).removeprefix("torch.")
            write_json(target / name, values)
    generation = base / "generation_config.json"
    write_json(
        target / generation.name,
        (read_json_object(generation, ModelError) if generation.is_file() else {})
        | {"eos_token_id": tokenizer.stop_token_ids, "pad_token_id": tokenizer.pad_token_id},
    )


def save_weights(state_dict: Mapping[str, torch.Tensor], folder: Path, max_shard_bytes: int) -> int:
    """Writes `model.safetensors`, or `model-0000X-of-0000Y.safetensors` and their index.

    Args:
        state_dict: Weights by their official names; of tied weights, the first is written.
        folder: The folder.
        max_shard_bytes: Largest file, in bytes; a larger weight has a file of its own.

    Returns:
        The size of all weights in bytes.
    """
    owners: dict[int, str] = {}
    for name, tensor in state_dict.items():
        owners.setdefault(tensor.data_ptr(), name)
    weights = {name: state_dict[name].contiguous() for name in owners.values()}
    shards = split_torch_state_dict_into_shards(weights, max_shard_size=max_shard_bytes)
    for file, names in shards.filename_to_tensors.items():
        write_tensors(folder / file, {name: weights[name] for name in names})
    if shards.is_sharded:
        index = {"metadata": {"total_size": shards.metadata["total_size"]}, "weight_map": shards.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)
    return int(shards.metadata["total_size"])


def parse_size(size: str | int) -> int:
    """Bytes of a size such as "5GB", "500MB" or 1000000, in powers of ten as the hub counts.

    Raises:
        ConfigError: It is not a size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", str(size).strip().upper())
    num_bytes = int(float(match[1]) * 1000 ** " KMGT".index(match[2] or " ")) if match else 0
    if num_bytes < 1:
        raise ConfigError(f"--max-shard-size: expected a size such as 5GB or 500MB, found {size!r}")
    return num_bytes


def _has_code_files(auto_map: Mapping[str, str | Sequence[str | None]] | None, folder: Path) -> bool:
    """Whether all files that an `auto_map` names are in the folder; those of another repository never are."""
    references: list[str] = []
    for entry in (auto_map or {}).values():
        references += [entry] if isinstance(entry, str) else [part for part in entry if part]
    return all("--" not in name and (folder / f"{name.partition('.')[0]}.py").is_file() for name in references)
