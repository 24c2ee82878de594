"""Plans a run from its configuration and data, before the base is loaded: how much memory, how long, which settings."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy
import torch
from rich.console import Console
from rich.table import Table

from glmtune.config import RunConfig, embedded_base, validate_names
from glmtune.data.packing import MOST_GRAPHED_TOKENS, PackingCollator, padded_sizes
from glmtune.data.samples import SampleDataset
from glmtune.data.statistics import DataStats
from glmtune.errors import ConfigError, GlmtuneError, TrainingError
from glmtune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from glmtune.ops import takes_flash_kernel
from glmtune.training.lora_trainer import is_elementwise
from glmtune.training.run_data import load_run_data
from glmtune.tuning.load import default_device, load_tokenizer, read_base_config, resolve_dtype
from glmtune.tuning.lora import attach_lora
from glmtune.tuning.memory import GIB, AdapterShape, BaseShape, MemorySettings, Pass, free_device_bytes
from glmtune.tuning.planner import DeviceSpeed, Freedom, Plan, Planner, StepShape
from glmtune.tuning.quantize import (
    HOW_TO_INSTALL,
    Quantize,
    check_adapter,
    check_format,
    has_bitsandbytes,
    unquantizable,
)

# What a process takes of a card before it has put anything there: CUDA's own memory.
CONTEXT_GIB = 0.6
# Of a card that is not here, in 16 bits.
ASSUMED_TFLOPS = 50.0
# Where a card that is not here would be; current cards have the flash kernel.
_CARD = torch.device("cuda")
# Samples that steps are laid out with to see how large passes are.
_LAID_OUT_SAMPLES = 2000
_QUANTIZED: tuple[Quantize, ...] = ("int8", "nf4")

# The settings that a plan decides on.
_KEYS = (
    ("model", "quantize"),
    ("model", "offload_embedding"),
    ("train", "max_tokens_per_device"),
    ("train", "gradient_checkpointing"),
    ("train", "offload_checkpoints"),
    ("train", "cuda_graphs"),
)
# What they take, where that is not always there.
_NEEDS = {
    "model.offload_embedding": "fused layers, and an embedding that is not the output layer too",
    "train.offload_checkpoints": "fused layers",
    "train.cuda_graphs": "fused layers, one process, 16 bits on an Ampere or newer GPU, and torch's own AdamW or SGD",
}


@dataclass(frozen=True)
class RunPlan:
    """What a run will take, and the settings that it will go by.

    Attributes:
        chosen: The plan; where none fits, the one that needs least.
        free_bytes: What the device has for it; None where that is not known, or not asked.
        num_steps: Optimiser steps of the whole run.
        planner: What made it.
        whole_freedom: What there would be if the user had decided nothing.
        device: What the time is for, in words.
        longest: Tokens of the longest sample.
        notes: What else the user should know, a line each.
    """

    chosen: Plan
    free_bytes: float | None
    num_steps: int
    planner: Planner
    whole_freedom: Freedom
    device: str
    longest: int
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the chosen plan fits."""
        return self.free_bytes is None or self.chosen.memory.needed <= self.free_bytes

    def settings(self) -> list[str]:
        """The chosen settings, as on the command line."""
        return _spell(self.chosen)

    def summary(self) -> str:
        """What is chosen and needed, in one line."""
        settings, gib = self.chosen.settings, self.chosen.memory.needed / GIB
        free = "" if self.free_bytes is None else f" / {self.free_bytes / GIB:.1f}"
        parts = [
            f"base {settings.quantize}" if settings.quantize != "none" else "base not quantised",
            f"passes of at most {self.chosen.step.max_tokens:,} tokens",
            f"checkpointed layers: {settings.num_checkpointed}"
            + (" (in host memory)" if settings.offloads_checkpoints else ""),
        ]
        if settings.offloads_embedding:
            parts.append("embedding in host memory")
        parts.append("CUDA graphs" if settings.uses_graphs else "no CUDA graphs")
        return f"显存计划 memory plan: {gib:.1f}{free} GiB; {', '.join(parts)}"

    def check(self) -> None:
        """Makes sure that it fits.

        Raises:
            TrainingError: It does not; the message says what would.
        """
        if self.fits or self.free_bytes is None:
            return
        raise TrainingError(
            f"放不下 this run does not fit: it needs {self.chosen.memory.needed / GIB:.1f} GiB at least, and "
            f"{max(self.free_bytes, 0) / GIB:.1f} GiB are free. {self.what_would_fit(self.free_bytes)}"
            + "".join(f"\n{note}" for note in self.notes)
        )

    def what_would_fit(self, free_bytes: float) -> str:
        """Which settings would fit in so much memory, as a sentence; else how large a card would have to be."""
        fitting = self.planner.choose(self.whole_freedom, free_bytes)
        if fitting is not None:
            settings = f"these settings would fit: {' '.join(_spell(fitting))}"
            if fitting.settings.quantize in _QUANTIZED and not has_bitsandbytes():
                return f"装上 bitsandbytes 就行 With bitsandbytes ({HOW_TO_INSTALL}) {settings}"
            return settings[0].upper() + settings[1:]
        smallest = self.planner.smallest(self.whole_freedom)
        card = math.ceil(smallest.memory.needed / GIB + CONTEXT_GIB)
        return (
            f"The smallest card that could do it has {card} GiB ({' '.join(_spell(smallest))}). "
            f"Shorter samples need less: data.max_length, now up to {self.longest} tokens"
        )

    def print(self, console: Console) -> None:
        """Prints the sum, the settings, and how long it will take."""
        memory = self.chosen.memory
        table = Table(title="显存 GPU memory", title_justify="left")
        table.add_column("项 term")
        table.add_column("GiB", justify="right")
        rows = {
            "权重 weights": memory.weights,
            "LoRA 参数 adapters": memory.adapters,
            "优化器 optimiser": memory.optimizer,
            "激活 activations": memory.activations,
            "logits": memory.logits,
            "库 overhead": memory.overhead,
        }
        for name, value in rows.items():
            table.add_row(name, f"{value / GIB:.2f}")
        table.add_section()
        table.add_row("峰值 peak", f"{memory.peak / GIB:.2f}")
        table.add_row("CUDA graphs", f"{memory.graphs / GIB:.2f}")
        table.add_row("预留 reserve", f"{memory.reserve / GIB:.2f}")
        table.add_section()
        table.add_row("需要 needed", f"{memory.needed / GIB:.2f}")
        if self.free_bytes is not None:
            table.add_row("可用 free", f"{self.free_bytes / GIB:.2f}")
        console.print(table)
        if not self.fits:
            return
        step = self.chosen.step
        console.print(
            f"最大的一次前向 largest pass: {step.largest.rows:,} rows, {step.largest.label_rows:,} of them learnt; "
            f"{step.num_passes:.3g} passes a step",
            highlight=False,
        )
        seconds = self.num_steps * self.chosen.seconds_per_step
        console.print(
            f"预计 expected: {self.num_steps:,} steps, {_duration(seconds)} on {self.device}", highlight=False
        )
        console.print(f"设置 settings: {' '.join(self.settings())}", highlight=False, soft_wrap=True)
        console.print(
            "（不写这些，train 会按实际的显卡选 leave them out, and train chooses by the card that it finds）"
        )
        if self.free_bytes is None:
            console.print("这里没有 GPU no GPU here to compare with; --gpu-gib N plans for a card of N GiB")
        for note in self.notes:
            console.print(note, highlight=False, soft_wrap=True)


def plan_run(
    config: RunConfig,
    train: SampleDataset,
    *,
    device: torch.device | None,
    dtype: torch.dtype,
    free_bytes: float | None,
    num_processes: int = 1,
    speed: DeviceSpeed | None = None,
    why_not_fused: str | None = None,
    keeps_format: bool = False,
) -> RunPlan:
    """Plans a run.

    Args:
        config: The configuration; what it leaves open is chosen.
        train: The samples.
        device: Where it is to run; None for a card that is not here.
        dtype: What the base computes in.
        free_bytes: What the device has for it; None for no limit.
        num_processes: Devices that share the samples of an epoch.
        speed: Of the device; measured if left out, where there is one.
        why_not_fused: Why layers will not be fused though they could be.
        keeps_format: Whether the base's format is not to be changed, whatever would fit.

    Returns:
        The plan, which may not fit.

    Raises:
        ConfigError: Settings contradict each other.
        ModelError: The base's configuration cannot be read.
        AdapterError: The adapter does not fit the base.
    """
    base_config = read_base_config(config.model.path)
    with torch.device("meta"):
        model = ChatGLMForConditionalGeneration(base_config).to(dtype)
    model.name_or_path = base_config._name_or_path = str(config.model.path)  # PEFT warns of a base without a name
    base = BaseShape.of(model, dtype)
    # pissa and olora would decompose weights that are not there.
    adapter = AdapterShape.of(attach_lora(model, {**config.lora, "init_lora_weights": True}))
    if why_not_fused is not None:
        adapter = replace(adapter, why_not_fused=why_not_fused)
    num_samples = config.train["per_device_train_batch_size"] * config.train["gradient_accumulation_steps"]
    lengths = sorted(train.lengths)
    optim = str(config.train.get("optim", "adamw_torch"))
    can_graph = (
        num_processes == 1
        and adapter.why_not_fused is None
        and is_elementwise(optim)
        and takes_flash_kernel(device or _CARD, dtype, base_config.kv_channels)
    )
    whole = _whole_freedom(config, base_config, adapter, lengths, dtype, device, can_graph)
    freedom = _decided(whole, config, base_config.num_layers)
    if keeps_format:
        whole = replace(whole, quantize=freedom.quantize)
    planner = Planner(
        base,
        adapter,
        speed or (DeviceSpeed.assumed(ASSUMED_TFLOPS) if device is None else DeviceSpeed.measure(device, dtype)),
        cache(lambda max_tokens, graphs: _lay_out(config, train, num_samples, max_tokens, graphs)),
        # DistributedDataParallel has its gradients once more, in buckets.
        _state_bytes(optim) + (4 if num_processes > 1 else 0),
    )
    if config.model.quantize == "auto" and not has_bitsandbytes():
        freedom = replace(freedom, quantize=("none",))
    chosen = planner.choose(freedom, math.inf if free_bytes is None else free_bytes)
    num_steps = int(config.train.get("max_steps", -1))
    if num_steps <= 0:
        num_steps = math.ceil(
            math.ceil(len(train) / (num_samples * num_processes)) * float(config.train["num_train_epochs"])
        )
    return RunPlan(
        chosen=chosen or planner.smallest(freedom),
        free_bytes=free_bytes,
        num_steps=num_steps,
        planner=planner,
        whole_freedom=whole,
        device=_name(device) if speed is None else f"a card of {speed.flops / 1e12:g} TFLOP/s",
        longest=lengths[-1],
        notes=tuple(_notes(config, adapter, device, lengths[-1])),
    )


def _notes(config: RunConfig, adapter: AdapterShape, device: torch.device | None, longest: int) -> Iterator[str]:
    if adapter.why_not_fused is not None:
        yield f"层不能融合，更慢更占显存 layers cannot be fused, which takes time and memory: {adapter.why_not_fused}"
    if unquantizable(config.lora):
        keys = ", ".join(f"lora.{key}" for key in unquantizable(config.lora))
        yield f"基座不能量化 the base cannot be quantised: {keys}"
    if config.model.quantize == "fp8" and device is None:
        yield "fp8 需要 Hopper 或更新的卡 fp8 needs a Hopper or newer GPU"
    limit = config.train.get("max_tokens_per_device")
    if limit is not None and limit < longest:
        yield (
            f"train.max_tokens_per_device={limit} 比最长的样本还短 is below the longest sample: "
            f"that one is a pass of {longest} tokens all the same"
        )


def plan_for_card(config: RunConfig, gpu_gib: float | None, tflops: float | None) -> tuple[DataStats, RunPlan]:
    """Plans a run as `glmtune plan` does: for the GPU that is here, or for a card that is not.

    Args:
        config: The configuration.
        gpu_gib: The card's memory in GiB; None for what the GPU here has free, or for no limit where there is none.
        tflops: What a card that is not here computes in 16 bits, in TFLOP/s.

    Returns:
        Counts of the data, and the plan.

    Raises:
        GlmtuneError: Configuration, data or base are wrong.
    """
    validate_names(config)
    device = torch.device(default_device())
    here = device if device.type == "cuda" and not config.train.get("use_cpu") else None
    dtype = resolve_dtype(config.model.dtype)
    if here is None and config.model.dtype == "auto":
        dtype = torch.bfloat16
    free = (gpu_gib - CONTEXT_GIB) * GIB if gpu_gib is not None else free_device_bytes(here) if here else None
    tokenizer = load_tokenizer(config.model.path or embedded_base())
    data = load_run_data(config, tokenizer, int(config.train.get("seed", 42)))
    speed = None if tflops is None else DeviceSpeed.assumed(tflops)
    why_not_fused = "train.torch_compile compiles them" if config.train.get("torch_compile") else None
    plan = plan_run(
        config, data.train, device=here, dtype=dtype, free_bytes=free, speed=speed, why_not_fused=why_not_fused
    )
    if config.train.get("fsdp") or config.train.get("deepspeed"):
        note = "这是一个设备装下整个模型的情形 for one device that holds the whole model; sharded runs are not planned"
        plan = replace(plan, notes=(*plan.notes, note))
    return data.stats, plan


def plain_settings(config: RunConfig, train: SampleDataset) -> tuple[MemorySettings, int]:
    """What a configuration says, the plainest where it leaves something open: for runs that are not planned.

    Returns:
        The settings, and the most tokens of a pass.

    Raises:
        ConfigError: Settings contradict each other.
    """
    whole = Freedom(uses_graphs=(False,))
    decided = _decided(whole, config, read_base_config(config.model.path).num_layers)
    limit = config.train.get("max_tokens_per_device")
    if limit is None:
        limit = config.train["per_device_train_batch_size"] * max(train.lengths)
    settings = MemorySettings(
        quantize=decided.quantize[0],
        offloads_embedding=decided.offloads_embedding[0],
        num_checkpointed=decided.num_checkpointed[0],
        offloads_checkpoints=decided.offloads_checkpoints[0],
    )
    return settings, limit


def with_quantize(config: RunConfig, quantize: Quantize) -> RunConfig:
    """The configuration with the format of the base filled in."""
    return _filled(config, {("model", "quantize"): quantize})


def with_settings(config: RunConfig, settings: MemorySettings, max_tokens: int) -> RunConfig:
    """The configuration with all that a plan decides on filled in."""
    return _filled(
        config,
        {
            ("model", "quantize"): settings.quantize,
            ("model", "offload_embedding"): settings.offloads_embedding,
            ("train", "max_tokens_per_device"): max_tokens,
            ("train", "gradient_checkpointing"): settings.num_checkpointed,
            ("train", "offload_checkpoints"): settings.offloads_checkpoints,
            ("train", "cuda_graphs"): settings.uses_graphs,
        },
    )


def as_before(config: RunConfig, before: Mapping[str, Any], keys: Iterable[tuple[str, str]] = _KEYS) -> RunConfig:
    """The configuration with what it leaves open as an earlier run had it.

    Args:
        config: The configuration.
        before: That of the earlier run's manifest.
        keys: What is taken over.
    """
    filled = {}
    for section, key in keys:
        present = config.model_dump()[section].get(key)
        value = before.get(section, {}).get(key, "none" if key == "quantize" else None)
        if present in (None, "auto") and value not in (None, "auto"):
            filled[section, key] = value
    return _filled(config, filled)


def _filled(config: RunConfig, values: Mapping[tuple[str, str], Any]) -> RunConfig:
    """A copy with some values set, by section and key."""
    model = {key: value for (section, key), value in values.items() if section == "model"}
    train = {key: value for (section, key), value in values.items() if section == "train"}
    update = {"model": config.model.model_copy(update=model), "train": {**config.train, **train}}
    return config.model_copy(update=update)


def _whole_freedom(
    config: RunConfig,
    base_config: ChatGLMConfig,
    adapter: AdapterShape,
    lengths: list[int],
    dtype: torch.dtype,
    device: torch.device | None,
    can_graph: bool,
) -> Freedom:
    """All that can be chosen for a run, whatever the user has decided."""
    is_fused = adapter.why_not_fused is None
    formats: list[Quantize] = ["none"]
    if not unquantizable(config.lora):
        formats += [quantize for quantize in _QUANTIZED if _is_possible(quantize, base_config, dtype, device)]
    longest = lengths[-1]
    limits = [config.train["per_device_train_batch_size"] * longest]
    while limits[-1] > longest:
        limits.append(max(limits[-1] // 2, longest))
    return Freedom(
        quantize=formats,
        offloads_embedding=(False, True) if is_fused and not base_config.tie_word_embeddings else (False,),
        num_checkpointed=range(base_config.num_layers + 1),
        offloads_checkpoints=(False, True) if is_fused else (False,),
        uses_graphs=(True, False) if can_graph else (False,),
        max_tokens=limits,
    )


def _is_possible(
    quantize: Quantize, base_config: ChatGLMConfig, dtype: torch.dtype, device: torch.device | None
) -> bool:
    try:
        check_format(quantize, base_config, dtype, device or torch.device("meta"))
    except GlmtuneError:
        return False
    return True


def _decided(whole: Freedom, config: RunConfig, num_layers: int) -> Freedom:
    """What the user's settings leave of the freedom.

    Raises:
        ConfigError: They ask for what cannot be.
    """
    train = config.train
    decided: dict[str, Any] = {}
    if config.model.quantize != "auto":
        check_adapter(config.model.quantize, config.lora)
        decided["quantize"] = (config.model.quantize,)
    checkpointing: Any = train.get("gradient_checkpointing")
    if checkpointing != "auto":
        number = num_layers if checkpointing is True else min(int(checkpointing or 0), num_layers)
        decided["num_checkpointed"] = (number,)
    if train.get("max_tokens_per_device") is not None:
        decided["max_tokens"] = (train["max_tokens_per_device"],)
    switches: Mapping[str, tuple[str, bool | None]] = {
        "model.offload_embedding": ("offloads_embedding", config.model.offload_embedding),
        "train.offload_checkpoints": ("offloads_checkpoints", train.get("offload_checkpoints")),
        "train.cuda_graphs": ("uses_graphs", train.get("cuda_graphs")),
    }
    for key, (name, value) in switches.items():
        if value is None:
            continue
        if value not in getattr(whole, name):
            raise ConfigError(f"{key}=true is not possible here: it takes {_NEEDS[key]}")
        decided[name] = (value,)
    if decided.get("offloads_checkpoints") == (True,):
        if decided.get("num_checkpointed") == (0,):
            raise ConfigError("train.offload_checkpoints=true: there are no checkpoints without gradient_checkpointing")
        if decided.get("uses_graphs") == (True,):
            raise ConfigError("train.cuda_graphs=true cannot be used with train.offload_checkpoints=true")
        decided.setdefault("num_checkpointed", range(1, num_layers + 1))
        decided["uses_graphs"] = (False,)
    elif decided.get("num_checkpointed") == (0,):
        decided["offloads_checkpoints"] = (False,)
    return replace(whole, **decided)


def _lay_out(
    config: RunConfig, train: SampleDataset, num_samples: int, max_tokens: int, uses_graphs: bool
) -> StepShape:
    """Lays steps of random samples out as training will, and extrapolates to the largest pass that there can be."""
    shares = config.train.get("shared_prefix")
    if shares is None:
        shares = config.lora.get("lora_dropout", 0.0) == 0
    collator = PackingCollator(max_tokens=max_tokens, shares_prefix=bool(shares), pads_to_buckets=False)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
    num_steps = max(min(_LAID_OUT_SAMPLES, len(order)) // num_samples, 1)
    steps = [
        collator([train[index] for index in order[start * num_samples : (start + 1) * num_samples]])["micro_batches"]
        for start in range(num_steps)
    ]
    passes = [packed for step in steps for packed in step]
    lengths = sorted(train.lengths)
    most_tokens = max(min(max_tokens, sum(lengths[-num_samples:])), lengths[-1])
    seen_tokens = max(packed.num_tokens for packed in passes)
    # Samples that share a beginning have fewer rows than tokens.
    seen_rows = max(len(packed.input_ids) for packed in passes)
    rows = max(-(-most_tokens * seen_rows // seen_tokens), seen_rows)
    label_rows = _most_labels(train, num_samples, most_tokens)
    segments = max(len(packed.segments.cu_query) for packed in passes)
    mean_rows = sum(len(packed.input_ids) for packed in passes) / len(passes)
    mean_labels = sum(len(packed.label_rows) for packed in passes) / len(passes)
    if uses_graphs and rows < MOST_GRAPHED_TOKENS:
        rows, label_rows, segments = padded_sizes(rows, label_rows, segments)
        mean_rows, mean_labels, _ = padded_sizes(round(mean_rows), round(mean_labels), segments)
    return StepShape(max_tokens, Pass(rows, label_rows, segments), len(passes) / num_steps, mean_rows, mean_labels)


def _most_labels(train: SampleDataset, num_samples: int, max_tokens: int) -> int:
    """The most label rows that so many samples can have in so many tokens: those with the most labels a token first."""
    lengths, labels = numpy.asarray(train.lengths), train.num_labels
    by_share = numpy.argsort(-labels / lengths, kind="stable")[:num_samples]
    tokens, total = numpy.cumsum(lengths[by_share]), numpy.cumsum(labels[by_share])
    within = int(numpy.searchsorted(tokens, max_tokens, side="right"))
    # One sample more, as far as there is room for it.
    room = max_tokens - (int(tokens[within - 1]) if within else 0)
    rest = min(room, int(labels[by_share[within]])) if within < len(by_share) else 0
    in_tokens = (int(total[within - 1]) if within else 0) + rest
    return max(min(in_tokens, int(numpy.sort(labels)[-num_samples:].sum())), 1)


def _state_bytes(optim: str) -> int:
    """What an optimiser keeps of each parameter, by its transformers name."""
    name = optim.rpartition(".")[2].lower()
    if "sgd" in name or "adafactor" in name:
        return 0
    if "8bit" in name:
        return 2
    if "ademamix" in name:
        return 12
    return 4 if "lion" in name or "rmsprop" in name or "adagrad" in name else 8


def _spell(plan: Plan) -> list[str]:
    settings = plan.settings
    return [
        f"model.quantize={settings.quantize}",
        f"model.offload_embedding={str(settings.offloads_embedding).lower()}",
        f"train.max_tokens_per_device={plan.step.max_tokens}",
        f"train.gradient_checkpointing={settings.num_checkpointed or 'false'}",
        f"train.offload_checkpoints={str(settings.offloads_checkpoints).lower()}",
        f"train.cuda_graphs={str(settings.uses_graphs).lower()}",
    ]


def _name(device: torch.device | None) -> str:
    if device is None or device.type != "cuda":
        return f"a card of {ASSUMED_TFLOPS:g} TFLOP/s (--tflops)"
    return torch.cuda.get_device_name(device)


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1:
        return f"{max(seconds, 1):.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
