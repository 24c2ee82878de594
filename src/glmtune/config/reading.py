"""Reads a configuration from a file and overrides, and reports everything that is wrong with it at once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from glmtune.config.passed_keys import check_passed_keys, unknown_key_fault
from glmtune.config.sections import DataSection, ModelSection, PromptSection, RunConfig
from glmtune.config.yaml_text import parse_value, read_yaml
from glmtune.errors import ConfigError, summarise_faults

# Keys for which an empty value has a meaning: no system prompt, nothing between instruction and input.
_MAY_BE_EMPTY = ("prompt.system", "data.join")


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads and checks the configuration of a training run.

    Paths in it are relative to the current directory.

    Args:
        path: A YAML file; None to use only defaults and overrides.
        overrides: `section.key=value` settings, with values in YAML; the last one for a key takes precedence.

    Returns:
        The configuration, with defaults filled in.

    Raises:
        ConfigError: The file cannot be read, or keys or values are wrong; all faults in one message.
    """
    values = {} if path is None else read_yaml(Path(path))
    faults = [fault for override in overrides if (fault := _apply_override(values, override))]
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


def validate_names(config: RunConfig) -> None:
    """Checks the keys under `lora` and `train` of a configuration that was not made by `load_config`.

    Args:
        config: The configuration.

    Raises:
        ConfigError: Unknown or replaced keys, or values of the wrong type; all faults in one message.
    """
    faults = [fault for name in ("lora", "train") for fault in check_passed_keys(name, config.model_dump()[name])[1]]
    if faults:
        raise ConfigError(summarise_faults("configuration", faults))


def _apply_override(values: dict[str, Any], override: str) -> str | None:
    """Applies one `section.key=value` in place; returns the fault if that is not possible."""
    # Python uses lone surrogates for bytes of an argument that it could not decode.
    if any("\ud800" <= letter <= "\udfff" for letter in override):
        return f"{override!r} has bytes that are not UTF-8; set the terminal to UTF-8, or use a YAML file"
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or len(parts) < 2 or not all(parts):
        return f"{override!r} is not an override; write section.key=value, such as train.max_steps=10"
    if not text.strip() and key.strip() not in _MAY_BE_EMPTY:
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
        return unknown_key_fault("", location[0], RunConfig.model_fields)
    sections: dict[str, type[BaseModel]] = {"model": ModelSection, "data": DataSection, "prompt": PromptSection}
    return unknown_key_fault(f"{location[0]}.", location[1], sections[location[0]].model_fields)
