"""Errors for keys that do not exist, each with the key that was probably meant."""

import difflib
from collections.abc import Mapping
from functools import cache

from glmtune.config.keys import OWN_TRAIN_KEYS
from glmtune.config.other_names import NO_SUCH_SETTING, OTHER_NAMES, OTHER_SECTIONS
from glmtune.config.replaced_keys import REPLACED_KEYS
from glmtune.config.sections import OWN_SECTIONS, RunConfig

# How alike two names have to be for one to be taken for the other, from 0 to 1.
_LIKENESS = 0.6


def unknown_key_fault(section: str, key: str) -> str:
    """The error for a key that its section does not have.

    Args:
        section: The section, which exists.
        key: The key, without the section.
    """
    name, known = f"{section}.{key}", _known_keys()
    if elsewhere := _sections_with(key):
        return f"unknown key {name}; did you mean {elsewhere}?"
    if fault := _other_name_fault(name, key):
        return fault
    if nearest := difflib.get_close_matches(key, known[section], n=1, cutoff=_LIKENESS):
        meant = f"{section}.{nearest[0]}"
        return f"unknown key {name}; did you mean {meant}?"
    listing = f"; known keys: {', '.join(known[section])}" if len(known[section]) < 20 else ""
    return f"unknown key {name}{listing}"


def sectionless_key_fault(key: str) -> str | None:
    """The error for a key that is given without a section; None if nothing like it is known."""
    if key in ("model", "data"):
        return f"{key} is a section; did you mean {key}.path?"
    if elsewhere := _sections_with(key):
        return f"{key} needs its section: {elsewhere} (in a YAML file, under that section)"
    if key in OTHER_SECTIONS:
        return f"the section {key} is called {OTHER_SECTIONS[key]} here"
    if fault := _other_name_fault(key, key):
        return fault
    full = {name: f"{section}.{name}" for section, names in _known_keys().items() for name in names}
    full |= {section: section for section in RunConfig.model_fields}
    if nearest := difflib.get_close_matches(key, full, n=1, cutoff=_LIKENESS):
        return f"unknown key {key}; did you mean {full[nearest[0]]}?"
    return None


def _sections_with(key: str) -> str:
    """The full names of a key in all sections that have it."""
    return " / ".join(f"{section}.{key}" for section, names in _known_keys().items() if key in names)


def _other_name_fault(name: str, key: str) -> str | None:
    """The error for a key of another tool or of an older version, written as `name`; None if it is neither."""
    if key in OTHER_NAMES:
        return f"{name} is called {OTHER_NAMES[key]} here"
    for advice in (NO_SUCH_SETTING, *REPLACED_KEYS.values()):
        if key in advice:
            return f"{name} is not a key here: {advice[key]}"
    return None


@cache
def _known_keys() -> Mapping[str, tuple[str, ...]]:
    """The keys of each section."""
    from peft import LoraConfig
    from transformers import TrainingArguments

    passed = {"lora": LoraConfig.__dataclass_fields__, "train": TrainingArguments.__dataclass_fields__}
    known = {
        section: tuple(sorted(name for name in names if name not in REPLACED_KEYS[section]))
        for section, names in passed.items()
    }
    return {
        **{section: tuple(sorted(model.model_fields)) for section, model in OWN_SECTIONS.items()},
        "lora": known["lora"],
        "train": (*known["train"], *OWN_TRAIN_KEYS, "gradient_checkpointing"),
    }
