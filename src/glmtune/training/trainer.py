"""Training a LoRA adapter, from configuration to run folder."""

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from peft import PeftModel
from rich.console import Console
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, TrainerCallback, TrainingArguments

from glmtune.config import RunConfig, embedded_data, validate_names
from glmtune.data.dataset import tokenize_conversations
from glmtune.data.formats import read_conversations
from glmtune.data.packing import MOST_GRAPHED_TOKENS, PackedSample, PackingCollator, shared_prefixes
from glmtune.data.samples import SampleDataset
from glmtune.data.statistics import DataStats
from glmtune.errors import ConfigError, TrainingError
from glmtune.models.chatglm import ChatGLMTokenizer
from glmtune.ops import takes_flash_kernel
from glmtune.prompts import Template
from glmtune.training.arguments import make_arguments
from glmtune.training.callbacks import Interruption, LogFile, ProgressReport
from glmtune.training.lora_trainer import LoraTrainer
from glmtune.training.report import PICTURE_NAME, RESULTS_NAME, draw_losses, write_results
from glmtune.training.resume import check_resumed, find_checkpoint
from glmtune.training.selftest import Sample, SelfTestReport, run_selftest
from glmtune.tuning.adapter_files import read_initial_weights
from glmtune.tuning.checkpointing import checkpoint_layers, free_bytes, layers_to_checkpoint
from glmtune.tuning.fused import fuse
from glmtune.tuning.load import load_base, resolve_dtype
from glmtune.tuning.lora import TrainableSummary, attach_lora, changes_base, initial_adapter_weights, trainable_summary
from glmtune.tuning.quantize import check_quantize, quantize_layers
from glmtune.tuning.run_folder import RunManifest, checkpoints, current_versions

# Common beginnings are looked for among so many samples, and worth a line from this share of the tokens on.
_MOST_LOOKED_AT, _WORTH_A_LINE = 64, 0.1


class TrainingInterrupted(TrainingError):  # noqa: N818 - nobody's fault
    """Training was interrupted, a checkpoint is saved; the message says how to go on."""


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        output_dir: The run folder.
        num_steps: Optimiser steps taken in all.
        first_loss: The first loss that was logged; None if there was none.
        last_loss: The last.
        metrics: What `all_results.json` holds.
        trainable: How many parameters were trained.
        best_checkpoint: The checkpoint that evaluated best, where that was looked for.
        selftest: What the self-test saw; None on processes other than the first.
    """

    output_dir: Path
    num_steps: int
    first_loss: float | None
    last_loss: float | None
    metrics: Mapping[str, Any]
    trainable: TrainableSummary
    best_checkpoint: Path | None
    selftest: SelfTestReport | None


@dataclass(frozen=True)
class _Data:
    train: SampleDataset
    eval: SampleDataset | None
    stats: DataStats
    sample: Sample


def train(config: RunConfig, console: Console | None = None) -> TrainResult:
    """Trains an adapter and leaves it, with everything about the run, in `train.output_dir`.

    Args:
        config: What to do.
        console: Where progress is shown; standard error if left out.

    Returns:
        How it ended.

    Raises:
        GlmtuneError: Configuration, data, base or adapter are wrong, or training had to stop.
        TrainingInterrupted: Somebody pressed Ctrl-C; the run can go on where it stopped.
    """
    validate_names(config)
    check_quantize(config.model.quantize, config.lora)
    console = console or Console(stderr=True)
    checkpoint = find_checkpoint(config.train["output_dir"], config.train.get("resume_from_checkpoint"))
    device_map = "cpu" if config.train.get("use_cpu") else None
    dtype = resolve_dtype(config.model.dtype, device_map)
    if dtype == torch.float16 and (device_map == "cpu" or not torch.cuda.is_available()):
        raise ConfigError("model.dtype=float16 needs a GPU; on the CPU use float32 or bfloat16")
    arguments = make_arguments(
        config.train,
        has_eval=config.data.eval_path is not None or config.data.eval_fraction > 0,
        dtype=dtype,
        trains_base_modules=config.lora.get("bias", "none") != "none" or bool(config.lora.get("modules_to_save")),
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs are torchrun's business, not DataParallel's
    if not PartialState().is_main_process:
        console = Console(quiet=True)

    with console.status("加载模型 loading the base model ..."):
        model, tokenizer = load_base(config.model.path, config.model.dtype, device_map)
        quantize_layers(model, config.model.quantize)
    if config.model.quantize != "none" and model.device.type == "cpu":
        console.print(
            f"CPU 上只是模拟 {config.model.quantize}，更慢 it is only emulated here, and slower", highlight=False
        )
    with arguments.main_process_first(desc="reading the data"):
        data = _load_data(
            tokenizer,
            config.prompt.template,
            config.prompt.system,
            arguments.seed,
            **config.data.model_dump(exclude={"loss_weight"}),
        )
    for line in data.stats.lines():
        console.print(line, highlight=False, soft_wrap=True)
    manifest = _make_manifest(config.model_dump(mode="json"), model.name_or_path, data.stats.fingerprint)
    initial = None
    if checkpoint is not None:
        check_resumed(checkpoint, Path(arguments.output_dir), manifest)
        console.print(f"going on from {checkpoint}", highlight=False, soft_wrap=True)
        if changes_base(config.lora.get("init_lora_weights")):
            initial = read_initial_weights(checkpoint)
    torch.manual_seed(arguments.seed)
    peft_model = attach_lora(model, config.lora, initial)
    summary = trainable_summary(peft_model)
    console.print(str(summary), highlight=False)
    computation = _plan_computation(peft_model, config, arguments, data, summary, dtype)
    for line in computation.lines:
        console.print(line, highlight=False, soft_wrap=True)
    interruption = Interruption(console)
    progress = ProgressReport(console)
    trainer = LoraTrainer(
        model=peft_model,
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.eval,
        data_collator=computation.collator,
        callbacks=_callbacks(arguments.output_dir, config.train.get("early_stopping_patience"), progress, interruption),
        initial_weights=initial_adapter_weights(peft_model),
        manifest=manifest,
        base_dtype=dtype,
        uses_graphs=computation.collator.pads_to_buckets,
    )
    for theirs in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(theirs)
    PartialState().wait_for_everyone()  # all have looked whether the folder is free
    if arguments.should_save:
        manifest.write(arguments.output_dir)
    try:
        with interruption.listening():
            output = trainer.train(
                resume_from_checkpoint=str(checkpoint) if checkpoint else None,
                ignore_keys_for_eval=["past_key_values"],
            )
    except torch.OutOfMemoryError as error:
        raise TrainingError(_how_to_save_memory(trainer, computation, error)) from error
    finally:
        progress.close()
    if interruption.happened:
        command = config.command("train.resume_from_checkpoint=true")
        raise TrainingInterrupted(_how_to_go_on(trainer, command))
    return _finish(trainer, tokenizer, data, summary, output.metrics)


def _load_data(
    tokenizer: ChatGLMTokenizer,
    template: Template,
    system: str | None,
    seed: int,
    *,
    path: str | list[str] | None,
    eval_path: str | list[str] | None,
    eval_fraction: float,
    max_length: int | None,
    fields: Mapping[str, str],
    join: str,
    num_workers: int | None,
) -> _Data:
    """Reads and tokenises the data, and sets some apart to evaluate on where that is asked for."""
    settings: dict[str, Any] = {
        "template": template,
        "system": system,
        "max_length": max_length,
        "num_workers": num_workers,
    }
    conversations = read_conversations(path or embedded_data(), fields, join)
    dataset, stats = tokenize_conversations(conversations, tokenizer, **settings)
    chosen = list(range(len(dataset)))
    evaluated = None
    if eval_path is not None:
        held_out = read_conversations(eval_path, fields, join)
        evaluated, _ = tokenize_conversations(held_out, tokenizer, **settings)
    elif eval_fraction > 0:
        random.Random(seed).shuffle(chosen)
        num_held_out = max(1, round(eval_fraction * len(dataset)))
        if num_held_out == len(dataset):
            raise ConfigError(f"data.eval_fraction leaves nothing to train on: there are {len(dataset)} samples")
        evaluated = dataset.select(sorted(chosen[:num_held_out]))
        chosen = sorted(chosen[num_held_out:])
    first = chosen[0]
    sample = Sample(conversations.items[first], dataset[first]["input_ids"], max_length)
    trained = dataset if evaluated is None else dataset.select(chosen)
    return _Data(SampleDataset(trained), None if evaluated is None else SampleDataset(evaluated), stats, sample)


@dataclass(frozen=True)
class _Computation:
    """How steps are computed, none of which changes what they compute.

    Attributes:
        collator: Lays samples out.
        can_checkpoint_more: Whether more layers could be checkpointed.
        longest: Tokens of the longest sample, which no layout goes below.
        lines: What to tell the user.
    """

    collator: PackingCollator
    can_checkpoint_more: bool
    longest: int
    lines: Sequence[str]


def _plan_computation(
    model: PeftModel,
    config: RunConfig,
    arguments: TrainingArguments,
    data: _Data,
    summary: TrainableSummary,
    dtype: torch.dtype,
) -> _Computation:
    """Fuses the layers if that can be done, and decides how samples are laid out and which layers are checkpointed."""
    if model.config.attention_dropout > 0:
        raise ConfigError("the base has attention_dropout, which packed samples cannot be trained with; set it to 0")
    lengths, num_samples = sorted(data.train.lengths), arguments.per_device_train_batch_size
    max_tokens = config.train.get("max_tokens_per_device")
    if max_tokens is None:
        max_tokens = config.train["per_device_train_batch_size"] * lengths[-1]
    num_tokens = max(min(max_tokens, sum(lengths[-num_samples:])), lengths[-1])
    is_sharded = _is_sharded(arguments)
    why_not = "weights are spread over devices, or compiled" if is_sharded else fuse(model)
    lines = []
    if why_not is not None:
        lines.append(f"层未融合，较慢 layers run one operation at a time, which is slower: {why_not}")
    shares_prefix, line = _choose_prefix(config, data, num_samples)
    checkpointing = config.train.get("gradient_checkpointing")
    num_checkpointed, has_room = _choose_checkpointing(
        model, dtype, num_tokens, summary.num_trainable, is_fused=why_not is None, is_auto=checkpointing == "auto"
    )
    if checkpointing == "auto" and model.device.type == "cuda":
        lines.append(f"梯度检查点 gradient checkpointing: {num_checkpointed} of {model.config.num_layers} layers")
    is_alone = PartialState().distributed_type == DistributedType.NO and why_not is None
    never_waits = takes_flash_kernel(model.device, dtype, model.config.kv_channels)
    collator = PackingCollator(
        max_tokens=None if arguments.deepspeed else max_tokens,  # DeepSpeed takes every backward pass for a step
        shares_prefix=shares_prefix,
        loss_weight=config.data.loss_weight,
        pads_to_buckets=is_alone and never_waits and (has_room or checkpointing is True),
    )
    can_checkpoint_more = checkpointing is not True and num_checkpointed < model.config.num_layers
    return _Computation(collator, can_checkpoint_more, lengths[-1], [*lines, *line])


def _choose_checkpointing(
    model: PeftModel, dtype: torch.dtype, num_tokens: int, num_trained: int, *, is_fused: bool, is_auto: bool
) -> tuple[int, bool]:
    """Checkpoints layers where that is left to us; returns how many, and whether there is room for CUDA graphs."""
    if model.device.type != "cuda":
        return 0, False
    needed = partial(
        layers_to_checkpoint,
        model.config,
        dtype,
        is_fused=is_fused,
        num_trained=num_trained,
        free_bytes=free_bytes(model.device),
    )
    num_checkpointed = needed(num_tokens=num_tokens) if is_auto else 0
    checkpoint_layers(model, num_checkpointed)
    # Graphs keep their memory beside that of passes that are not recorded.
    return num_checkpointed, needed(num_tokens=num_tokens + min(num_tokens, MOST_GRAPHED_TOKENS)) == 0


def _is_sharded(arguments: TrainingArguments) -> bool:
    """Whether the model's weights are not simply there: sharded, by our settings or by `accelerate launch`."""
    by_launcher = any(os.environ.get(f"ACCELERATE_USE_{name}") == "true" for name in ("FSDP", "DEEPSPEED"))
    return bool(arguments.fsdp or arguments.deepspeed or arguments.torch_compile or by_launcher)


def _choose_prefix(config: RunConfig, data: _Data, num_samples: int) -> tuple[bool, list[str]]:
    """Whether common beginnings are computed once; and a line where that would pay but for the dropout."""
    dropout = config.lora.get("lora_dropout", 0.0)
    asked: bool | None = config.train.get("shared_prefix")
    if asked is not None or dropout == 0:
        return asked is not False, []
    rows = [data.train[index] for index in range(min(num_samples, len(data.train), _MOST_LOOKED_AT))]
    samples = [PackedSample.of(row["input_ids"], row["labels"]) for row in rows]
    saved = sum(group.prefix_length * (len(group.members) - 1) for group in shared_prefixes(samples))
    share = saved / sum(len(sample.input_ids) for sample in samples)
    if share < _WORTH_A_LINE:
        return False, []
    return False, [
        f"约 {share:.0%} 的词元是样本共同的开头 of the tokens are common beginnings. They are computed for each sample "
        f"anew, since lora_dropout={dropout:g} drops others in each; train.shared_prefix=true computes them once, with "
        "one dropout for all"
    ]


def _make_manifest(config: Mapping[str, Any], base_path: str, data_fingerprint: str) -> RunManifest:
    """Makes the manifest of a run from its resolved configuration, a dictionary for each section."""
    local = Path(base_path)
    is_embedded = config["model"]["path"] is None
    return RunManifest(
        base_path=None if is_embedded else str(local.resolve()) if local.is_dir() else base_path,
        template=config["prompt"]["template"],
        system=config["prompt"]["system"],
        data_fingerprint=data_fingerprint,
        config=config,
        versions=current_versions(),
    )


def _callbacks(
    run: str | Path, patience: int | None, progress: ProgressReport, interruption: Interruption
) -> list[TrainerCallback]:
    callbacks: list[TrainerCallback] = [LogFile(run), progress]
    if patience is not None:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=patience))
    return [*callbacks, interruption]  # last, so that nobody asks for more once it has stopped the run


def _how_to_go_on(trainer: LoraTrainer, command: str) -> str:
    state = trainer.state
    saved = checkpoints(trainer.args.output_dir)[-1]
    return (
        f"已中断 interrupted at step {state.global_step} of {state.max_steps}; saved {saved}.\n"
        f"继续 To go on:\n  {command}"
    )


def _how_to_save_memory(trainer: LoraTrainer, computation: _Computation, error: torch.OutOfMemoryError) -> str:
    advice = ["lower data.max_length"]
    if computation.can_checkpoint_more:
        advice.insert(0, "train.gradient_checkpointing=true")
    smaller = (computation.collator.max_tokens or 0) // 2
    if smaller >= computation.longest:
        advice.insert(0, f"train.max_tokens_per_device={smaller}")
    return (
        f"training stopped: the device ran out of memory after step {trainer.state.global_step}. "
        f"Try {'; '.join(advice)}.\n{trainer.last_good()}\n{error}"
    )


def _finish(
    trainer: LoraTrainer, tokenizer: ChatGLMTokenizer, data: _Data, summary: TrainableSummary, metrics: dict[str, Any]
) -> TrainResult:
    """Saves the adapter and the reports, and runs the self-test."""
    arguments, state = trainer.args, trainer.state
    run = Path(arguments.output_dir)
    trainer.save_model()
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    evaluations = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
    results = {
        **metrics,
        "epoch": state.epoch,
        "num_steps": state.global_step,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        **({"eval_loss": evaluations[-1], "best_eval_loss": min(evaluations)} if evaluations else {}),
        "num_trainable_parameters": summary.num_trainable,
        "num_parameters": summary.num_total,
        "data": data.stats.to_dict(),
    }
    selftest = None
    if arguments.should_save:
        trainer.save_state()
        draw_losses(state.log_history, run / PICTURE_NAME)
        write_results(results, run / RESULTS_NAME)
        # Where the weights are spread over devices, one process alone cannot compute anything.
        if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
            with trainer.accelerator.autocast():
                selftest = run_selftest(trainer.adapted_model(), tokenizer, run, data.sample, trainer.initial_weights)
    best = state.best_model_checkpoint
    return TrainResult(
        output_dir=run,
        num_steps=state.global_step,
        first_loss=results["first_loss"],
        last_loss=results["last_loss"],
        metrics=results,
        trainable=summary,
        best_checkpoint=Path(best) if best else None,
        selftest=selftest,
    )
