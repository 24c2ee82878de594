"""Plans a run for `glmtune plan`: for the local GPU, or for a card that is not installed."""

from dataclasses import replace

import torch

from glmtune.config import ModelSection, RunConfig, validate_names
from glmtune.data.run_data import RunData, load_run_data
from glmtune.errors import ConfigError
from glmtune.loading.devices import GIB, Dtype, default_device, free_device_bytes, resolve_dtype
from glmtune.loading.formats import FP8_CAPABILITY
from glmtune.planning.cards import Card, cards_of, find_card
from glmtune.planning.device import KnownDevice
from glmtune.planning.plan import plan_run
from glmtune.planning.planned import CONTEXT_GIB, PlannedRun
from glmtune.planning.speed import DeviceSpeed
from glmtune.planning.start import read_start


def plan_for_card(
    config: RunConfig, gpu: str | None = None, gib: float | None = None, tflops: float | None = None
) -> tuple[RunData, PlannedRun, str]:
    """Plans a run for a card; for the GPU here, and its free memory, as far as none is named.

    Args:
        config: The configuration.
        gpu: The card's name.
        gib: Its memory in GiB.
        tflops: What it reaches in 16 bits, in TFLOP/s.

    Returns:
        The run's data, the plan, and what the card is taken to be, in a line; empty for the GPU here.

    Raises:
        GlmtuneError: Configuration, data, base or card are wrong.
    """
    known, about = _known_device(gpu, gib, config.model, on_cpu=bool(config.train.get("use_cpu")))
    if tflops is not None:
        label = f"a card of {tflops:g} TFLOP/s"
        known = replace(known, speed=DeviceSpeed.assumed(tflops), possible_speeds=(), label=label)
        about = about if gpu else ""
    start = read_start(validate_names(config), may_overwrite=True)
    seed = int(start.config.train.get("seed", 42))
    data = load_run_data(start.config.data, start.config.prompt, start.tokenizer, seed)
    return data, plan_run(start, data.train, known), about


def _known_device(gpu: str | None, gib: float | None, model: ModelSection, *, on_cpu: bool) -> tuple[KnownDevice, str]:
    """The device to plan for, and what it is taken to be."""
    device = torch.device(default_device())
    here = device if device.type == "cuda" and not on_cpu else None
    if gpu is not None:
        card = find_card(gpu, gib)
        known = _for_cards([card], model, card.gib if gib is None else gib)
        about = _figures(card)
    elif here is not None:
        known, about = _for_gpu(here, model.dtype, gib), ""
    elif gib is not None:
        cards = cards_of(gib)
        known, about = _for_cards(cards, model, gib), _figures(cards[0])
        if len(cards) > 1:
            known = replace(known, label="cards of this size (estimated)")
            names = ", ".join(card.name for card in cards)
            about = (
                f"no card is named: settings as for {cards[0].name}, times from the fastest to the slowest of {names}"
            )
            about = f"{about}. --gpu NAME plans for yours"
    else:
        card = find_card("A100-80G")
        known = replace(_for_cards([card], model, None), total_gib=None)
        about = f"no GPU here: times as for {card.name}; --gpu NAME or --gpu-gib N plans for another card"
    return known, about


def _for_gpu(here: torch.device, asked: Dtype, gib: float | None) -> KnownDevice:
    """The GPU here, or as much of it as a card of another size has."""
    dtype = resolve_dtype(asked)
    free = free_device_bytes(here) if gib is None else (gib - CONTEXT_GIB) * GIB
    return KnownDevice(here, dtype, free, DeviceSpeed.measure(here, dtype), total_gib=gib)


def _for_cards(cards: list[Card], model: ModelSection, gib: float | None) -> KnownDevice:
    """A card that is not installed; where it may be one of several, with the settings of the first.

    Raises:
        ConfigError: The configuration asks for fp8, and the card does not have what that takes.
    """
    card = cards[0]
    if model.quantize == "fp8" and len(cards) == 1 and card.capability < FP8_CAPABILITY:
        raise ConfigError(f"model.quantize=fp8 needs a Hopper or newer GPU; this is a {card.name}")
    if model.dtype == "auto":
        dtype = torch.bfloat16 if card.has_bf16 else torch.float16
    else:
        dtype = resolve_dtype(model.dtype)
    is_measured = all(each.is_measured for each in cards)
    return KnownDevice(
        None,
        dtype,
        None if gib is None else (gib - CONTEXT_GIB) * GIB,
        card.speed,
        label=card.name if is_measured else f"{card.name} (estimated)",
        total_gib=gib,
        capability=min(each.capability for each in cards if each.has_bf16 == card.has_bf16),
        possible_speeds=tuple(each.speed for each in cards),
    )


def _figures(card: Card) -> str:
    """A card's published figures, in a line."""
    figures = f"{card.name}: {card.gib:g} GiB, {card.gb_per_s:g} GB/s, {card.tflops:g} TFLOP/s in 16 bits (published)"
    if card.is_measured:
        return f"{figures}; runs on it have been measured"
    return f"{figures}; not measured, so times are estimated from what an H100 and an H200 reach of theirs"
