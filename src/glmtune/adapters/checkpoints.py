"""Checkpoints on disk: written atomically, and verified before a run is resumed from one.

RUN/.unfinished/checkpoint-N    while it is being written or deleted
RUN/checkpoint-N                complete; `checksums.json` names its files, their sizes and their SHA-256
RUN/_superseded-K               what the run had after the step from which it was resumed for the K-th time
"""

import hashlib
import logging
import shutil
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from pickle import UnpicklingError
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import TrainerState

from glmtune.adapters.adapter_files import WEIGHTS_NAME
from glmtune.adapters.run_folder import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_NAMES,
    MANIFEST_NAME,
    RESULTS_NAME,
    STATE_NAME,
    RunManifest,
    checkpoint_folders,
    checkpoints,
    has_adapter,
    step_of,
)
from glmtune.compat import trainer_state_globals
from glmtune.errors import AdapterError, TrainingError
from glmtune.files import flush, read_json_object, storage_faults, write_json

CHECKSUMS_NAME = "checksums.json"
_ASIDE_NAME = ".unfinished"
_SUPERSEDED_NAME = "_superseded"  # what begins with an underscore is not uploaded by Trainer
# Exceptions that reading a damaged file can raise.
_UNREADABLE = (
    OSError, RuntimeError, EOFError, UnpicklingError, ValueError, LookupError, TypeError, AttributeError, ImportError
)  # fmt: skip
_logger = logging.getLogger(__name__)
# What a checkpoint needs for the optimiser to go on rather than begin again.
_RESUMED_FILES: Mapping[str, str] = MappingProxyType(
    {
        "optimizer.pt": "optimizer.pt",
        "scheduler.pt": "scheduler.pt",
        "rng_state.pth": "rng_state*.pth",
    }
)
# Keys of `trainer_state.json` that resuming reads, with their types.
_STATE_KEYS: Mapping[str, type | tuple[type, ...]] = MappingProxyType(
    {"global_step": int, "max_steps": int, "log_history": list, "epoch": (int, float, type(None))}
)
# Further keys, which Trainer reads without checking.
_TRUSTED_STATE_KEYS: Mapping[str, type | tuple[type, ...]] = MappingProxyType(
    {
        "train_batch_size": int,
        "stateful_callbacks": dict,
        "best_model_checkpoint": (str, type(None)),
        "best_metric": (int, float, type(None)),
        "best_global_step": (int, type(None)),
        "total_flos": (int, float),
    }
)
# Keys that the files of an older run, which have no checksums, must hold.
_HELD: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "optimizer.pt": ("state", "param_groups"),
        "scheduler.pt": ("last_epoch",),
        "scaler.pt": ("scale",),
        "rng_state": ("python", "numpy", "cpu"),
    }
)


def aside(run: str | Path) -> Path:
    """The folder in a run folder where checkpoints are written; it need not exist."""
    return Path(run) / _ASIDE_NAME


def sweep(run: str | Path) -> None:
    """Deletes what a process that died was writing or deleting."""
    shutil.rmtree(Path(run) / _ASIDE_NAME, ignore_errors=True)


def publish(run: str | Path, name: str) -> None:
    """Moves a finished checkpoint to its final place, replacing an older one of the same step.

    Args:
        run: The run folder.
        name: `checkpoint-N`.
    """
    written, place = aside(run) / name, Path(run) / name
    with storage_faults(place):
        # The manifest is checked by its contents instead: users may edit the path of a base that they have moved.
        files = sorted(path for path in written.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)
        sums = {path.relative_to(written).as_posix(): _describe_file(path) for path in files}
        write_json(written / CHECKSUMS_NAME, {"files": sums})
        for path in (*written.rglob("*"), written):
            flush(path)
        _put_aside(place)
        written.rename(place)
        flush(place.parent)
    sweep(run)


def supersede(run: str | Path, step: int) -> None:
    """Sets aside what a run has beyond the step that it is resumed from, so that it stands for what it trains now.

    That is later checkpoints, and the adapter and results of a run that had finished. Nothing is deleted.
    To be called when the resumed run has its first checkpoint to publish: until then it may fail, and the folder should
    be as it was.

    Args:
        run: The run folder.
        step: The step that the run is resumed from; 0 for a new run.
    """
    # The adapter comes first: should the process be killed in between, the run counts as interrupted.
    moved = [Path(run) / name for name in (ADAPTER_CONFIG_NAME, *ADAPTER_NAMES, RESULTS_NAME)]
    moved = [file for file in moved if file.exists()]
    if moved:
        moved += [Path(run) / name for name in (MANIFEST_NAME, STATE_NAME) if (Path(run) / name).exists()]
    moved += [folder for folder in checkpoint_folders(run) if step_of(folder) > step]
    if not moved:
        return
    numbered = (Path(run) / f"{_SUPERSEDED_NAME}-{number}" for number in count(1))
    place = next(folder for folder in numbered if not folder.exists())
    with storage_faults(place):
        place.mkdir()
        for path in moved:
            path.rename(place / path.name)
    _logger.warning(
        "the run was resumed from step %d; what it had beyond that is now in %s: %s",
        step,
        place,
        ", ".join(path.name for path in moved),
    )


def rotate(run: str | Path, published: str, limit: int | None, best: str | None) -> None:
    """Deletes the oldest checkpoints beyond a limit; never the one just published, nor the best.

    Only complete ones count, so that incomplete ones do not displace any that can be resumed from.

    Args:
        run: The run folder.
        published: The name of the checkpoint just published.
        limit: How many to keep; None or 0 for all.
        best: The path of the best checkpoint, if there is one.
    """
    saved = checkpoints(run)
    if not limit or limit < 0:
        return
    kept = {published, Path(best).name} if best else {published}
    superfluous = [folder for folder in saved if folder.name not in kept]
    for folder in superfluous[: max(len(saved) - max(limit, len(kept)), 0)]:
        _put_aside(folder)
    sweep(run)


def _put_aside(folder: Path) -> None:
    """Deletes a folder atomically: a process that is killed leaves it whole, or moved aside for `sweep`."""
    if folder.exists():
        aside(folder.parent).mkdir(exist_ok=True)
        folder.rename(aside(folder.parent) / f"{folder.name}.old")


def _describe_file(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def newest_whole(run: str | Path) -> tuple[Path | None, list[str]]:
    """Finds the newest checkpoint that is whole.

    Returns:
        The checkpoint, or None; and the faults of each newer one.
    """
    damaged: list[str] = []
    for checkpoint in reversed(checkpoint_folders(run)):
        faults = list(checkpoint_faults(checkpoint))
        if not faults:
            return checkpoint, damaged
        damaged.append(f"{checkpoint}: {'; '.join(faults)}")
    return None, damaged


def checkpoint_faults(checkpoint: Path) -> Iterator[str]:
    """The faults that prevent resuming from a checkpoint, a phrase for each file."""
    if not has_adapter(checkpoint):
        yield "it has no adapter"
    missing = [name for name, pattern in _RESUMED_FILES.items() if not any(checkpoint.glob(pattern))]
    if missing:
        yield (
            f"it has no {', '.join(missing)}, and the optimiser would silently start from scratch (was it saved with "
            "train.save_only_model=true?)"
        )
    try:
        RunManifest.read(checkpoint)
        read_state(checkpoint)
        sums = _read_checksums(checkpoint)
    except (AdapterError, TrainingError) as error:
        yield str(error)
        return
    if sums is None:  # of a run before there were any
        yield from _unreadable(checkpoint)
        return
    for name, expected in sums.items():
        path = checkpoint / name
        if not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != expected.get("bytes"):
            yield f"{name} has {path.stat().st_size} bytes, and was written with {expected.get('bytes')}"
        elif _describe_file(path) != expected:
            yield f"{name} is damaged: its contents are not those that were written"


def _read_checksums(checkpoint: Path) -> dict[str, dict[str, Any]] | None:
    file = checkpoint / CHECKSUMS_NAME
    if not file.exists():
        return None
    sums = read_json_object(file, TrainingError).get("files")
    if not isinstance(sums, dict) or not all(isinstance(expected, dict) for expected in sums.values()):
        raise TrainingError(f"{CHECKSUMS_NAME} is damaged: it names no files")
    return sums


def _unreadable(checkpoint: Path) -> Iterator[str]:
    """Files that cannot be read or are of another kind, a phrase for each."""
    try:
        if (checkpoint / WEIGHTS_NAME).is_file():
            with safe_open(checkpoint / WEIGHTS_NAME, framework="pt"):  # compares the header with the file's size
                pass
    except (SafetensorError, OSError):
        yield f"{WEIGHTS_NAME} is damaged or cut short"
    names = [name for name in ("optimizer.pt", "scheduler.pt", "scaler.pt") if (checkpoint / name).exists()]
    for path in [*(checkpoint / name for name in names), *sorted(checkpoint.glob("rng_state*.pth"))]:
        try:
            held = load_tensors(path)
            wanted = next(keys for name, keys in _HELD.items() if path.name.startswith(name))
            if missing := [key for key in wanted if key not in held]:
                yield f"{path.name} is not such a file: there is no {', '.join(missing)} in it"
        except TrainingError as error:
            yield str(error)


def load_tensors(path: Path) -> dict[str, Any]:
    """Loads a file of `torch.save` to the CPU, without running code in it.

    Raises:
        TrainingError: It is damaged, or something else.
    """
    try:
        with trainer_state_globals():
            values = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        kind = "is a folder, not a file" if path.is_dir() else "is damaged or cut short"
        raise TrainingError(f"{path.name} {kind}") from error
    if not isinstance(values, dict):
        raise TrainingError(f"{path.name} is damaged: expected values by name; found {type(values).__name__}")
    return values


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Reads `trainer_state.json`.

    Raises:
        TrainingError: It is damaged, cut short, or holds values of other types.
    """
    file = checkpoint / STATE_NAME
    state = read_json_object(file, TrainingError)
    _check_types(file, state, _STATE_KEYS)
    if not all(isinstance(entry, dict) for entry in state["log_history"]):
        raise TrainingError(f"{file} is damaged: log_history contains something other than log entries")
    for entry in state["log_history"]:
        for key in ("step", "loss", "eval_loss"):
            if not isinstance(entry.get(key, 0), int | float):
                raise TrainingError(f"{file} is damaged: log_history: {key} is {entry[key]!r:.60}")
    _check_types(file, state, _TRUSTED_STATE_KEYS)
    if unknown := sorted(state.keys() - TrainerState.__dataclass_fields__.keys()):
        raise TrainingError(
            f"{file}: the installed transformers does not know {', '.join(unknown)}. Install the version that "
            "glmtune.json names, or a newer one"
        )
    return state


def _check_types(file: Path, state: Mapping[str, Any], types: Mapping[str, type | tuple[type, ...]]) -> None:
    for key, expected in types.items():
        if not isinstance(state.get(key), expected) or isinstance(state.get(key), bool):
            raise TrainingError(f"{file} is damaged: {key} is {state.get(key)!r:.60}")


def evaluations_without_gain(stateful_callbacks: dict[str, Any]) -> int:
    """The number of consecutive evaluations without improvement, from the callbacks' saved state."""
    saved = stateful_callbacks.get("EarlyStoppingCallback")
    attributes = saved.get("attributes") if isinstance(saved, dict) else None
    counter = attributes.get("early_stopping_patience_counter") if isinstance(attributes, dict) else None
    return counter if isinstance(counter, int) else 0
