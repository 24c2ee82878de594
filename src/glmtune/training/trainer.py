"""Training a LoRA adapter, from configuration to run folder."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from peft import PeftModel
from rich.console import Console
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainingArguments

from glmtune.adapters.adapter_files import load_adapter_weights, read_initial_weights
from glmtune.adapters.lora import (
    TrainableSummary,
    attach_lora,
    changes_base,
    initial_adapter_weights,
    trainable_summary,
)
from glmtune.adapters.run_folder import RunManifest, checkpoints, current_versions
from glmtune.compat import use_one_gpu
from glmtune.config import RunConfig, embedded_base, say_base, validate_names
from glmtune.data.packing import PackedSample, PackingCollator, shared_prefixes
from glmtune.data.run_data import RunData, load_run_data
from glmtune.errors import ConfigError, GlmtuneError, ModelError, TrainingError
from glmtune.loading.base_weights import fingerprint_base
from glmtune.loading.bases import load_base, load_tokenizer
from glmtune.loading.devices import free_device_bytes, resolve_dtype
from glmtune.loading.formats import check_quantize
from glmtune.models.chatglm import ChatGLMTokenizer
from glmtune.planning.memory import MemorySettings
from glmtune.planning.plan import ASSUMED_TFLOPS, RunPlan, plan_run
from glmtune.planning.planner import Change
from glmtune.planning.settings import as_before, plain_settings, with_quantize, with_settings
from glmtune.planning.speed import DeviceSpeed
from glmtune.planning.start import from_adapter, with_prompt
from glmtune.planning.steps import num_optimizer_steps, shares_prefix
from glmtune.training.arguments import make_arguments, transformers_faults
from glmtune.training.callbacks import LogFile, ProgressReport
from glmtune.training.checkpointing import checkpoint_layers
from glmtune.training.checkpoints import sweep
from glmtune.training.display import progress_console
from glmtune.training.fused import fuse
from glmtune.training.interruption import Interruption
from glmtune.training.lora_trainer import LoraTrainer, last_good
from glmtune.training.processes import ending_with_the_others, join_processes
from glmtune.training.report import PICTURE_NAME, RESULTS_NAME, draw_losses, write_results
from glmtune.training.resume import check_resumed, find_checkpoint, has_all_steps
from glmtune.training.resumed_state import EarlyStoppingCallback, ResumedState
from glmtune.training.selftest import SelfTestReport, run_selftest
from glmtune.training.storage import ending_where_it_cannot_write, run_folder_held

# Common beginnings are looked for among so many samples, and worth a line from this share of the tokens on.
_MOST_LOOKED_AT, _WORTH_A_LINE = 64, 0.1

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)


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
    config = from_adapter(config)
    if config.model.quantize != "auto":
        check_quantize(config.model.quantize, config.lora)
    console = console or progress_console()
    join_processes(config.train)
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
    use_one_gpu(arguments)  # several GPUs are torchrun's business, not DataParallel's
    is_main = PartialState().is_main_process
    if not is_main:
        console = Console(quiet=True)
    with ending_with_the_others(), run_folder_held(arguments.output_dir) if is_main else nullcontext():
        return _read_and_train(config, arguments, dtype, console)


def _read_and_train(
    config: RunConfig, arguments: TrainingArguments, dtype: torch.dtype, console: Console
) -> TrainResult:
    """Does what is to be done in the run folder, once that is this run's alone."""
    if arguments.should_save:
        sweep(arguments.output_dir)
    checkpoint = find_checkpoint(config.train["output_dir"], config.train.get("resume_from_checkpoint"))
    console.print(say_base(config.model.path), markup=False, highlight=False, soft_wrap=True)
    tokenizer = load_tokenizer(config.model.path or embedded_base())
    config = with_prompt(config, tokenizer)
    with arguments.main_process_first(desc="reading the data"):
        data = load_run_data(config, tokenizer, arguments.seed)
    for line in data.stats.lines():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    before = None
    if checkpoint is not None:
        before = RunManifest.read(checkpoint)
        config = as_before(config, before.config if before else {}, keys=[("model", "quantize")])
        num_steps = num_optimizer_steps(config, len(data.train), arguments.world_size)
        manifest = _make_manifest(config, data.stats.fingerprint)
        check_resumed(checkpoint, Path(arguments.output_dir), manifest, num_steps, arguments.world_size)
    run = _plan(_Run(config, arguments, dtype, tokenizer, data, checkpoint, console), before)
    how_to_go_on = run.config.command("train.resume_from_checkpoint=true")
    try:
        with ending_where_it_cannot_write(arguments.output_dir, how_to_go_on):
            return _train(run)
    except (RuntimeError, ModelError) as error:
        if not _is_out_of_memory(error):
            raise
        raise TrainingError(_how_to_save_memory(run, error)) from error


@dataclass
class _Run:
    """A run on its way.

    Attributes:
        config: The configuration; once the run is planned, with what was decided filled in.
        arguments: The Trainer's arguments.
        dtype: What the base computes in.
        tokenizer: The base's tokenizer.
        data: The data.
        checkpoint: The checkpoint to go on from, if there is one.
        console: Where progress is shown.
        settings: What concerns memory.
        max_tokens: Most tokens of a pass.
        plan: The plan, if the run is planned.
        trainer: The trainer, once there is one.
    """

    config: RunConfig
    arguments: TrainingArguments
    dtype: torch.dtype
    tokenizer: ChatGLMTokenizer
    data: RunData
    checkpoint: Path | None
    console: Console
    settings: MemorySettings = field(default_factory=MemorySettings)
    max_tokens: int = 0
    plan: RunPlan | None = None
    trainer: LoraTrainer | None = None


def _plan(run: _Run, before: RunManifest | None) -> _Run:
    """Decides what the configuration leaves open, by the memory that there is if that is a GPU's.

    A resumed run goes by its earlier settings where they are possible and fit.
    """
    config, arguments = run.config, run.arguments
    configs = [config] if before is None else [as_before(config, before.config), config]
    if arguments.device.type != "cuda" or _is_sharded(arguments):
        if _is_sharded(arguments) and config.train["gradient_checkpointing"] == "auto":
            configs = [config.model_copy(update={"train": {**config.train, "gradient_checkpointing": True}})]
            run.console.print(
                "不做显存计划 weights are spread over devices: not planned, and all layers are checkpointed"
            )
        config, (settings, max_tokens) = _first_possible(
            configs, lambda each: (each, plain_settings(each, run.data.train))
        )
        return replace(run, config=with_quantize(config, settings.quantize), settings=settings, max_tokens=max_tokens)
    free, speed = _look_at(arguments.device, run.dtype)
    if arguments.world_size > 1:  # all processes must come to the same plan
        everywhere = gather_object([(free, speed)])
        free, speed = min(each for each, _ in everywhere), everywhere[0][1]
    plan = _first_possible(
        configs, lambda each: _plan_on_device(replace(run, config=each), free, speed), lambda plan: plan.fits
    )
    plan.check()
    run.console.print(plan.summary(), highlight=False, soft_wrap=True)
    settings, max_tokens = plan.chosen.settings, plan.chosen.step.max_tokens
    decided = with_settings(config, settings, max_tokens)
    return replace(run, config=decided, settings=settings, max_tokens=max_tokens, plan=plan)


def _first_possible(
    configs: Sequence[RunConfig], plan: Callable[[RunConfig], _T], is_good: Callable[[_T], bool] = lambda _: True
) -> _T:
    """What comes of the first configuration that contradicts nothing and is good; else of the last one."""
    for config in configs[:-1]:
        with suppress(ConfigError):
            result = plan(config)
            if is_good(result):
                return result
    return plan(configs[-1])


def _look_at(device: torch.device, dtype: torch.dtype) -> tuple[int, DeviceSpeed]:
    """The free memory of a device and its speed; nothing is free where there is not even room for looking."""
    try:
        return free_device_bytes(device), DeviceSpeed.measure(device, dtype)
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        return 0, DeviceSpeed.assumed(ASSUMED_TFLOPS)


def _plan_on_device(run: _Run, free_bytes: float | None, speed: DeviceSpeed) -> RunPlan:
    return plan_run(
        run.config,
        run.data.train,
        device=run.arguments.device,
        dtype=run.dtype,
        free_bytes=free_bytes,
        num_processes=run.arguments.world_size,
        speed=speed,
        why_not_fused=_why_not_fuse(run.arguments),
        keeps_format=run.checkpoint is not None,
    )


def _train(run: _Run) -> TrainResult:
    """Loads the base and trains."""
    config, arguments, data, checkpoint, console = run.config, run.arguments, run.data, run.checkpoint, run.console
    with console.status("加载模型 loading the base model ..."):
        model, _ = load_base(
            config.model.path,
            config.model.dtype,
            "cpu" if arguments.device.type == "cpu" else None,
            quantize=run.settings.quantize,
            offloads_embedding=run.settings.offloads_embedding,
        )
    if run.settings.quantize == "fp8" and model.device.type == "cpu":
        console.print("CPU 上只是模拟 fp8，更慢 it is only emulated here, and slower", highlight=False)
    manifest = _make_manifest(config, data.stats.fingerprint)
    initial = None
    if checkpoint is not None:
        console.print(f"going on from {checkpoint}", highlight=False, soft_wrap=True)
        if changes_base(config.lora.get("init_lora_weights")):
            initial = read_initial_weights(checkpoint)
    torch.manual_seed(arguments.seed)
    peft_model = attach_lora(model, config.lora, initial)
    initial_weights = initial_adapter_weights(peft_model)
    if config.model.adapter_path is not None and checkpoint is None:
        load_adapter_weights(peft_model, config.model.adapter_path)
    summary = trainable_summary(peft_model)
    console.print(str(summary), highlight=False)
    collator, lines = _prepare(peft_model, run)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    interruption = Interruption()
    progress = ProgressReport(console)
    callbacks = _callbacks(arguments.output_dir, config.train.get("early_stopping_patience"), progress, interruption)
    with transformers_faults():
        trainer = run.trainer = LoraTrainer(
            model=peft_model,
            args=arguments,
            train_dataset=data.train,
            eval_dataset=data.eval,
            data_collator=collator,
            callbacks=callbacks,
            initial_weights=initial_weights,
            manifest=manifest,
            base_dtype=run.dtype,
            uses_graphs=collator.pads_to_buckets,
        )
    for theirs in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(theirs)
    PartialState().wait_for_everyone()  # all have looked whether the folder is free
    if arguments.should_save:
        manifest.write(arguments.output_dir)
    with interruption.listening():
        try:
            metrics = _train_on(trainer, run, manifest)
        finally:
            progress.close()
        if interruption.happened:
            command = config.command("train.resume_from_checkpoint=true")
            raise TrainingInterrupted(_how_to_go_on(trainer, command))
        return _finish(trainer, run.tokenizer, data, summary, metrics)


def _train_on(trainer: LoraTrainer, run: _Run, manifest: RunManifest) -> dict[str, Any]:
    """Takes the steps that are left, which may be none; returns Trainer's metrics of them."""
    num_steps = num_optimizer_steps(run.config, len(run.data.train), run.arguments.world_size)
    if run.checkpoint is not None and has_all_steps(run.checkpoint, manifest, num_steps):
        run.console.print("all steps are done; what comes after them is made up for", highlight=False)
        trainer.restore(run.checkpoint)
        return {}
    output = trainer.train(
        resume_from_checkpoint=str(run.checkpoint) if run.checkpoint else None,
        ignore_keys_for_eval=["past_key_values"],
    )
    metrics: dict[str, Any] = output.metrics
    return metrics


def _prepare(model: PeftModel, run: _Run) -> tuple[PackingCollator, list[str]]:
    """Fuses the layers where that can be done; returns a collator, and what to tell the user."""
    if model.config.attention_dropout > 0:
        raise ConfigError("the base has attention_dropout, which packed samples cannot be trained with; set it to 0")
    why_not = _why_not_fuse(run.arguments) or fuse(model)
    lines = []
    if why_not is not None:
        if run.settings.offloads_checkpoints:
            raise ConfigError(f"train.offload_checkpoints=true takes fused layers: {why_not}")
        lines.append(f"层未融合，较慢 layers run one operation at a time, which is slower: {why_not}")
    checkpoint_layers(model, run.settings.num_checkpointed, offloads=run.settings.offloads_checkpoints)
    is_shared, line = _choose_prefix(run.config, run.data, run.arguments.per_device_train_batch_size)
    collator = PackingCollator(
        max_tokens=None if run.arguments.deepspeed else run.max_tokens,  # DeepSpeed takes each backward pass for a step
        shares_prefix=is_shared,
        loss_weight=run.config.data.loss_weight,
        pads_to_buckets=run.settings.uses_graphs,
    )
    return collator, [*lines, *line]


def _is_sharded(arguments: TrainingArguments) -> bool:
    """Whether the model's weights are not simply there: sharded, by our settings or by `accelerate launch`."""
    by_launcher = any(os.environ.get(f"ACCELERATE_USE_{name}") == "true" for name in ("FSDP", "DEEPSPEED"))
    return bool(arguments.fsdp or arguments.deepspeed or by_launcher)


def _why_not_fuse(arguments: TrainingArguments) -> str | None:
    """Why layers are not fused whatever the model, as a phrase."""
    if _is_sharded(arguments):
        return "weights are spread over devices"
    return "train.torch_compile compiles them" if arguments.torch_compile else None


def _choose_prefix(config: RunConfig, data: RunData, num_samples: int) -> tuple[bool, list[str]]:
    """Whether common beginnings are computed once; and a line where that would pay but for the dropout."""
    if shares_prefix(config) or config.train.get("shared_prefix") is not None:
        return shares_prefix(config), []
    dropout = config.lora["lora_dropout"]
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


def _make_manifest(config: RunConfig, data_fingerprint: str) -> RunManifest:
    """Makes the manifest of a run from its resolved configuration."""
    path = config.model.path
    template: Any = config.prompt.template  # no longer `auto`
    return RunManifest(
        base_path=str(Path(path).resolve()) if path is not None and Path(path).is_dir() else path,
        template=template,
        system=config.prompt.system,
        data_fingerprint=data_fingerprint,
        config=config.model_dump(mode="json"),
        versions=current_versions(),
        base_fingerprint=fingerprint_base(path or embedded_base()),
    )


def _callbacks(
    run: str | Path, patience: int | None, progress: ProgressReport, interruption: Interruption
) -> list[TrainerCallback]:
    callbacks: list[TrainerCallback] = [ResumedState(), LogFile(run), progress]
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


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, says that memory ran out: torch's own, CUDA's or cuBLAS's."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if isinstance(error, RuntimeError):
        return "out of memory" in str(error) or "CUBLAS_STATUS_ALLOC_FAILED" in str(error)
    return isinstance(error.__cause__, RuntimeError) and _is_out_of_memory(error.__cause__)


def _how_to_save_memory(run: _Run, error: Exception) -> str:
    when = f"after step {run.trainer.state.global_step}" if run.trainer else "before training began"
    changes: list[Change] = []
    with suppress(GlmtuneError):
        plan = run.plan or _plan_on_device(run, None, DeviceSpeed.assumed(ASSUMED_TFLOPS))
        freedom = plan.whole_freedom
        if checkpoints(run.arguments.output_dir):  # which can only be gone on from in the same format
            freedom = replace(freedom, quantize=(run.settings.quantize,))
        changes = plan.planner.cheapest_changes(plan.planner.plan(run.settings, run.max_tokens), freedom)
    advice = "\n".join(f"  {change}" for change in changes) or "  a lower data.max_length"
    return (
        f"显存不足 training stopped: the device ran out of memory {when}. "
        f"The cheapest changes, with what each saves:\n{advice}\n{last_good(run.arguments.output_dir)}\n{error}"
    )


def _finish(
    trainer: LoraTrainer, tokenizer: ChatGLMTokenizer, data: RunData, summary: TrainableSummary, metrics: dict[str, Any]
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
        _draw(state.log_history, run / PICTURE_NAME)
        write_results(results, run / RESULTS_NAME)  # a run that has these is finished
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


def _draw(history: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draws the picture, which is not worth losing a run for: matplotlib's fonts, cache and settings can be broken."""
    try:
        draw_losses(history, file)
    except Exception as error:
        _logger.warning("%s could not be drawn, everything else is there: %s", file, error)
