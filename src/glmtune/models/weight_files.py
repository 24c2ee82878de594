"""The weight files of a base model's folder, checked from their headers before any weight is read.

transformers only warns about missing and unexpected weights and initialises the missing ones at random; hours later the
model turns out to generate nonsense. Here all faults are found in advance and reported at once.
"""

import json
import pickle
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from glmtune.errors import ModelError, summarise_faults

_FLOATING_DTYPES = {"F64", "F32", "F16", "BF16"}
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class _WeightHeader:
    """The header of one weight: the name of its file, its shape, and whether it is floating-point."""

    file: str
    shape: tuple[int, ...]
    is_floating: bool


def check_weights(
    folder: Path,
    expected: Mapping[str, tuple[int, ...]],
    *,
    optional: Collection[str] = (),
    ignored: Collection[str] = (),
    use_safetensors: bool | None = None,
) -> None:
    """Compares the weights in the files' headers with those that the configuration requires.

    Args:
        folder: The folder with `model.safetensors`, `pytorch_model.bin`, or shards of either and their index.
        expected: The shapes of all weights by name.
        optional: Expected weights that may be missing.
        ignored: Unexpected weights that may be present.
        use_safetensors: Whether to look for safetensors only (True), `.bin` only (False), or for safetensors first.

    Raises:
        ModelError: Files or weights are missing, unexpected, of another shape, cut short, not floating-point, or not
            safe to read; all faults in one message.
    """
    faults: list[str] = []
    found: dict[str, _WeightHeader] = {}
    files, shard_names = _weight_files(folder, use_safetensors, faults)
    for file in files:
        read = _safetensors_headers if file.suffix == ".safetensors" else _torch_headers
        try:
            headers = read(file)
        except ModelError as error:
            faults.append(str(error))
            continue
        for name in sorted(headers.keys() & found.keys()):
            faults.append(f"{file.name}: {name} is in {found[name].file} too, and only one of the two can be right")
        found.update(headers)
    if not faults:
        faults += _compare(expected, found, shard_names, optional, ignored)
    if faults:
        raise ModelError(summarise_faults(f"{folder} cannot be loaded", faults))


def read_weights(folder: Path, ignored: Collection[str] = ()) -> Iterator[tuple[str, torch.Tensor]]:
    """Reads a checked folder's weights one by one, one file open at a time.

    Args:
        folder: A folder that has passed `check_weights`.
        ignored: Names of weights to leave out.

    Yields:
        Name and values, on the CPU, in the file's dtype; memory-mapped if possible, so valid only until the next one
        is read.
    """
    files, _ = _weight_files(folder, None, [])
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (no mapping)
                    if name not in ignored:
                        yield name, tensors.get_tensor(name)
        else:
            loaded = _load_mapped(file)
            for name in list(loaded):
                tensor = loaded.pop(name)
                if name not in ignored:
                    yield name, tensor


def locate_weights(folder: Path, ignored: Collection[str] = ()) -> dict[str, Path]:
    """The file of each weight of a checked folder, for `read_weight_of`.

    Args:
        folder: A folder that has passed `check_weights`.
        ignored: Names of weights to leave out.
    """
    files, _ = _weight_files(folder, None, [])
    read = {".safetensors": _safetensors_headers}
    return {name: file for file in files for name in read.get(file.suffix, _torch_headers)(file) if name not in ignored}


def read_weight_of(file: Path, name: str) -> torch.Tensor:
    """Reads one weight of a file. Nothing of the file stays mapped once the weight is gone."""
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as tensors:
            return tensors.get_tensor(name)
    weight: torch.Tensor = _load_mapped(file)[name]
    return weight


def read_weight(folder: Path, name: str) -> torch.Tensor | None:
    """Reads one weight of a folder; None if no file holds it.

    Args:
        folder: A folder that has passed `check_weights`.
        name: The weight's name.
    """
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118  (no mapping)
                return tensors.get_tensor(name)
    if not any(folder.glob("model*.safetensors")):
        for file in sorted(folder.glob("pytorch_model*.bin")):
            weights = _load_mapped(file)
            if name in weights:
                return weights[name].clone()
    return None


def _load_mapped(file: Path, device: str = "cpu") -> Any:
    """Loads a `.bin` file, memory-mapped if it is a zip archive; files from before torch 1.6 are not."""
    return torch.load(file, map_location=device, mmap=zipfile.is_zipfile(file), weights_only=True)


def _compare(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, _WeightHeader],
    shard_names: Mapping[str, str],
    optional: Collection[str],
    ignored: Collection[str],
) -> Iterator[str]:
    for name in sorted(expected.keys() - found.keys() - set(optional)):
        if name in shard_names:
            yield f"{shard_names[name]}: {name} is missing, though the index says that it is in this file"
        else:
            yield f"{name} is missing: no file contains it"
    for name in sorted(found.keys() - expected.keys() - set(ignored)):
        yield f"{found[name].file}: {name} is unexpected: a model of this config.json has no such weight"
    for name in sorted(expected.keys() & found.keys()):
        header = found[name]
        if header.shape != expected[name]:
            yield f"{header.file}: {name} has shape {list(header.shape)}, config.json asks for {list(expected[name])}"
        elif not header.is_floating:
            yield f"{header.file}: {name} is not floating-point; pre-quantised folders cannot be trained"


def _weight_files(
    folder: Path, use_safetensors: bool | None, faults: list[str]
) -> tuple[Sequence[Path], dict[str, str]]:
    """The weight files, searched as in transformers, and the shard of each weight according to the index."""
    formats = {"model.safetensors": use_safetensors is not False, "pytorch_model.bin": use_safetensors is not True}
    wanted = [name for name, is_wanted in formats.items() if is_wanted]
    for name in wanted:
        if (folder / name).is_file():
            return [folder / name], {}
        if (folder / f"{name}.index.json").is_file():
            return _shards(folder / f"{name}.index.json", faults)
    present = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
    faults.append(
        f"{folder} holds no weights: expected {' or '.join(wanted)}, or shards with their index; found: {present}"
    )
    return [], {}


def _shards(index: Path, faults: list[str]) -> tuple[Sequence[Path], dict[str, str]]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()), key=str)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        faults.append(f"{index.name} is not a weight index: {error!r}; download it again")
        return [], {}
    files = []
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or Path(name).suffix not in (".safetensors", ".bin"):
            faults.append(f"{index.name}: {name!r} is not the name of a shard in this folder; it was not opened")
        elif not (index.parent / name).is_file():
            faults.append(f"{name} is missing: {index.name} names it; download it again")
        else:
            files.append(index.parent / name)
    return files, weight_map


def _safetensors_headers(file: Path) -> dict[str, _WeightHeader]:
    _refuse_pointer(file)
    try:
        with safe_open(file, framework="pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118  (no mapping)
            return {
                name: _WeightHeader(file.name, tuple(part.get_shape()), part.get_dtype() in _FLOATING_DTYPES)
                for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        size = file.stat().st_size
        raise ModelError(f"{file.name} ({size:,} bytes) is cut short or damaged: {error}; download it again") from error


def _torch_headers(file: Path) -> dict[str, _WeightHeader]:
    _refuse_pointer(file)
    try:
        tensors = _load_mapped(file, "meta")
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{file.name} contains more than weights, or is damaged, and was not loaded: {_first_line(error)}; "
            "download it again"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{file.name} ({file.stat().st_size:,} bytes) is cut short or damaged: {_first_line(error)}; "
            "download it again"
        ) from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in tensors.items()
    ):
        raise ModelError(f"{file.name} is not a dictionary of weights")
    return {
        name: _WeightHeader(file.name, tuple(tensor.shape), tensor.is_floating_point())
        for name, tensor in tensors.items()
    }


def _refuse_pointer(file: Path) -> None:
    with file.open("rb") as stream:
        if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise ModelError(f"{file.name} is a Git LFS pointer, not the weights; fetch them with `git lfs pull`")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
