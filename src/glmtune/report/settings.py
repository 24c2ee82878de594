"""The settings of a run in words, and the settings in which runs differ."""

from collections.abc import Mapping, Sequence
from typing import Any

from glmtune.language import localise
from glmtune.report.facts import RunFacts

# Said in words below, or of no interest to a reader.
_SAID = frozenset(
    (
        *("output_dir", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps"),
        *("learning_rate", "lr_scheduler_type", "warmup_steps", "warmup_ratio", "optim", "save_on_each_node"),
        "resume_from_checkpoint",
    )
)


def settings_in_words(facts: RunFacts) -> list[tuple[str, str]]:
    """What each setting is called, and its value in words."""
    model, data, prompt = facts.section("model"), facts.section("data"), facts.section("prompt")
    lora, train = facts.section("lora"), facts.section("train")
    targets = lora.get("target_modules")
    num_samples = train.get("per_device_train_batch_size", 1) * train.get("gradient_accumulation_steps", 1)
    passes = train.get("num_train_epochs")
    length = f"{train['max_steps']:,.0f} steps" if (train.get("max_steps") or 0) > 0 else f"{passes:g} epochs"
    rows = [
        ("base model", facts.manifest.base_path or localise("the tiny built-in toy model")),
        ("format of the base", _join([model.get("dtype"), model.get("quantize")])),
        ("starts from adapter", model.get("adapter_path")),
        ("training data", _paths(data.get("path")) or localise("the built-in example persona")),
        ("evaluation data", _evaluation(data)),
        ("longest sample", localise(f"{data.get('max_length')} tokens") if data.get("max_length") else None),
        ("prompt format", facts.manifest.template),
        ("system prompt", prompt.get("system") or localise("none")),
        ("LoRA", f"r={lora.get('r')}, alpha={lora.get('lora_alpha')}, dropout={lora.get('lora_dropout')}"),
        ("adapted layers", targets if isinstance(targets, str) else ", ".join(sorted(targets or []))),
        ("samples per step", f"{num_samples:,}"),
        ("length of the run", localise(length)),
        ("learning rate", _learning_rate(train)),
        ("optimiser", train.get("optim")),
    ]
    others = [f"{key}={value}" for key, value in train.items() if key not in _SAID and value is not None]
    return [(localise(name), str(value)) for name, value in (*rows, ("further settings", "  ".join(others))) if value]


def _evaluation(data: Mapping[str, Any]) -> str | None:
    if path := _paths(data.get("eval_path")):
        return path
    fraction = data.get("eval_fraction") or 0
    return localise(f"{100 * fraction:g}% of the samples, set aside") if fraction else None


def _paths(value: Any) -> str:
    return value if isinstance(value, str) else ", ".join(map(str, value or []))


def _join(parts: Sequence[Any]) -> str:
    return ", ".join(str(part) for part in parts if part not in (None, "none"))


def _learning_rate(train: Mapping[str, Any]) -> str:
    parts = [f"{train.get('learning_rate', 0):g}", train.get("lr_scheduler_type")]
    warmup = train.get("warmup_steps") or train.get("warmup_ratio")
    return _join([*parts, localise(f"warmup {warmup:g}") if warmup else None])


def differing_settings(runs: Sequence[RunFacts]) -> list[tuple[str, list[str]]]:
    """The keys that have different values in some runs, with the value in each; folders and data fingerprints apart."""
    flat = [_flat(run) for run in runs]
    keys = list(dict.fromkeys(key for values in flat for key in values))
    found = []
    for key in keys:
        values = [values.get(key) for values in flat]
        if any(value != values[0] for value in values):
            found.append((key, ["—" if value is None else str(value) for value in values]))
    return found


def _flat(run: RunFacts) -> dict[str, Any]:
    values = {"model.path": run.manifest.base_path}
    for name, section in run.manifest.config.items():
        values |= {f"{name}.{key}": value for key, value in section.items()}
    for key in ("train.output_dir", "train.resume_from_checkpoint"):
        values.pop(key, None)
    values["model.path"] = run.manifest.base_path
    return values | {f"version of {name}": version for name, version in run.manifest.versions.items()}
