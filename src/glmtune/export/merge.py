"""Merges an adapter into its full-precision base: a folder in the official layout that needs no adapter any more."""

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from glmtune.config import embedded_base
from glmtune.errors import AdapterError, ConfigError, ModelError
from glmtune.export.layout import base_folder, copy_small_files, parse_size, save_weights, small_files
from glmtune.models.chatglm import ChatGLMConfig, ChatGLMTokenizer
from glmtune.prompts import Conversation, Message, Template, render_prompt
from glmtune.tuning.adapter_files import read_adapter_config
from glmtune.tuning.load import Dtype, load, resolve_dtype
from glmtune.tuning.run_folder import RunManifest, find_adapter, is_hub_id

_PROBES = ("你是谁？", "请用一句话介绍你自己。", "Hello! What can you do for me?")


@dataclass(frozen=True)
class MergeResult:
    """A merged model, checked.

    Attributes:
        output_dir: Its folder.
        dtype: The type of its weights.
        num_bytes: Size of its weights.
        difference: Largest difference of its logits from those of base and adapter.
        tolerance: The difference that was allowed.
    """

    output_dir: Path
    dtype: torch.dtype
    num_bytes: int
    difference: float
    tolerance: float

    def summary(self) -> str:
        """What was made, in one line."""
        name = str(self.dtype).removeprefix("torch.")
        return (
            f"{self.output_dir}: {self.num_bytes / 1e9:.3g} GB of {name} weights; loaded back, its logits differ from "
            f"base + adapter by at most {self.difference:.2g} (allowed: {self.tolerance:.2g})"
        )


def merge(
    run: str | Path,
    output_dir: str | Path,
    *,
    model_path: str | Path | None = None,
    dtype: Dtype = "auto",
    max_shard_size: str | int = "5GB",
) -> MergeResult:
    """Merges a run into its base.

    Each weight is merged in float32 and rounded once. The folder is made beside its final place and only renamed once
    the merged model, loaded back by plain transformers, computes what base and adapter compute; a failure leaves
    nothing. Works on the CPU; memory holds the base once, and one weight in float32.

    Args:
        run: A run folder, a `checkpoint-N` in one, or an adapter folder of stock PEFT.
        output_dir: A folder that does not exist yet or is empty.
        model_path: The base, where it is not where the run says it was.
        dtype: Type of the merged weights; `auto` is the one that the base's own config.json names.
        max_shard_size: Largest weight file: "5GB", "500MB", or bytes.

    Returns:
        What was made, and how exactly it agrees.

    Raises:
        ConfigError: The output folder or the shard size will not do, or the disk is too full.
        ModelError: The base cannot be loaded, or the result cannot be written.
        AdapterError: There is no adapter, it does not fit, or the merged model does not compute the same.
    """
    shard_bytes = parse_size(max_shard_size)
    adapter_path = find_adapter(run)
    if adapter_path is None:
        raise AdapterError(f"{run} is a base model; there is no adapter in it to merge. Name a run folder")
    base = _find_base(adapter_path, model_path)
    output = _check_output(Path(output_dir).expanduser(), {Path(run), adapter_path, Path(base)})

    base_dtype = _own_dtype(base)
    loaded = load(run, model_path=model_path, dtype=base_dtype, device_map="cpu")
    merged_dtype = resolve_dtype(base_dtype if dtype == "auto" else dtype)
    num_bytes = sum(parameter.numel() for parameter in loaded.model.get_base_model().parameters()) * merged_dtype.itemsize
    folder = base_folder(loaded.base_path)
    _check_space(output, num_bytes + sum(path.stat().st_size for path in small_files(folder)))

    probes = _probes(loaded.tokenizer, loaded.template, loaded.system)
    expected = _logits(loaded.model, probes)
    num_merged = sum(isinstance(module, BaseTunerLayer) for module in loaded.model.modules())
    model = _merge_in_place(loaded.model, merged_dtype)
    num_rounded = num_merged if resolve_dtype(base_dtype) == merged_dtype else len(list(model.parameters()))
    with _written_aside(output) as unfinished:
        copy_small_files(folder, unfinished, loaded.tokenizer, merged_dtype)
        if manifest := RunManifest.read(adapter_path):
            manifest.write(unfinished)
        save_weights(model.state_dict(), unfinished, shard_bytes)
        del loaded, model  # before the merged model is loaded beside it
        difference, tolerance = _compare(unfinished, probes, expected, merged_dtype, num_rounded)
    return MergeResult(output, merged_dtype, num_bytes, difference, tolerance)
