"""Exports a run to GGUF, the file format of llama.cpp and Ollama."""

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from glmtune.adapters.inheritance import PromptRecord, prompt_record
from glmtune.adapters.run_folder import find_adapter
from glmtune.errors import AdapterError, ConfigError, ModelError
from glmtune.export.gguf_file import WeightType, import_gguf, write_lora, write_model
from glmtune.export.merged_weights import LoraPart, MergedWeights, read_lora_parts
from glmtune.export.ollama import check_template, modelfile_of, write_modelfile
from glmtune.export.unfinished import written_beside
from glmtune.files import check_writable_folder, flush, storage_faults
from glmtune.loading.base_weights import check_is_trained_base
from glmtune.loading.bases import load_tokenizer, read_base_config
from glmtune.loading.runs import base_of, find_base
from glmtune.models.families import family_at
from glmtune.models.gguf_layout import GGUFLayout

_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32}


@dataclass(frozen=True)
class ExportResult:
    """A file that was exported.

    Attributes:
        path: The file.
        num_bytes: Its size.
        num_tensors: How many tensors it holds.
        modelfile: The Modelfile beside it, for Ollama.
    """

    path: Path
    num_bytes: int
    num_tensors: int
    modelfile: Path | None

    def summary(self) -> str:
        """What was written and how it is used, one line each."""
        size = f"{self.num_bytes / 1e9:.3g} GB" if self.num_bytes >= 1e9 else f"{self.num_bytes / 1e6:.3g} MB"
        lines = [f"{self.path}: {size}, {self.num_tensors} tensors."]
        if self.modelfile:
            lines.append(f"{self.modelfile}: for Ollama: ollama create NAME -f {shlex.quote(str(self.modelfile))}")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Source:
    """What is exported: a base's folder, its configuration, and what an adapter adds to it."""

    folder: Path
    config: Any
    prompt: PromptRecord
    layout: GGUFLayout
    parts: dict[str, LoraPart]
    lora_alpha: float


def export_gguf(
    run: str | Path,
    output: str | Path | None = None,
    *,
    weight_type: WeightType | None = None,
    lora: bool = False,
    ollama: bool = False,
    model_path: str | Path | None = None,
    other_base: bool = False,
) -> ExportResult:
    """Exports a run, a base or a merged folder to GGUF.

    An adapter is merged into each weight on the way; memory never holds more than the largest weight. The file is
    written beside its final place and renamed once it is complete; the remains of an export that was killed are deleted
    by the next one to the same place.

    Args:
        run: A run folder, a `checkpoint-N` in one, an adapter folder of stock PEFT, or a base.
        output: The file; by default the run's name with the format, in the current folder.
        weight_type: The format of matrices: f32, f16, bf16 or q8_0. By default f16, and f32 of an adapter alone.
        lora: Whether to write the adapter alone, to be loaded with a file of its base.
        ollama: Whether to write a Modelfile beside it.
        model_path: The base, if it is no longer at the path that the run recorded.
        other_base: Whether the base's weights may be others than those that the adapter was trained on.

    Returns:
        What was written.

    Raises:
        ConfigError: The package gguf is missing, the file exists, or the disk is too small.
        ModelError: The base cannot be loaded, or llama.cpp cannot compute it.
        AdapterError: There is no adapter, it does not fit, it was trained on another base, or GGUF cannot hold it.
        StorageError: The file cannot be written.
    """
    import_gguf()
    weight_type = weight_type or ("f32" if lora else "f16")
    adapter_path = find_adapter(run)
    if lora and adapter_path is None:
        raise AdapterError(f"{run} is a base model; there is no adapter in it to export. Leave out --lora")
    if weight_type not in get_args(WeightType):
        raise ConfigError(f"expected one of {', '.join(get_args(WeightType))} as the type; found {weight_type!r:.40}")
    target = _check_output(output, run, weight_type, is_lora=lora)
    modelfile = modelfile_of(target) if ollama else None
    if modelfile and modelfile.exists():
        raise ConfigError(f"{modelfile} exists; delete it or choose another --output")
    source = _read_source(run, adapter_path, model_path, other_base)
    if ollama:
        check_template(source.layout, source.prompt.template)
    name = Path(run).resolve().name
    with written_beside(target, "is being written") as unfinished, storage_faults(target):
        if lora:
            tensors = _lora_tensors(source)
            write_lora(unfinished, name, source.layout.architecture, source.lora_alpha, tensors, weight_type)
            num_tensors = len(tensors)
        else:
            weights = MergedWeights(source.folder, source.config, source.parts)
            _check_space(target, weights, weight_type)
            write_model(unfinished, name, source.layout, weights.shapes, weights.read, weight_type)
            num_tensors = sum(own in source.layout.names for own in weights.shapes)
        flush(unfinished)
    if ollama:
        base_file = f"./{source.folder.name}-f16.gguf"  # of `glmtune export BASE`
        write_modelfile(target, source.layout, source.prompt, base_file=base_file if lora else None)
    return ExportResult(target, target.stat().st_size, num_tensors, modelfile)


def _read_source(
    run: str | Path, adapter_path: Path | None, model_path: str | Path | None, other_base: bool
) -> _Source:
    """Reads and checks all that is small."""
    if adapter_path is None:
        if model_path is not None:
            raise ModelError(f"{run} is a base model itself; --model is for an adapter whose base has moved")
        return _source_of(str(Path(run).expanduser()), None)
    base = find_base(adapter_path, model_path)
    with base_of(adapter_path, base):
        source = _source_of(base, adapter_path)
        if not other_base:
            check_is_trained_base(adapter_path, base)
    return source


def _source_of(base: str, adapter_path: Path | None) -> _Source:
    config = read_base_config(base)
    family = family_at(base)
    folder = family.checked_folder(base)
    tokenizer = load_tokenizer(base)
    prompt = prompt_record(adapter_path, base, tokenizer)
    layout = family.gguf_layout(config, tokenizer, prompt.template, prompt.system)
    parts: dict[str, LoraPart] = {}
    alpha = 0.0
    if adapter_path is not None:
        parts, lora = read_lora_parts(adapter_path, config)
        if shared := sorted(parts.keys() - layout.names.keys()):
            raise AdapterError(
                f"{adapter_path}: {shared[0]} is the embedding's weight too, which llama.cpp cannot adapt"
            )
        alpha = float(lora.lora_alpha)
    return _Source(folder, config, prompt, layout, parts, alpha)


def _lora_tensors(source: _Source) -> dict[str, torch.Tensor]:
    """The adapter's matrices by llama.cpp's names.

    llama.cpp multiplies each product by alpha over its rank, with one alpha for all. Where PEFT's factor is another, as
    with rsLoRA or patterns of alphas, `lora_b` is multiplied by the rest.
    """
    tensors = {}
    for name, part in source.parts.items():
        if part.magnitude is not None:
            raise AdapterError(f"{name}: GGUF cannot hold DoRA's magnitudes. Leave out --lora to export a merged model")
        theirs = source.layout.names[name]
        rest = part.scaling / (source.lora_alpha / part.down.shape[0])
        tensors[f"{theirs}.lora_a"] = part.down.float()
        tensors[f"{theirs}.lora_b"] = part.up.float() * rest
    return tensors


def _check_output(output: str | Path | None, run: str | Path, weight_type: str, *, is_lora: bool) -> Path:
    if output is None:
        output = f"{Path(run).resolve().name}-{'lora-' if is_lora else ''}{weight_type}.gguf"
    target = Path(output).expanduser()
    with storage_faults(target):
        is_there = target.exists()
    if is_there:
        raise ConfigError(f"{target} exists; delete it or choose another --output")
    if target.suffix != ".gguf":
        raise ConfigError(f"{target}: expected the name of a file that ends in .gguf; choose another --output")
    check_writable_folder(target.resolve().parent)
    return target


def _check_space(target: Path, weights: MergedWeights, weight_type: WeightType) -> None:
    num_values = sum(torch.Size(shape).numel() for shape in weights.shapes.values())
    num_bytes = num_values * _BYTES[weight_type]
    free_bytes = shutil.disk_usage(target.resolve().parent).free
    if free_bytes < num_bytes:
        raise ConfigError(
            f"{target}: the file needs {num_bytes / 1e9:.3g} GB, the disk has {free_bytes / 1e9:.3g} GB left; "
            "free some, or choose an --output on another disk"
        )
