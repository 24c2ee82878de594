"""Reads a configuration from a file and overrides, and reports everything that is wrong with it at once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from glmtune.config.embedded import embedded_config
from glmtune.config.passed_keys import check_passed_keys
from glmtune.config.secrets import without_secret
from glmtune.config.sections import RunConfig
from glmtune.config.unknown_keys import sectionless_key_fault, unknown_key_fault
from glmtune.config.yaml_text import parse_value, read_yaml
from glmtune.errors import ConfigError, summarise_faults

_DEMO = "demo"
# Keys for which an empty value has a meaning: no system prompt, nothing between instruction and input.
_MAY_BE_EMPTY = ("prompt.system", "data.join")
# Paths whose default (the built-in base or data, or none) an override asks for with null, whatever the file has.
_PATHS = ("model.path", "model.adapter_path", "data.path", "data.eval_path")


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads and checks the configuration of a training run.

    Paths in it are relative to the current directory.

    Args:
        path: A YAML file; `demo` for the demo's, unless there is a file of that name; None to use only defaults and
            overrides.
        overrides: `section.key=value` settings, with values in YAML; they take precedence over the file.

    Returns:
        The configuration, with defaults filled in.

    Raises:
        ConfigError: The file cannot be read, or keys or values are wrong; all faults in one message.
    """
    values = {} if path is None else read_yaml(_file(path))
    faults = _repeated(overrides)
    faults += [fault for override in overrides if (fault := _apply_override(values, override))]
    for section in ("lora", "train"):
        if isinstance(values.get(section), dict):
            values[section], section_faults = check_passed_keys(section, values[section])
            faults += section_faults
    try:
        config = RunConfig.model_validate({key: {} if value is None else value for key, value in values.items()})
    except ValidationError as error:
        faults += [_say(fault) for fault in error.errors()]
    if faults:
        raise ConfigError(summarise_faults("configuration" if path is None else str(path), faults))
    config.keep_arguments([] if path is None else [str(path)], overrides)
    return config


def _file(path: str | Path) -> Path:
    return embedded_config() if str(path) == _DEMO and not Path(path).is_file() else Path(path)


def load_arguments(arguments: Sequence[str | Path]) -> RunConfig:
    """Reads a configuration as `glmtune train` takes it.

    Args:
        arguments: A YAML file, if the first one is a file rather than an override, and overrides as for `load_config`.

    Returns:
        The configuration, defaults filled in.

    Raises:
        ConfigError: As for `load_config`.
    """
    first = next(iter(arguments), None)
    has_file = isinstance(first, Path) or (first is not None and "=" not in first)
    return load_config(first if has_file else None, [str(each) for each in arguments[has_file:]])


def validate_names(config: RunConfig) -> RunConfig:
    """Checks the keys under `lora` and `train` of a configuration that was not made by `load_config`.

    Args:
        config: The configuration.

    Returns:
        The configuration, with values given as text read as the numbers they stand for.

    Raises:
        ConfigError: Unknown or replaced keys, or values of the wrong type; all faults in one message.
    """
    lora, lora_faults = check_passed_keys("lora", config.lora)
    train, train_faults = check_passed_keys("train", config.train)
    if faults := lora_faults + train_faults:
        raise ConfigError(summarise_faults("configuration", faults))
    return config.model_copy(update={"lora": lora, "train": train})


def _repeated(overrides: Sequence[str]) -> list[str]:
    """A fault for each override that sets what an earlier one has set, as a whole or in part."""
    faults = []
    keys = [f"{override.partition('=')[0].strip()}." for override in overrides]
    for second, key in enumerate(keys):
        for first, earlier in enumerate(keys[:second]):
            if key.startswith(earlier) or earlier.startswith(key):
                given = [without_secret(overrides[index]) for index in (first, second)]
                faults.append(f"{given[0]} and {given[1]}: both set the same key. Keep one")
    return faults


def _apply_override(values: dict[str, Any], override: str) -> str | None:
    """Applies one `section.key=value` in place; returns the fault if that is not possible."""
    # Python uses lone surrogates for bytes of an argument that it could not decode.
    if any("\ud800" <= letter <= "\udfff" for letter in override):
        return f"{override!r} has bytes that are not UTF-8; set the terminal to UTF-8, or use a YAML file"
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if equals and len(parts) == 1 and (fault := sectionless_key_fault(key.strip())):
        return fault
    if not equals or len(parts) < 2 or not all(parts):
        return f"{override!r} is not an override; write section.key=value, such as train.max_steps=10"
    if not text.strip() and key.strip() not in _MAY_BE_EMPTY:
        if key.strip() in _PATHS:
            return f"{key.strip()} is empty; is a shell variable unset? {key.strip()}=null chooses its default"
        return f"{key.strip()} is empty; is a shell variable unset? Leave the key out to get its default"
    try:
        value = parse_value(text)
    except ConfigError as error:
        return f"{key}: {error}"
    section = values
    for part in parts[:-1]:
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            return f"{key}: {part} is a value, not a section"
    if value is None and key.strip() in _PATHS:
        section.pop(parts[-1], None)
    else:
        section[parts[-1]] = value
    return None


def _say(fault: Mapping[str, Any]) -> str:
    """One pydantic fault as a sentence."""
    # Only the first two parts of a location are keys; further ones name members of a union.
    location = [str(part) for part in fault["loc"]][:2]
    key = ".".join(location)
    if fault["type"] != "extra_forbidden":
        return f"{key}: {fault['msg'][0].lower()}{fault['msg'][1:]}; found {fault['input']!r}"
    if len(location) == 1:
        return sectionless_key_fault(key) or f"unknown key {key}; known keys: {', '.join(RunConfig.model_fields)}"
    return unknown_key_fault(location[0], location[1])
