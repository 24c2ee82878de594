"""Whether a run may begin in a folder, and where one that was interrupted goes on."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from glmtune.errors import ConfigError, TrainingError, summarise_faults
from glmtune.tuning.adapter_files import WEIGHTS_NAME
from glmtune.tuning.run_folder import MANIFEST_NAME, STATE_NAME, RunManifest, checkpoints, has_adapter

# Keys under `train` that decide which samples a step sees, and what the optimiser remembers. With others than before, a
# resumed run would skip some samples and see others twice, or could not read its state.
_LASTING_KEYS = ("optim", "per_device_train_batch_size", "gradient_accumulation_steps", "seed", "data_seed")
# What a checkpoint needs for the optimiser to go on rather than begin again: names as of Trainer, FSDP or DeepSpeed.
_RESUMED_FILES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "optimizer.pt": ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*"),
        "scheduler.pt": ("scheduler.pt", "global_step*"),
        "rng_state.pth": ("rng_state*.pth",),
    }
)
_LENGTH_KEYS = ("num_train_epochs", "max_steps")


def find_checkpoint(output_dir: str | Path, resume: Any) -> Path | None:
    """Finds the checkpoint to go on from, or makes sure that there is nothing to overwrite.

    Args:
        output_dir: The run folder.
        resume: `train.resume_from_checkpoint`: true for the newest checkpoint, a path, or false or None for a new run.

    Returns:
        The checkpoint; None for a new run.

    Raises:
        ConfigError: A new run, or one that goes on from a checkpoint elsewhere, but the folder holds a run already.
        TrainingError: There is no such checkpoint, or it is not complete.
    """
    run = Path(output_dir).expanduser()
    if resume is None or resume is False:
        refuse_to_overwrite(run)
        return None
    if resume is True:
        if saved := checkpoints(run):
            return saved[-1]
        raise TrainingError(
            f"train.resume_from_checkpoint: there is no complete checkpoint in {run}. "
            "Start a new run without it, or give the path of a checkpoint"
        )
    checkpoint = Path(str(resume)).expanduser()
    if not has_adapter(checkpoint) or not (checkpoint / STATE_NAME).is_file():
        raise TrainingError(
            f"train.resume_from_checkpoint: {checkpoint} is no complete checkpoint; expected a folder with "
            f"adapter_config.json, {WEIGHTS_NAME} and {STATE_NAME}"
        )
    if checkpoint.resolve().parent != run.resolve():
        refuse_to_overwrite(run)
    return checkpoint


def refuse_to_overwrite(run: Path) -> None:
    """Makes sure that a folder holds no run.

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


def check_resumed(checkpoint: Path, run: Path, manifest: RunManifest) -> None:
    """Makes sure that a run goes on as it began, and has something left to do.

    Args:
        checkpoint: Where it goes on.
        run: The run folder.
        manifest: What the run is to be made with now.

    Raises:
        TrainingError: Base, data, prompt, adapter or sampling have changed, all in one message; the checkpoint is
            damaged or lacks the optimiser's state; or the run was finished.
    """
    before = RunManifest.read(checkpoint)
    if before is None:
        raise TrainingError(f"{checkpoint} has no {MANIFEST_NAME}, so it cannot be told whether the run is the same")
    faults = [
        f"{key} was {old!r} and is {new!r} now"
        for key, old, new in _compare(before, manifest)
        if _as_json(old) != _as_json(new)
    ]
    if not faults and before.data_fingerprint != manifest.data_fingerprint:
        faults.append("the data are others now, or are rendered in another way (was glmtune updated?)")
    if before.base_fingerprint not in ("", manifest.base_fingerprint):
        faults.append("the base's weights are others now than those that it was trained on")
    if faults:
        heading = f"{checkpoint} cannot be resumed, the run would not be the same"
        raise TrainingError(
            f"{summarise_faults(heading, [f'{heading}: {faults[0]}'] if len(faults) == 1 else faults)}\n"
            "Set it back, or start a new run in another train.output_dir"
        )
    _check_complete(checkpoint)
    step, max_steps = _read_steps(checkpoint / STATE_NAME)
    is_longer = any(_train(before).get(key) != _train(manifest).get(key) for key in _LENGTH_KEYS)
    if not is_longer and (step >= max_steps or has_adapter(run)):
        raise TrainingError(
            f"{run} is finished ({step} of {max_steps} steps), there is nothing to resume. "
            "To train longer, raise train.num_train_epochs or train.max_steps"
        )


def _check_complete(checkpoint: Path) -> None:
    missing = [name for name, patterns in _RESUMED_FILES.items() if not any(any(checkpoint.glob(p)) for p in patterns)]
    if missing:
        raise TrainingError(
            f"{checkpoint} cannot be resumed: it has no {', '.join(missing)}, and the optimiser would silently begin "
            "again (was it saved with train.save_only_model=true?). Resume from another checkpoint, or start a new run"
        )


def _read_steps(file: Path) -> tuple[int, int]:
    """Steps taken and steps in all, of a `trainer_state.json`."""
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        return int(state["global_step"]), int(state["max_steps"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{file} is damaged or cut short: {error!r}. Resume from another checkpoint") from error


def _compare(before: RunManifest, now: RunManifest) -> list[tuple[str, Any, Any]]:
    """What has to stay the same: name, old and new value."""
    lora, lora_before = now.config["lora"], before.config.get("lora", {})
    compared = [
        ("model.path", before.base_path, now.base_path),
        ("prompt.template", before.template, now.template),
        ("prompt.system", before.system, now.system),
        ("model.quantize", before.config.get("model", {}).get("quantize", "none"), now.config["model"]["quantize"]),
    ]
    for key, default in (("eval_fraction", None), ("max_length", None), ("loss_weight", "token")):
        compared.append((f"data.{key}", before.config.get("data", {}).get(key, default), now.config["data"][key]))
    compared += [(f"lora.{key}", lora_before.get(key), lora.get(key)) for key in sorted({*lora, *lora_before})]
    return compared + [(f"train.{key}", _train(before).get(key), _train(now).get(key)) for key in _LASTING_KEYS]


def _train(manifest: RunManifest) -> Mapping[str, Any]:
    train: Mapping[str, Any] = manifest.config.get("train", {})
    return train


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
