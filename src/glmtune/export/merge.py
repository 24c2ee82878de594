"""Merges an adapter into its full-precision base: a folder in the official layout that needs no adapter."""

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PretrainedConfig, PreTrainedModel

from glmtune.adapters.run_folder import RunManifest, find_adapter
from glmtune.errors import AdapterError, ConfigError
from glmtune.export.model_folder import (
    base_folder,
    copy_small_files,
    parse_size,
    save_weights,
    small_files,
)
from glmtune.export.unfinished import written_beside
from glmtune.export.verify import compare_folder, compare_weights, load_stock, probe_prompts
from glmtune.files import check_writable_folder, storage_faults
from glmtune.loading.base_weights import check_is_trained_base
from glmtune.loading.bases import read_base_config
from glmtune.loading.devices import Dtype, resolve_dtype
from glmtune.loading.runs import base_of, find_base, load
from glmtune.models.families import family_of

_DTYPES: dict[torch.dtype | None, Dtype] = {torch.float16: "float16", torch.bfloat16: "bfloat16"}


@dataclass(frozen=True)
class MergeResult:
    """A merged model, checked.

    Attributes:
        output_dir: Its folder.
        dtype: The dtype of its weights.
        num_bytes: Size of its weights.
        effect: Largest change that the adapter makes to the base's logits.
        difference: Largest difference of the merged model's logits from those of base and adapter.
        tolerance: The largest difference allowed.
    """

    output_dir: Path
    dtype: torch.dtype
    num_bytes: int
    effect: float
    difference: float
    tolerance: float

    def summary(self) -> str:
        """The merged model and its agreement with base and adapter, one line each."""
        name = str(self.dtype).removeprefix("torch.")
        size = f"{self.num_bytes / 1e9:.3g} GB" if self.num_bytes >= 1e9 else f"{self.num_bytes / 1e6:.3g} MB"
        return (
            f"{self.output_dir}: {size} of {name} weights.\n"
            f"Loaded back, its logits differ from base + adapter by at most {self.difference:.2g} "
            f"(allowed: {self.tolerance:.2g}; the adapter itself moves them by up to {self.effect:.2g})."
        )


def merge(
    run: str | Path,
    output_dir: str | Path,
    *,
    model_path: str | Path | None = None,
    dtype: Dtype = "auto",
    max_shard_size: str | int = "5GB",
    other_base: bool = False,
) -> MergeResult:
    """Merges a run into its base.

    Each weight is merged in float32 and rounded once; before that, the residual base weights of pissa and olora are
    held in the base's dtype, as in training. The folder is written beside its final place and renamed only once its
    weights are those that stock PEFT merges, and the model, loaded by plain transformers, computes the same as base and
    adapter in stock PEFT. A failure leaves nothing behind; the remains of a merge that was killed are deleted by the
    next one to the same place. Runs on the CPU. Memory holds the weights once, in the base's or the merged dtype (12.5
    GB for ChatGLM3-6B in 16 bits), and one layer or embedding table in float32 (about 1 GB); versions of safetensors
    that copy when writing need another shard.

    Args:
        run: A run folder, a `checkpoint-N` in one, or an adapter folder of stock PEFT.
        output_dir: A folder that does not exist yet or is empty.
        model_path: The base, if it is no longer at the path that the run recorded.
        dtype: The dtype of the merged weights; `auto` is the one in the base's own config.json.
        max_shard_size: Largest weight file: "5GB", "500MB", or bytes.
        other_base: Whether the base's weights may be others than those that the adapter was trained on.

    Returns:
        The merged model and how closely it agrees.

    Raises:
        ConfigError: The output folder or the shard size is invalid, or there is too little disk space.
        ModelError: The base cannot be loaded.
        AdapterError: There is no adapter, it does not fit, it was trained on another base, or the merged model does
            not compute the same.
        StorageError: The result cannot be written, or another process is merging to the same place.
    """
    shard_bytes = parse_size(max_shard_size)
    adapter_path = find_adapter(run)
    if adapter_path is None:
        raise AdapterError(f"{run} is a base model; there is no adapter in it to merge. Name a run folder")
    base = find_base(adapter_path, model_path)
    output = _check_output(Path(output_dir).expanduser(), {Path(run), adapter_path, Path(base)})
    with base_of(adapter_path, base):
        config = read_base_config(base)
        base_dtype = _DTYPES.get(config.dtype, "float32")
        merged_dtype = resolve_dtype(base_dtype if dtype == "auto" else dtype)
        _check_space(output, base, config, merged_dtype)
        if not other_base:
            check_is_trained_base(adapter_path, base)
    with written_beside(output, "is being used for merging") as unfinished:
        loaded = load(adapter_path, model_path=model_path, dtype=base_dtype, device_map="cpu", quantize="none")
        folder = base_folder(loaded.base_path)
        num_rounded = _num_rounded(loaded.model, merged_dtype)
        model = _merge_in_place(loaded.model, merged_dtype)
        prompts = probe_prompts(loaded.tokenizer)
        with storage_faults(output):
            unfinished.mkdir()
            copy_small_files(folder, unfinished, loaded.tokenizer, merged_dtype)
            family = family_of(loaded.model)
            family.write_plain_files(unfinished, loaded.tokenizer, loaded.template, loaded.system)
            if manifest := RunManifest.read(adapter_path) or RunManifest.read(folder):
                manifest.write(unfinished)  # it says what the merged model is to be asked with
            buffers = family.read_buffers(folder)
            weights = model.state_dict() | {name: buffer.to(merged_dtype) for name, buffer in buffers.items()}
            num_bytes = save_weights(weights, unfinished, shard_bytes)
        base_path = loaded.base_path
        del loaded, model  # hold only one model in memory at a time
        stock, expected, effect = load_stock(base_path, adapter_path, base_dtype, prompts)
        compare_weights(unfinished, stock, resolve_dtype(base_dtype))
        del stock
        difference, tolerance = compare_folder(unfinished, prompts, expected, num_rounded)
    return MergeResult(output, merged_dtype, num_bytes, effect, difference, tolerance)


def _check_output(output: Path, sources: Collection[Path]) -> Path:
    """The output folder, after checking that it may be written to."""
    if output.resolve() in {source.expanduser().resolve() for source in sources}:
        raise ConfigError(f"{output}: the output folder is the run or the base itself; choose another --output")
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output}: expected a new folder, found a file; choose another --output")
    if output.is_dir() and any(output.iterdir()):
        raise ConfigError(f"{output}: the output folder is not empty; delete it or choose another --output")
    check_writable_folder(output.resolve().parent)
    return output


def _check_space(output: Path, base: str, config: PretrainedConfig, dtype: torch.dtype) -> None:
    """Checks that the disk has room for the merged model, whose size follows from the base's configuration."""
    with torch.device("meta"):
        model = family_of(config).model_class(config)
    num_bytes = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    if Path(base).is_dir():
        num_bytes += sum(path.stat().st_size for path in small_files(Path(base)))
    place = next(parent for parent in output.resolve().parents if parent.is_dir())
    free_bytes = shutil.disk_usage(place).free
    if free_bytes < num_bytes:
        raise ConfigError(
            f"{output}: the merged model needs {num_bytes / 1e9:.3g} GB, the disk has {free_bytes / 1e9:.3g} GB left; "
            "free some, or choose an --output on another disk"
        )


def _tuner_layers(model: PeftModel) -> list[tuple[str, BaseTunerLayer]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


def _num_rounded(model: PeftModel, dtype: torch.dtype) -> int:
    """The number of weight matrices rounded to `dtype`: those with an adapter, or all if the dtype changes."""
    if model.dtype == dtype:
        return len(_tuner_layers(model))
    return sum(parameter.dim() > 1 for parameter in model.get_base_model().parameters())


def _merge_in_place(model: PeftModel, dtype: torch.dtype) -> PreTrainedModel:
    """Merges the adapter into the base, converted to `dtype`; only one weight at a time is in float32."""
    for name, layer in _tuner_layers(model):
        base_layer = layer.get_base_layer()
        base_layer.to(torch.float32)
        layer.merge()
        base_layer.to(dtype)
        if not torch.isfinite(base_layer.weight).all():
            raise AdapterError(f"{name}: the merged weight is not finite in {dtype}; try another dtype")
    merged: PreTrainedModel = model.base_model.unload()
    return merged.to(dtype)
