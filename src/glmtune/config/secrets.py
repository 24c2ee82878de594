"""Secrets among the settings, such as `train.hub_token`: they are used, but neither recorded nor shown."""

from collections.abc import Mapping
from typing import Any


def is_secret(key: str) -> bool:
    """Whether a key, full or within its section, holds a secret."""
    return key.strip().endswith("_token")


def without_secret(override: str) -> str:
    """A `section.key=value` to be shown: as it is, or without a value that is a secret."""
    key, equals, _ = override.partition("=")
    return f"{key}=..." if equals and is_secret(key) else override


def without_secrets(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of settings, or of sections of settings, that leaves secrets out."""
    return {
        key: without_secrets(value) if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if not is_secret(key)
    }
