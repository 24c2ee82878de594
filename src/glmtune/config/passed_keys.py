"""Checks the keys under `lora` and `train`, which are passed on to PEFT and transformers."""

import typing
from collections.abc import Mapping
from typing import Any

from glmtune.config.key_checks import check_value, path_fault
from glmtune.config.keys import OWN_TRAIN_HINTS, OWN_TRAIN_KEYS
from glmtune.config.refused_keys import REFUSED_KEYS
from glmtune.config.replaced_keys import REPLACED_KEYS
from glmtune.config.unknown_keys import unknown_key_fault


def check_passed_keys(section: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Checks keys and values under `lora` or `train` against the class that they are passed on to.

    Returns:
        The values, with text that stands for a number converted to it, and the faults.
    """
    if section == "lora":
        from peft import LoraConfig as Target

    else:
        from transformers import TrainingArguments as Target

    replaced = REPLACED_KEYS[section]
    own: Mapping[str, str] = OWN_TRAIN_KEYS if section == "train" else {}
    hints = typing.get_type_hints(Target)
    known = {name: hints[name] for name in Target.__dataclass_fields__}
    checked: dict[str, Any] = {}
    faults = []
    for key, value in values.items():
        name = f"{section}.{key}"
        if key in replaced:
            faults.append(f"{name} is not a key here: {replaced[key]}")
        elif key not in known and key not in own:
            # TrainingArguments will drop gradient_checkpointing one day; it remains a key here.
            if key not in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
                faults.append(unknown_key_fault(section, key))
        elif name in REFUSED_KEYS and value:
            faults.append(f"{name} {REFUSED_KEYS[name]}. Leave it out")
        else:
            checked[key], fault = _check_passed_value(name, value, known.get(key), Target.__dataclass_fields__.get(key))
            fault = fault or _refusal(name, checked[key])
            faults += [fault] if fault else []
    return {**values, **checked}, faults


def _check_passed_value(name: str, value: Any, hint: Any, field: Any) -> tuple[Any, str | None]:
    """Like `check_value`, but also for our own keys, and for keys that have another meaning here."""
    key = name.partition(".")[2]
    if name == "train.gradient_checkpointing":
        return _check_checkpointing(name, value)
    if name == "train.resume_from_checkpoint":
        is_good = isinstance(value, bool | str | None) and value != ""
        return value, None if is_good else f"{name}: expected true, or a checkpoint's folder; found {value!r:.80}"
    if name == "train.save_total_limit" and value in ("none", "all"):
        return None, None
    if name == "lora.target_modules" and value is not None:  # checked later, against the model's layers
        return value, None
    return check_value(name, value, hint or OWN_TRAIN_HINTS[key], field)


def _check_checkpointing(name: str, value: Any) -> tuple[Any, str | None]:
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if value in ("auto", True, False, None) or (isinstance(value, int) and 0 <= value < 1000):
        return value, None
    return value, f"{name}: expected true, false, auto or a number of layers; found {value!r:.80}"


def _refusal(name: str, value: Any) -> str | None:
    """Why a value is refused although its type is right."""
    if name == "train.optim" and str(value).startswith(("schedule_free", "lomo", "adalomo")):
        return f"{name}={value} is not supported: it needs a training loop of its own"
    if name == "train.output_dir":
        fault = path_fault(value) if value else f"expected a folder; found {value!r}"
        return f"{name}: {fault}" if fault else None
    return None
