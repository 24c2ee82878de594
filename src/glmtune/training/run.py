"""Trains an adapter, from configuration to run folder: read, plan, load, fuse, train, save, test."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from rich.console import Console
from torch import Tensor
from transformers import PrinterCallback, ProgressCallback

from glmtune.adapters.adapter_files import load_adapter_weights, read_initial_weights
from glmtune.adapters.checkpoints import sweep
from glmtune.adapters.lora import attach_lora, changes_base, count_parameters, initial_adapter_weights
from glmtune.adapters.run_folder import RunManifest, checkpoints
from glmtune.config import RunConfig, say_base, validate_names
from glmtune.data.packing import PackingCollator
from glmtune.errors import ModelError, TrainingError
from glmtune.evaluation.in_training import EvaluationQuestions
from glmtune.loading.bases import load_model
from glmtune.loading.devices import is_out_of_memory
from glmtune.planning.device import KnownDevice
from glmtune.planning.plan import plan_run
from glmtune.planning.planned import PlannedRun
from glmtune.planning.resume import EarlierRun, check_resumed, has_all_steps
from glmtune.planning.start import read_start
from glmtune.training.arguments import transformers_faults
from glmtune.training.callbacks import ProgressReport, make_callbacks
from glmtune.training.checkpointing import checkpoint_layers
from glmtune.training.display import progress_console
from glmtune.training.finish import TrainResult, finish_run
from glmtune.training.inputs import RunInputs, read_inputs
from glmtune.training.interruption import Interruption
from glmtune.training.lora_trainer import LoraTrainer, last_good
from glmtune.training.packed_model import PackedModel, fuse
from glmtune.training.processes import ending_with_the_others, join_processes
from glmtune.training.storage import ending_where_it_cannot_write, run_folder_held
from glmtune.training.summary import opening_lines
from glmtune.training.trackers import settings_for_trackers, start_swanlab

__all__ = ["TrainResult", "TrainingInterrupted", "train"]


class TrainingInterrupted(TrainingError):  # noqa: N818 - not an error
    """Training was interrupted and a checkpoint saved; the message says how to resume."""


def train(config: RunConfig, console: Console | None = None) -> TrainResult:
    """Trains an adapter and writes it, with all records of the run, to `train.output_dir`.

    Args:
        config: The configuration of the run.
        console: Where progress is shown; standard error by default.

    Returns:
        The result of the run.

    Raises:
        GlmtuneError: Configuration, data, base or adapter are invalid, or training had to stop.
        TrainingInterrupted: A signal such as Ctrl-C stopped the run; it can be resumed where it stopped.
    """
    config = validate_names(config)
    process = join_processes(config.train)
    is_main = process.is_main_process
    # By the rule of `TrainingArguments.should_save`.
    writes_here = process.is_local_main_process if config.train.get("save_on_each_node") else is_main
    console = (console or progress_console()) if is_main else Console(quiet=True)
    folder = Path(str(config.train["output_dir"])).expanduser()
    with ending_with_the_others(), run_folder_held(folder) if is_main else nullcontext():
        if writes_here:
            sweep(folder)
        console.print(say_base(config.model.path), markup=False, highlight=False, soft_wrap=True)
        start = read_start(config)
        inputs = read_inputs(start, console)
        known = KnownDevice.measure(inputs.arguments.device, inputs.dtype, inputs.arguments.world_size)
        planned = plan_run(start, inputs.data.train, known)
        manifest = _check_plan(planned, inputs, console)
        return _train(inputs, planned, manifest, console)


def _check_plan(planned: PlannedRun, inputs: RunInputs, console: Console) -> RunManifest:
    """Checks that a plan fits and may continue an earlier run, says what it is, and returns the record of the run."""
    arguments, earlier = inputs.arguments, inputs.earlier
    manifest = planned.manifest(inputs.data, inputs.base_fingerprint, earlier)
    if earlier is not None:
        check_resumed(earlier, Path(arguments.output_dir), manifest, planned.num_steps, arguments.world_size)
        console.print(f"continuing from {earlier.checkpoint}", markup=False, highlight=False, soft_wrap=True)
    planned.check()
    lines = [*opening_lines(inputs, planned), *([planned.summary()] if arguments.device.type == "cuda" else [])]
    for line in (*lines, *planned.notes):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return manifest


def _train(inputs: RunInputs, planned: PlannedRun, manifest: RunManifest, console: Console) -> TrainResult:
    """Loads the base, trains, and completes the run folder."""
    output_dir, command = inputs.arguments.output_dir, _command_to_go_on(inputs, planned)
    interruption, progress = Interruption(), ProgressReport(console)
    with ending_where_it_cannot_write(output_dir, command), _explaining_out_of_memory(planned, output_dir, progress):
        with console.status("loading the base model ..."):
            model, initial_weights = _load_model(inputs, planned)
        num_trained, num_total = count_parameters(model)
        share = num_trained / num_total
        console.print(f"trainable parameters: {num_trained:,} of {num_total:,} ({share:.4%})", highlight=False)
        if planned.why_not_fused is None and (reason := fuse(model)) is not None:
            raise TrainingError(
                "the run was planned with fused layers, but those of the loaded model cannot be fused, so that it "
                f"would need more memory and time: {reason}. Please report this with the run's settings"
            )
        checkpoint_layers(
            model,
            planned.settings.num_checkpointed,
            offloads=planned.settings.offloads_checkpoints,
            options=planned.config.train.get("gradient_checkpointing_kwargs"),
        )
        trainer = _make_trainer(inputs, planned, manifest, model, initial_weights, progress, interruption)
        with interruption.listening():
            try:
                metrics = _take_steps(trainer, inputs.earlier, manifest, planned.num_steps, console)
            finally:
                progress.close()
            if interruption.happened:
                raise TrainingInterrupted(_how_to_go_on(trainer, command))
            return finish_run(trainer, inputs, planned, metrics)


def _load_model(inputs: RunInputs, planned: PlannedRun) -> tuple[PackedModel, Mapping[str, Tensor]]:
    """The base with its adapter, and the adapter's initial weights."""
    config, earlier = planned.config, inputs.earlier
    model = load_model(
        config.model.path,
        inputs.tokenizer,
        inputs.dtype,
        "cpu" if inputs.arguments.device.type == "cpu" else None,
        quantize=planned.settings.quantize,
        offloads_embedding=planned.settings.offloads_embedding,
    )
    initial = None
    if earlier is not None and changes_base(config.lora.get("init_lora_weights")):
        initial = read_initial_weights(earlier.checkpoint)
    torch.manual_seed(inputs.arguments.seed)
    peft_model = PackedModel(attach_lora(model, config.lora, initial))
    initial_weights = initial_adapter_weights(peft_model)
    if config.model.adapter_path is not None and earlier is None:
        load_adapter_weights(peft_model, config.model.adapter_path)
    return peft_model, initial_weights


def _make_trainer(
    inputs: RunInputs,
    planned: PlannedRun,
    manifest: RunManifest,
    model: PackedModel,
    initial_weights: Mapping[str, Tensor],
    progress: ProgressReport,
    interruption: Interruption,
) -> LoraTrainer:
    arguments = inputs.arguments
    arguments.shown_settings = settings_for_trackers(manifest.config)
    start_swanlab(arguments)
    questions = _questions(inputs, manifest, planned.config.train.get("eval_generate"))
    with transformers_faults():
        trainer = LoraTrainer(
            model=model,
            args=arguments,
            train_dataset=inputs.data.train,
            eval_dataset=inputs.data.eval,
            data_collator=PackingCollator(
                max_tokens=planned.max_tokens,
                shares_prefix=planned.shares_prefix,
                loss_weight=planned.config.data.loss_weight,
                pads_to_buckets=planned.settings.uses_graphs,
            ),
            callbacks=[
                *make_callbacks(arguments.output_dir, planned.config.train.get("early_stopping_patience"), progress),
                interruption,  # last, so that no other callback overrides its stop
            ],
            initial_weights=initial_weights,
            manifest=manifest,
            base_dtype=inputs.dtype,
            uses_graphs=planned.settings.uses_graphs,
            questions=questions,
        )
    for theirs in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(theirs)
    PartialState().wait_for_everyone()  # all have checked that the folder is free
    if arguments.should_save and inputs.earlier is None:  # until its first checkpoint, a resumed run's is as it was
        manifest.write(arguments.output_dir)
    if questions is not None and inputs.earlier is None:
        questions.ask(trainer.adapted_model(), 0, gather_object)
    return trainer


def _questions(inputs: RunInputs, manifest: RunManifest, count: int | None) -> EvaluationQuestions | None:
    """What is asked at each evaluation: the first of the evaluation samples."""
    if count is None:
        return None
    arguments = inputs.arguments
    return EvaluationQuestions.of(
        inputs.data.eval_conversations[:count],
        inputs.tokenizer,
        manifest.template,
        manifest.system,
        folder=Path(arguments.output_dir),
        process=arguments.process_index,
        num_processes=arguments.world_size,
    )


def _take_steps(
    trainer: LoraTrainer, earlier: EarlierRun | None, manifest: RunManifest, num_steps: int, console: Console
) -> dict[str, Any]:
    """Takes the remaining steps, possibly none, and returns Trainer's metrics of them."""
    if earlier is not None and has_all_steps(earlier, manifest, num_steps):
        console.print("all steps are done; writing the results", highlight=False)
        trainer.restore(earlier.checkpoint)
        return {"train_loss": trainer.mean_loss()}
    checkpoint = None if earlier is None else str(earlier.checkpoint)
    output = trainer.train(resume_from_checkpoint=checkpoint, ignore_keys_for_eval=["past_key_values"])
    metrics: dict[str, Any] = output.metrics
    return metrics


def _command_to_go_on(inputs: RunInputs, planned: PlannedRun) -> str:
    """The command that resumes the run; without the optimiser's states, one that starts another from its adapter."""
    if not inputs.arguments.save_only_model:
        return planned.config.command("train.resume_from_checkpoint=true")
    # An interrupted run stands for its newest checkpoint.
    overrides = [f"model.adapter_path={inputs.arguments.output_dir}", "train.output_dir=ANOTHER_FOLDER"]
    if inputs.earlier is not None:
        overrides.append("train.resume_from_checkpoint=false")
    return planned.config.command(*overrides)


def _how_to_go_on(trainer: LoraTrainer, command: str) -> str:
    state = trainer.state
    saved = Path(trainer.args.output_dir) / f"checkpoint-{state.global_step}"
    how = "To continue:"
    if trainer.args.save_only_model:
        how = "It has no optimiser state (train.save_only_model=true). To start a new run from its adapter:"
    return f"interrupted at step {state.global_step} of {state.max_steps}; saved {saved}.\n{how}\n  {command}"


@contextmanager
def _explaining_out_of_memory(planned: PlannedRun, output_dir: str, progress: ProgressReport) -> Iterator[None]:
    """Adds advice on saving memory to the error if memory runs out in spite of the plan.

    Raises:
        TrainingError: In place of torch's error, or of the error raised for it while the base was loaded.
    """
    try:
        yield
    except (RuntimeError, ModelError) as error:
        if not is_out_of_memory(error):
            raise
        when = "before training began" if progress.num_steps is None else f"after step {progress.num_steps}"
        has_checkpoints = bool(checkpoints(output_dir))  # a run can only be resumed in the same format
        changes = planned.cheapest_changes(keeps_format=has_checkpoints)
        advice = "\n".join(f"  {change}" for change in changes) or "  a lower data.max_length"
        raise TrainingError(
            f"training stopped: the device ran out of memory {when}. The cheapest changes, with what each saves:\n"
            f"{advice}\n{last_good(output_dir)}\n{error}"
        ) from error
