"""Plans a run from its configuration, base, data, device and earlier run, without loading weights."""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from glmtune.adapters.lora import attach_lora
from glmtune.config import RunConfig
from glmtune.data.samples import SampleDataset
from glmtune.errors import ConfigError, GlmtuneError
from glmtune.loading.bases import read_base_config
from glmtune.loading.formats import (
    FORMATS,
    WeightFormat,
    automatic_formats,
    check_format,
    has_bitsandbytes,
    unquantizable,
)
from glmtune.loading.shape import BaseShape
from glmtune.models.families import family_of
from glmtune.ops import takes_flash_kernel
from glmtune.planning.context import context_notes
from glmtune.planning.device import KnownDevice
from glmtune.planning.optimizers import is_elementwise, state_bytes
from glmtune.planning.planned import PlannedRun
from glmtune.planning.planner import Planner, SearchSpace
from glmtune.planning.resume import EarlierRun
from glmtune.planning.settings import FORMAT, as_before, decide, with_settings
from glmtune.planning.shape import AdapterShape
from glmtune.planning.steps import num_optimizer_steps, prefix_note, shares_prefix, size_step

# Stands for a card that is not installed; current cards have the flash attention kernel.
_CARD = torch.device("cuda")


def plan_run(
    config: RunConfig, train: SampleDataset, known: KnownDevice, earlier: EarlierRun | None = None
) -> PlannedRun:
    """Plans a run. A resumed run keeps its format, and its other earlier settings if they are possible and fit.

    Args:
        config: The configuration; settings that it leaves open are chosen.
        train: The samples.
        known: The device.
        earlier: The run that is resumed; None for a new one.

    Returns:
        The plan, which may not fit.

    Raises:
        ConfigError: Settings contradict each other, a sample is longer than the base's context, or the base cannot be
            trained on packed samples.
        ModelError: The base's configuration cannot be read.
        AdapterError: The adapter does not fit the base.
    """
    if earlier is None:
        return _plan(config, train, known, keeps_format=False)
    config = as_before(config, earlier.config, (FORMAT,))
    with suppress(ConfigError):
        planned = _plan(as_before(config, earlier.config), train, known, keeps_format=True)
        if planned.fits:
            return planned
    return _plan(config, train, known, keeps_format=True)


def _plan(config: RunConfig, train: SampleDataset, known: KnownDevice, *, keeps_format: bool) -> PlannedRun:
    base_config = read_base_config(config.model.path)
    base, adapter = _shapes(config, base_config, known.dtype)
    optim = str(config.train.get("optim", "adamw_torch"))
    whole = _whole_freedom(config, base, adapter, sorted(train.lengths), known)
    space = decide(whole, config, base.shape.num_layers, adapter.why_not_fused)
    if config.model.quantize == "auto":
        names = [each.name for each in automatic_formats(config.lora) if not _lacks_package(each)]
        space = replace(space, quantize=[name for name in whole.quantize if name in names])
    if keeps_format:
        whole = whole.with_format(space.quantize[0])
    planner = Planner(
        base,
        adapter,
        known.speed,
        cache(lambda max_tokens, graphs: size_step(config, train, max_tokens, graphs)),
        # DistributedDataParallel, used where parameters are not flat, holds another copy of the gradients.
        state_bytes(optim) + (4 if known.num_processes > 1 and not is_elementwise(optim) else 0),
    )
    is_on_cpu = known.device is not None and known.device.type == "cpu"
    limit = math.inf if known.free_bytes is None else known.free_bytes
    if is_on_cpu:
        chosen = planner.plainest(space)
        filled = with_settings(config, chosen, (FORMAT,))
    else:
        chosen = planner.choose(space, limit) or planner.smallest(space)
        filled = with_settings(config, chosen)
    planned = PlannedRun(
        config=filled,
        chosen=chosen,
        free_bytes=known.free_bytes,
        num_steps=num_optimizer_steps(config, len(train), known.num_processes),
        shares_prefix=shares_prefix(config),
        why_not_fused=adapter.why_not_fused,
        planner=planner,
        whole_space=whole,
        device=known.name,
        longest=max(train.lengths),
    )
    notes = [*_notes(config, adapter, known, planned.longest), *prefix_note(config, train)]
    notes += context_notes(config, planned.longest, base_config.seq_length)
    if not planned.fits and unquantizable(config.lora):
        notes.append(f"the base cannot be quantised: {', '.join(f'lora.{key}' for key in unquantizable(config.lora))}")
    if not is_on_cpu and not keeps_format and planned.fits:
        faster = planner.faster_format(chosen, whole, limit)
        if faster is not None:
            notes.append(f"{faster.setting} would take {-faster.slowdown:.0%} less time per step, but is less precise")
    return replace(planned, notes=tuple(notes))


def _shapes(config: RunConfig, base_config: Any, dtype: torch.dtype) -> tuple[BaseShape, AdapterShape]:
    if base_config.attention_dropout > 0:
        raise ConfigError("the base has attention_dropout, which packed samples cannot be trained with; set it to 0")
    with torch.device("meta"):
        model = family_of(base_config).model_class(base_config).to(dtype)
    model.name_or_path = base_config.name_or_path = str(config.model.path)  # PEFT warns of a base without a name
    base = BaseShape.of(model, dtype)
    # pissa and olora would decompose weights, which do not exist on the meta device.
    adapter = AdapterShape.of(attach_lora(model, {**config.lora, "init_lora_weights": True}))
    if config.train.get("torch_compile"):
        adapter = replace(adapter, why_not_fused="train.torch_compile compiles them")
    return base, adapter


def _whole_freedom(
    config: RunConfig, base: BaseShape, adapter: AdapterShape, lengths: list[int], known: KnownDevice
) -> SearchSpace:
    """All choices that a run has, without the user's settings."""
    is_fused = adapter.why_not_fused is None
    can_graph = (
        is_fused
        and is_elementwise(str(config.train.get("optim", "adamw_torch")))
        and takes_flash_kernel(known.device or _CARD, known.dtype, base.shape.head_dim)
    )
    formats = [
        each.name
        for each in FORMATS.values()
        if each.name == "none" or (not unquantizable(config.lora) and _is_possible(each, base, known))
    ]
    longest = lengths[-1]
    limits = [config.train["per_device_train_batch_size"] * longest]
    while limits[-1] > longest:
        limits.append(max(limits[-1] // 2, longest))
    return SearchSpace(
        quantize=formats,
        offloads_embedding=(False, True) if is_fused and not base.shape.is_tied else (False,),
        num_checkpointed=range(base.shape.num_layers + 1),
        offloads_checkpoints=(False, True) if is_fused else (False,),
        uses_graphs=(True, False) if can_graph else (False,),
        max_tokens=limits,
    )


def _is_possible(weight_format: WeightFormat, base: BaseShape, known: KnownDevice) -> bool:
    if known.device is None and not weight_format.is_automatic:
        return False  # unknown whether that card supports fp8 products
    try:
        check_format(weight_format.name, base.linears, known.dtype, known.device or torch.device("meta"))
    except GlmtuneError:
        return False
    return True


def _lacks_package(weight_format: WeightFormat) -> bool:
    return weight_format.takes_bitsandbytes and not has_bitsandbytes()


def _notes(config: RunConfig, adapter: AdapterShape, known: KnownDevice, longest: int) -> Iterator[str]:
    if adapter.why_not_fused is not None:
        yield f"layers cannot be fused, which costs time and memory: {adapter.why_not_fused}"
    if config.model.quantize == "fp8" and known.device is None:
        yield "fp8 needs a Hopper or newer GPU"
    if config.model.quantize == "fp8" and known.device is not None and known.device.type == "cpu":
        yield "fp8 is only emulated on the CPU, which is slower"
    limit = config.train.get("max_tokens_per_device")
    if limit is not None and limit < longest:
        yield (
            f"train.max_tokens_per_device={limit} is below the longest sample, which still takes a pass of "
            f"{longest} tokens"
        )
