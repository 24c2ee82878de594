"""Whether a run may begin in a folder, and where an interrupted one is resumed."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from glmtune.adapters.adapter_files import WEIGHTS_NAME
from glmtune.adapters.checkpoints import checkpoint_faults, evaluations_without_gain, newest_whole, read_state
from glmtune.adapters.lora import comparable_setting
from glmtune.adapters.run_folder import MANIFEST_NAME, RESULTS_NAME, STATE_NAME, RunManifest, checkpoints, has_adapter
from glmtune.errors import ConfigError, TrainingError, summarise_faults
from glmtune.files import read_json_object
from glmtune.planning.settings import SETTINGS

_logger = logging.getLogger(__name__)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Keys under `train` that a run keeps as long as it lives: they decide which samples a step sees, and what the optimiser
# and the search for the best checkpoint remember. With others than before, some samples would be skipped, others seen
# twice, or the state would be of something else.
LASTING_TRAIN_KEYS = _names(
    """
    accelerator_config average_tokens_across_devices data_seed dataloader_drop_last
    gradient_accumulation_steps greater_is_better ignore_data_skip length_column_name metric_for_best_model optim
    optim_args optim_target_modules per_device_train_batch_size seed train_sampling_strategy
    """
)
# All other keys take their new values from the first resumed step on; so do the settings that the plan decides.
APPLIED_TRAIN_KEYS = {setting.key.partition(".")[2] for setting in SETTINGS} | _names(
    """
    activation_checkpointing activation_checkpointing_kwargs adam_beta1 adam_beta2 adam_epsilon auto_find_batch_size
    batch_eval_metrics bf16 bf16_full_eval dataloader_in_order dataloader_multiprocessing_context
    dataloader_num_workers dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor ddp_backend
    ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout debug deepspeed
    disable_tqdm do_eval do_predict do_train early_stopping_patience enable_jit_checkpoint eval_accumulation_steps
    eval_delay eval_do_concat_batches eval_generate eval_on_start eval_steps eval_strategy eval_use_gather_object fp16
    fp16_full_eval fsdp fsdp_config full_determinism gradient_checkpointing_kwargs
    hub_always_push hub_model_id hub_private_repo hub_revision hub_strategy hub_token
    include_for_metrics include_num_input_tokens_seen label_names label_smoothing_factor learning_rate
    liger_kernel_config load_best_model_at_end local_rank log_level log_level_replica log_on_each_node
    logging_first_step logging_nan_inf_filter logging_steps logging_strategy lr_scheduler_kwargs lr_scheduler_type
    max_grad_norm max_steps neftune_noise_alpha num_train_epochs
    output_dir parallelism_config per_device_eval_batch_size prediction_loss_only project
    push_to_hub remove_unused_columns report_to restore_callback_states_from_checkpoint resume_from_checkpoint run_name
    save_on_each_node save_only_model save_steps save_strategy save_total_limit shared_prefix skip_memory_metrics
    tf32 torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps trackio_bucket_id
    trackio_space_id trackio_static_space_id use_cache use_cpu use_liger_kernel warmup_steps weight_decay
    """
)
# Schedules that depend on the course of the run cannot be set to a given step.
_SEEING_SCHEDULES = {"reduce_lr_on_plateau", "greedy"}
_SCHEDULE_KEYS = ("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs")
_END_KEYS = ("train.num_train_epochs", "train.max_steps", "train.early_stopping_patience")
# Settings that must not change, besides those of the adapter and the ones above.
_LASTING_KEYS = (
    "model.adapter_path", "model.quantize",
    "data.eval_fraction", "data.max_length", "data.overlong", "data.loss_weight",
)  # fmt: skip


@dataclass(frozen=True)
class EarlierRun:
    """A run that is resumed.

    Attributes:
        checkpoint: The checkpoint to resume from.
        manifest: The run's manifest.
    """

    checkpoint: Path
    manifest: RunManifest


def find_earlier_run(train: Mapping[str, Any]) -> EarlierRun | None:
    """Finds the run to resume; its checkpoint is that of `find_checkpoint`.

    Args:
        train: The `train` section of the configuration.

    Raises:
        ConfigError: As for `find_checkpoint`.
        TrainingError: As for `find_checkpoint`; or the checkpoint has no manifest.
    """
    checkpoint = find_checkpoint(train["output_dir"], train.get("resume_from_checkpoint"))
    if checkpoint is None:
        return None
    manifest = RunManifest.read(checkpoint)
    if manifest is None:
        raise TrainingError(f"{checkpoint} has no {MANIFEST_NAME}, so there is no telling whether the run is the same")
    return EarlierRun(checkpoint, manifest)


def find_checkpoint(output_dir: str | Path, resume: Any) -> Path | None:
    """Finds the checkpoint to resume from, or checks that there is nothing to overwrite.

    Args:
        output_dir: The run folder.
        resume: `train.resume_from_checkpoint`: true for the newest checkpoint, a path, or false or None for a new run.

    Returns:
        The checkpoint; None for a new run.

    Raises:
        ConfigError: The run is new or resumes from a checkpoint elsewhere, but the folder holds a run already.
        TrainingError: There is no such checkpoint, or it is not complete.
    """
    run = Path(output_dir).expanduser()
    if resume is None or resume is False:
        refuse_to_overwrite(run)
        return None
    if resume is True:
        newest, damaged = newest_whole(run)
        if newest is None:
            found = "".join(f"\n  {fault}" for fault in damaged)
            raise TrainingError(
                f"train.resume_from_checkpoint: there is no complete checkpoint in {run}. "
                f"Start a new run without it, or give the path of a checkpoint{found}"
            )
        for fault in damaged:
            _logger.warning("%s. Continuing from %s, the newest that is intact", fault, newest.name)
        return newest
    checkpoint = Path(str(resume)).expanduser()
    if not has_adapter(checkpoint) or not (checkpoint / STATE_NAME).exists():
        raise TrainingError(
            f"train.resume_from_checkpoint: {checkpoint} is not a complete checkpoint; expected a folder with "
            f"adapter_config.json, {WEIGHTS_NAME} and {STATE_NAME}"
        )
    if faults := list(checkpoint_faults(checkpoint)):
        raise TrainingError(
            f"{checkpoint} cannot be resumed: {'; '.join(faults)}. Resume from another checkpoint, or start a new run"
        )
    if checkpoint.resolve().parent != run.resolve():
        refuse_to_overwrite(run)
    return checkpoint


def refuse_to_overwrite(run: Path) -> None:
    """Checks that a folder holds no run.

    Raises:
        ConfigError: It does.
    """
    if not (has_adapter(run) or checkpoints(run) or (run / "config.json").is_file()):
        return  # a manifest alone is a run that ended before its first checkpoint
    what = "a base model" if (run / "config.json").is_file() else "a run"
    advice = "" if what == "a base model" else "train.resume_from_checkpoint=true to go on with it, or "
    raise ConfigError(
        f"train.output_dir: {run} holds {what} already, which is not overwritten. Set {advice}"
        "train.output_dir to another folder, or delete this one"
    )


def check_resumed(earlier: EarlierRun, run: Path, manifest: RunManifest, num_steps: int, num_processes: int) -> None:
    """Checks that a resumed run matches the earlier one, and has steps left to train.

    Args:
        earlier: The run that is resumed.
        run: The run folder.
        manifest: The manifest of the resumed run.
        num_steps: Optimiser steps of the whole run by its current settings.
        num_processes: Devices that share the samples of a step.

    Raises:
        TrainingError: Base, data, prompt, adapter or sampling have changed, all in one message; the run is finished, or
            has more steps than are asked for.
    """
    checkpoint, before = earlier.checkpoint, earlier.manifest
    faults = [
        f"{key} was {old!r} and is {new!r} now"
        for key, old, new in _compare(before, manifest)
        if _as_json(old) != _as_json(new)
    ]
    if not faults and before.data_fingerprint != manifest.data_fingerprint:
        faults.append("the data have changed, or are rendered differently (was glmtune updated?)")
    if before.base_fingerprint not in ("", manifest.base_fingerprint):
        faults.append("the base's weights are not those that it was trained on")
    state = read_state(checkpoint)
    if state["best_metric"] is not None and before.eval_fingerprint not in ("", manifest.eval_fingerprint):
        faults.append("the evaluation data are not those that the best checkpoint was chosen by")
    faults += _process_faults(checkpoint, num_processes)
    if faults:
        heading = f"{checkpoint} cannot be resumed: it would not be the same run"
        raise TrainingError(
            f"{summarise_faults(heading, [f'{heading}: {faults[0]}'] if len(faults) == 1 else faults)}\n"
            "Undo the change, or start a new run from this adapter, with a fresh optimiser and schedule: "
            f"model.adapter_path={checkpoint} train.output_dir=ANOTHER_FOLDER"
        )
    if state["global_step"] > num_steps and _has_other_end(before, manifest):
        raise TrainingError(
            f"{checkpoint.name} has {state['global_step']} steps already, and {num_steps} were requested. Raise "
            "train.max_steps or train.num_train_epochs, or resume from an earlier checkpoint"
        )
    num_finished = finished_steps(run)
    if not _has_other_end(before, manifest) and num_finished is not None and num_finished >= state["global_step"]:
        message = (
            f"{run} is finished ({num_finished} of {state['max_steps']} steps), there is nothing to resume. "
            "To train longer, raise train.num_train_epochs or train.max_steps"
        )
        if num_finished > state["global_step"]:
            message += f"\nTo train again from {checkpoint.name}, set train.output_dir to another folder"
        raise TrainingError(message)


def _process_faults(checkpoint: Path, num_processes: int) -> Iterator[str]:
    """Faults in the number of processes, which must not change, since it decides the samples of a step."""
    if (checkpoint / "rng_state.pth").is_file():
        before = 1
    else:
        before = len(list(checkpoint.glob("rng_state_*.pth")))
        if before == int(os.environ.get("LOCAL_WORLD_SIZE", "0")):
            before = num_processes  # of a node with a disk of its own, which has its own processes' files alone
    if before != num_processes:
        yield f"it began with {before} process{'es' * (before != 1)}, and continues with {num_processes}"


def finished_steps(run: Path) -> int | None:
    """The number of steps of a finished run, which has an adapter and its final file; None for another.

    Args:
        run: The run folder.
    """
    try:
        num_steps = read_json_object(run / RESULTS_NAME, TrainingError).get("num_steps")
    except TrainingError:  # missing, or cut short
        return None
    return num_steps if has_adapter(run) and isinstance(num_steps, int) else None


def has_all_steps(earlier: EarlierRun, manifest: RunManifest, num_steps: int) -> bool:
    """Whether a checkpoint is after the last step, so that the run only has to be finished.

    Args:
        earlier: The run that is resumed.
        manifest: The manifest of the resumed run.
        num_steps: Optimiser steps of the whole run by its current settings.
    """
    before, state = earlier.manifest, read_state(earlier.checkpoint)
    is_same = not _has_other_end(before, manifest)
    patience = manifest.setting("train.early_stopping_patience")
    if patience is not None and evaluations_without_gain(state["stateful_callbacks"]) >= patience:
        return True
    return bool(state["global_step"] >= (state["max_steps"] if is_same else num_steps))


def _has_other_end(before: RunManifest, now: RunManifest) -> bool:
    """Whether a run is to end elsewhere than before: after other steps, or with another patience."""
    return any(before.setting(key) != now.setting(key) for key in _END_KEYS)


def _compare(before: RunManifest, now: RunManifest) -> list[tuple[str, Any, Any]]:
    """The values that must not change: name, old and new value."""
    compared = [
        ("model.path", before.base_path, now.base_path),
        ("prompt.template", before.template, now.template),
        ("prompt.system", before.system, now.system),
        *((key, before.setting(key), now.setting(key)) for key in _LASTING_KEYS),
    ]
    lora, lora_before = now.section("lora"), before.section("lora")
    for key in sorted({*lora, *lora_before}):
        compared.append((f"lora.{key}", comparable_setting(lora_before, key), comparable_setting(lora, key)))
    kept = set(LASTING_TRAIN_KEYS)
    if _SEEING_SCHEDULES & {_train_setting(before, "lr_scheduler_type"), _train_setting(now, "lr_scheduler_type")}:
        kept |= set(_SCHEDULE_KEYS)
    return compared + [(f"train.{key}", _train_setting(before, key), _train_setting(now, key)) for key in sorted(kept)]


def _train_setting(manifest: RunManifest, key: str) -> Any:
    """A setting of the `train` section, or transformers' default."""
    field = TrainingArguments.__dataclass_fields__.get(key)
    is_plain = field is not None and field.default is not MISSING
    value = manifest.section("train").get(key, field.default if field is not None and is_plain else None)
    return value.value if isinstance(value, Enum) else value


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
