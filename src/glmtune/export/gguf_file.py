"""Writes llama.cpp's file format, one weight at a time."""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from glmtune.errors import ConfigError
from glmtune.models.gguf_layout import GGUFLayout

WeightType = Literal["f32", "f16", "bf16", "q8_0"]
_BLOCK = 32  # values of q8_0 that share a scale, which is a float16
_VALUES_AT_ONCE = 2**16  # so few that the steps of encoding them stay in the processor's cache
_MOST_THREADS = 16
_BELOW_HALF = 0.49999997  # the largest float32 below 0.5: adding 0.5 itself would round 0.49999997 up


def import_gguf() -> Any:
    """The package gguf.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(
            "exporting to GGUF needs the package gguf, which is not installed; pip install 'glmtune[gguf]'"
        ) from error
    return gguf


def write_model(
    path: Path,
    name: str,
    layout: GGUFLayout,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], Tensor],
    weight_type: WeightType,
) -> None:
    """Writes a model.

    Args:
        path: The file.
        name: The model's name, for people.
        layout: What llama.cpp has to know of it.
        shapes: The shapes of the weights, by the names that `layout` maps.
        read: Reads a weight by its name.
        weight_type: The format of matrices; norms and biases are f32 in any case.

    Raises:
        ConfigError: A weight cannot be stored in the format.
    """
    gguf = import_gguf()
    file_types = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    writer = gguf.GGUFWriter(path, layout.architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[file_types[weight_type]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(len(layout.tokens))
    for key, value in layout.values.items():
        _add(writer, key, value)
    pieces, scores, kinds = map(list, zip(*layout.tokens, strict=True))
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    _write_tensors(writer, {layout.names[own]: own for own in shapes if own in layout.names}, shapes, read, weight_type)


def write_lora(
    path: Path, name: str, architecture: str, alpha: float, tensors: Mapping[str, Tensor], weight_type: WeightType
) -> None:
    """Writes an adapter.

    Args:
        path: The file.
        name: The adapter's name, for people.
        architecture: The architecture of its base.
        alpha: llama.cpp multiplies each product by this over the rank.
        tensors: `NAME.lora_a` [r, in] and `NAME.lora_b` [out, r] for each adapted weight.
        weight_type: The format of the matrices.
    """
    gguf = import_gguf()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(name)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    _write_tensors(writer, {name: name for name in tensors}, shapes, tensors.__getitem__, weight_type)


def _write_tensors(
    writer: Any,
    names: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], Tensor],
    weight_type: WeightType,
) -> None:
    """Writes the head, and then one weight after the other; `names` are ours by llama.cpp's."""
    gguf = import_gguf()
    types: dict[str, WeightType] = {}
    for theirs, own in names.items():
        shape = shapes[own]
        kind = types[theirs] = weight_type if len(shape) > 1 else "f32"
        if kind == "q8_0" and shape[-1] % _BLOCK:
            raise ConfigError(
                f"{own}: rows of {shape[-1]} values cannot be stored in q8_0, which takes them by 32. Choose another "
                "--type, such as f16"
            )
        byte_shape = (*shape[:-1], _row_bytes(shape[-1], kind))
        num_bytes = int(np.prod(byte_shape, dtype=np.int64))
        raw_type = gguf.GGMLQuantizationType[kind.upper()]
        writer.add_tensor_info(theirs, byte_shape, np.dtype(np.uint8), num_bytes, raw_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    with _threads() as threads:
        for theirs, own in names.items():
            writer.write_tensor_data(_encoded(own, read(own), types[theirs], threads))
    writer.close()


def _add(writer: Any, key: str, value: str | int | float | bool) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def _row_bytes(num_values: int, weight_type: WeightType) -> int:
    sizes = {"f32": 4, "f16": 2, "bf16": 2}
    return num_values // _BLOCK * (_BLOCK + 2) if weight_type == "q8_0" else num_values * sizes[weight_type]


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Threads to encode with; within them, torch computes on one thread.

    torch's own threads wait for each other at every step, which on a busy machine takes longer than the steps.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as threads:
            yield threads
    finally:
        torch.set_num_threads(before)


def _encoded(name: str, weight: Tensor, weight_type: WeightType, threads: ThreadPoolExecutor) -> Any:
    """The bytes of a weight, [rows, bytes] uint8, encoded some rows at a time."""
    rows = weight.reshape(-1, weight.shape[-1])
    encoded = np.empty((rows.shape[0], _row_bytes(rows.shape[1], weight_type)), dtype=np.uint8)
    step = max(1, _VALUES_AT_ONCE // rows.shape[1])

    def encode(start: int) -> None:
        encoded[start : start + step] = _encode_rows(name, rows[start : start + step], weight_type)

    for _ in threads.map(encode, range(0, rows.shape[0], step)):
        pass  # what fails in a thread is raised here
    return encoded.reshape(*weight.shape[:-1], -1)


def _encode_rows(name: str, rows: Tensor, weight_type: WeightType) -> Any:
    if weight_type == "q8_0":
        scales, values = _quantised(rows.float())
        _check_finite(name, scales, weight_type)
        return torch.cat([scales.view(torch.uint8), values.view(torch.uint8)], dim=-1).reshape(len(rows), -1).numpy()
    dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[weight_type]
    converted = rows.to(dtype)
    _check_finite(name, converted, weight_type)
    return converted.contiguous().view(torch.uint8).numpy()


def _check_finite(name: str, values: Tensor, weight_type: WeightType) -> None:
    if not torch.isfinite(torch.stack(torch.aminmax(values))).all():  # isfinite on the whole takes far longer
        raise ConfigError(f"{name}: its values are too large for {weight_type}; choose another --type, such as bf16")


def _quantised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """q8_0: scales and values of each block, rounded half away from zero, as llama.cpp does it.

    Args:
        rows: Values, [rows, columns], float32.

    Returns:
        Scales, [rows, blocks, 1], float16, and values, [rows, blocks, 32], int8.
    """
    blocks = rows.reshape(rows.shape[0], -1, _BLOCK)
    scales = blocks.abs().amax(dim=-1, keepdim=True) / 127
    scaled = blocks * torch.where(scales == 0, 0.0, 1 / scales)
    values = scaled.add_(torch.copysign(torch.tensor(_BELOW_HALF), scaled)).to(torch.int8)  # towards zero
    return scales.half(), values
