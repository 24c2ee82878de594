"""Plans a run from its configuration and data, before the base is loaded: how much memory, how long, which settings."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch
from rich.console import Console
from rich.table import Table

from glmtune.adapters.lora import attach_lora
from glmtune.config import RunConfig, embedded_base, validate_names
from glmtune.data.run_data import load_run_data
from glmtune.data.samples import SampleDataset
from glmtune.data.statistics import DataStats
from glmtune.errors import GlmtuneError, TrainingError
from glmtune.loading.bases import load_tokenizer, read_base_config
from glmtune.loading.devices import GIB, default_device, free_device_bytes, resolve_dtype
from glmtune.loading.formats import HOW_TO_INSTALL, Quantize, check_format, has_bitsandbytes, unquantizable
from glmtune.loading.shape import BaseShape
from glmtune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from glmtune.ops import takes_flash_kernel
from glmtune.planning.optimizers import is_elementwise, state_bytes
from glmtune.planning.planner import Freedom, Plan, Planner
from glmtune.planning.settings import decide, spell
from glmtune.planning.shape import AdapterShape
from glmtune.planning.speed import DeviceSpeed
from glmtune.planning.start import from_adapter, with_prompt
from glmtune.planning.steps import lay_out, num_optimizer_steps

# What a process takes of a card before it has put anything there: CUDA's own memory.
CONTEXT_GIB = 0.6
# Of a card that is not here, in 16 bits.
ASSUMED_TFLOPS = 50.0
# Where a card that is not here would be; current cards have the flash kernel.
_CARD = torch.device("cuda")
_QUANTIZED: tuple[Quantize, ...] = ("int8", "nf4")


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
        return spell(self.chosen)

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
            settings = f"these settings would fit: {' '.join(spell(fitting))}"
            if fitting.settings.quantize in _QUANTIZED and not has_bitsandbytes():
                return f"装上 bitsandbytes 就行 With bitsandbytes ({HOW_TO_INSTALL}) {settings}"
            return settings[0].upper() + settings[1:]
        smallest = self.planner.smallest(self.whole_freedom)
        card = math.ceil(smallest.memory.needed / GIB + CONTEXT_GIB)
        return (
            f"The smallest card that could do it has {card} GiB ({' '.join(spell(smallest))}). "
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
    model.name_or_path = base_config.name_or_path = str(config.model.path)  # PEFT warns of a base without a name
    base = BaseShape.of(model, dtype)
    # pissa and olora would decompose weights that are not there.
    adapter = AdapterShape.of(attach_lora(model, {**config.lora, "init_lora_weights": True}))
    if why_not_fused is not None:
        adapter = replace(adapter, why_not_fused=why_not_fused)
    num_samples = config.train["per_device_train_batch_size"] * config.train["gradient_accumulation_steps"]
    lengths = sorted(train.lengths)
    optim = str(config.train.get("optim", "adamw_torch"))
    can_graph = (
        adapter.why_not_fused is None
        and is_elementwise(optim)
        and takes_flash_kernel(device or _CARD, dtype, base_config.kv_channels)
    )
    whole = _whole_freedom(config, base_config, adapter, lengths, dtype, device, can_graph)
    freedom = decide(whole, config, base_config.num_layers)
    if keeps_format:
        whole = replace(whole, quantize=freedom.quantize)
    planner = Planner(
        base,
        adapter,
        speed or (DeviceSpeed.assumed(ASSUMED_TFLOPS) if device is None else DeviceSpeed.measure(device, dtype)),
        cache(lambda max_tokens, graphs: lay_out(config, train, num_samples, max_tokens, graphs)),
        # DistributedDataParallel, which trains what does not lie flat, has the gradients once more.
        state_bytes(optim) + (4 if num_processes > 1 and not is_elementwise(optim) else 0),
    )
    if config.model.quantize == "auto" and not has_bitsandbytes():
        freedom = replace(freedom, quantize=("none",))
    chosen = planner.choose(freedom, math.inf if free_bytes is None else free_bytes)
    num_steps = num_optimizer_steps(config, len(train), num_processes)
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
    config = from_adapter(config)
    device = torch.device(default_device())
    here = device if device.type == "cuda" and not config.train.get("use_cpu") else None
    dtype = resolve_dtype(config.model.dtype)
    if here is None and config.model.dtype == "auto":
        dtype = torch.bfloat16
    free = (gpu_gib - CONTEXT_GIB) * GIB if gpu_gib is not None else free_device_bytes(here) if here else None
    tokenizer = load_tokenizer(config.model.path or embedded_base())
    config = with_prompt(config, tokenizer)
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


def _name(device: torch.device | None) -> str:
    if device is None or device.type != "cuda":
        return f"a card of {ASSUMED_TFLOPS:g} TFLOP/s (--tflops)"
    return torch.cuda.get_device_name(device)


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1:
        return f"{max(seconds, 1):.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
