"""Plans a run from what it starts from, its data and its device, without loading weights."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from transformers import PretrainedConfig

from glmtune.adapters.lora import attach_lora
from glmtune.data.samples import SampleDataset
from glmtune.errors import ConfigError, GlmtuneError
from glmtune.loading.formats import FORMATS, FP8_CAPABILITY, WeightFormat, has_bitsandbytes, unquantizable
from glmtune.loading.shape import BaseShape
from glmtune.models.families import family_of, shape_of
from glmtune.ops import FLASH_CAPABILITY, takes_flash_kernel
from glmtune.planning.context import context_notes
from glmtune.planning.device import KnownDevice
from glmtune.planning.optimizers import is_elementwise, state_bytes
from glmtune.planning.planned import PlannedRun
from glmtune.planning.planner import Planner
from glmtune.planning.settings import (
    FORMAT,
    Candidate,
    Choices,
    chosen_settings,
    decide,
    given_settings,
    in_format,
    possible_choices,
)
from glmtune.planning.shape import AdapterShape
from glmtune.planning.start import Start
from glmtune.planning.steps import num_optimizer_steps, prefix_note, samples_a_step, size_step

# Stands for a card that is not installed; current cards have the flash attention kernel.
_CARD = torch.device("cuda")


def plan_run(start: Start, samples: SampleDataset, known: KnownDevice) -> PlannedRun:
    """Plans a run. A resumed run keeps its format, and its other earlier settings if they are possible and fit.

    Args:
        start: What the run starts from; settings that its configuration leaves open are chosen.
        samples: The samples to train on.
        known: The device.

    Returns:
        The plan, which may not fit.

    Raises:
        ConfigError: Settings contradict each other, a sample is longer than the base's context, or the base cannot be
            trained on packed samples.
        AdapterError: The adapter does not fit the base.
    """
    config, lora, train = start.config, start.config.lora, start.config.train
    optim, in_a_step = str(train.get("optim", "adamw_torch")), samples_a_step(train)
    shares_prefix: bool | None = train.get("shared_prefix")
    dropout = float(lora.get("lora_dropout", 0.0))
    is_shared = dropout == 0 if shares_prefix is None else shares_prefix
    base, adapter = _shapes(start.base_config, lora, known.dtype, compiles=bool(train.get("torch_compile")))
    unfit, longest = unquantizable(lora), max(samples.lengths)
    limits = _pass_limits(train["per_device_train_batch_size"] * longest, longest)
    whole = _whole_freedom(base, adapter, known, unfit, limits, optim)
    size = cache(
        lambda limit, graphs: size_step(samples, in_a_step, limit, shares_prefix=is_shared, uses_graphs=graphs)
    )
    # DistributedDataParallel, used where parameters are not flat, holds another copy of the gradients.
    optimizer_bytes = state_bytes(optim) + (4 if known.num_processes > 1 and not is_elementwise(optim) else 0)
    planner = Planner(base, adapter, known.speed, size, optimizer_bytes)
    given, chosen = _choose(start, planner, whole, known, adapter.why_not_fused)
    settings = chosen_settings(chosen)
    planned = PlannedRun(
        config=config.with_settings({**given, FORMAT.key: settings[FORMAT.key]} if _is_cpu(known) else settings),
        chosen=chosen,
        known=known,
        num_steps=num_optimizer_steps(train, len(samples), known.num_processes),
        shares_prefix=is_shared,
        why_not_fused=adapter.why_not_fused,
        planner=planner,
        whole_space=whole if start.earlier is None else in_format(whole, chosen.settings.quantize),
        longest=longest,
    )
    notes = [*_notes(planned, unfit)]
    if shares_prefix is None and not is_shared:
        notes += prefix_note(samples, in_a_step, dropout)
    notes += context_notes(config.data.max_length, longest, base.shape.context_length, is_toy=config.model.path is None)
    if start.earlier is None and not _is_cpu(known):
        notes += _format_note(planned)
    return replace(planned, notes=tuple(notes))


def _shapes(
    base_config: PretrainedConfig, lora: Mapping[str, Any], dtype: torch.dtype, *, compiles: bool
) -> tuple[BaseShape, AdapterShape]:
    if shape_of(base_config).has_attention_dropout:
        raise ConfigError("the base has attention_dropout, which packed samples cannot be trained with; set it to 0")
    with torch.device("meta"):
        model = family_of(base_config).model_class(base_config).to(dtype)
    base = BaseShape.of(model, dtype)
    # pissa and olora would decompose weights, which do not exist on the meta device.
    adapter = AdapterShape.of(attach_lora(model, {**lora, "init_lora_weights": True}))
    if compiles:
        adapter = replace(adapter, why_not_fused="train.torch_compile compiles them")
    return base, adapter


def _whole_freedom(
    base: BaseShape,
    adapter: AdapterShape,
    known: KnownDevice,
    unfit: Sequence[str],
    pass_limits: Sequence[int],
    optim: str,
) -> Choices:
    """All choices of a run; `unfit` are the settings of the adapter that need the published weights."""
    is_fused = adapter.why_not_fused is None
    return possible_choices(
        formats=[
            each.name
            for each in FORMATS.values()
            if each.name == "none" or (not unfit and _is_possible(each, base, known))
        ],
        num_layers=base.shape.num_layers,
        is_fused=is_fused,
        is_tied=base.shape.is_tied,
        can_graph=is_fused
        and is_elementwise(optim)
        and (known.capability is None or known.capability >= FLASH_CAPABILITY)
        and takes_flash_kernel(known.device or _CARD, known.dtype, base.shape.head_dim),
        pass_limits=pass_limits,
    )


def _is_possible(weight_format: WeightFormat, base: BaseShape, known: KnownDevice) -> bool:
    if known.device is None and weight_format.name == "fp8" and (known.capability or (0, 0)) < FP8_CAPABILITY:
        return False  # not supported by that card, or unknown
    try:
        weight_format.check(base.linears, known.dtype, known.device or torch.device("meta"))
    except GlmtuneError:
        return False
    return True


def _pass_limits(most: int, longest: int) -> list[int]:
    """Limits of a pass, halved down to the longest sample."""
    limits = [most]
    while limits[-1] > longest:
        limits.append(max(limits[-1] // 2, longest))
    return limits


def _choose(
    start: Start, planner: Planner, whole: Choices, known: KnownDevice, why_not_fused: str | None
) -> tuple[Mapping[str, Any], Candidate]:
    """The settings that are given, by the user or the earlier run, and the candidate chosen under them."""
    given = given_settings(start.config.setting)
    if start.earlier is not None:
        as_before = {**given_settings(start.earlier.manifest.setting), **given}
        with suppress(ConfigError):
            chosen = _best(planner, _allowed(whole, as_before, why_not_fused), known)
            if chosen.memory.needed <= _limit(known):
                return as_before, chosen
    return given, _best(planner, _allowed(whole, given, why_not_fused), known)


def _allowed(whole: Choices, given: Mapping[str, Any], why_not_fused: str | None) -> Choices:
    space = decide(whole, given, why_not_fused)
    if FORMAT.key in given:
        return space
    formats = [FORMATS[name] for name in whole[FORMAT.name]]
    automatic = [each.name for each in formats if each.is_automatic and not _lacks_package(each)]
    return {**space, FORMAT.name: automatic}


def _best(planner: Planner, space: Choices, known: KnownDevice) -> Candidate:
    if _is_cpu(known):
        return planner.plainest(space)
    return planner.choose(space, _limit(known)) or planner.smallest(space)


def _limit(known: KnownDevice) -> float:
    return math.inf if known.free_bytes is None else known.free_bytes


def _is_cpu(known: KnownDevice) -> bool:
    return known.device is not None and known.device.type == "cpu"


def _lacks_package(weight_format: WeightFormat) -> bool:
    return weight_format.takes_bitsandbytes and not has_bitsandbytes()


def _notes(planned: PlannedRun, unfit: Sequence[str]) -> Iterator[str]:
    known = planned.known
    if planned.why_not_fused is not None:
        yield f"layers cannot be fused, which costs time and memory: {planned.why_not_fused}"
    if planned.settings.quantize == "fp8" and known.device is None and (known.capability or (0, 0)) < FP8_CAPABILITY:
        yield "fp8 needs a Hopper or newer GPU"
    if planned.settings.quantize == "fp8" and _is_cpu(known):
        yield "fp8 is only emulated on the CPU, which is slower"
    if planned.max_tokens < planned.longest:
        limit = planned.max_tokens
        yield (
            f"train.max_tokens_per_device={limit} is below the longest sample, which still takes a pass of "
            f"{planned.longest} tokens"
        )
    if unfit and not planned.fits:
        yield f"the base cannot be quantised: {', '.join(f'lora.{key}' for key in unfit)}"


def _format_note(planned: PlannedRun) -> Iterator[str]:
    if not planned.fits:
        return
    faster = planned.planner.faster_format(planned.chosen, planned.whole_space, _limit(planned.known))
    if faster is not None:
        yield f"{faster.setting} would take {-faster.slowdown:.0%} less time per step, but is less precise"
