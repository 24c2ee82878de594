"""The exception hierarchy of glmtune, and helpers for its messages.

Every error that a user can cause or fix is a `GlmtuneError`; the command line prints its message without a traceback.
Any other exception that escapes is a bug.
"""

from collections.abc import Iterable, Sequence

_MOST_NAMES = 20


class GlmtuneError(Exception):
    """Base of all errors that glmtune raises on purpose."""


class ConfigError(GlmtuneError):
    """A configuration file, key or value is wrong."""


class DataError(GlmtuneError):
    """A data file or a sample in it is wrong."""


class ModelError(GlmtuneError):
    """A base model folder, its configuration, weights or tokenizer is wrong."""


class AdapterError(GlmtuneError):
    """A LoRA setting or an adapter on disk does not fit the model."""


class StorageError(GlmtuneError):
    """A file or folder cannot be read or written: the disk is full, read-only or gone, or another process
    is using it."""


class TrainingError(GlmtuneError):
    """Training had to stop: a non-finite loss, an interrupted run that cannot be resumed, a failed self-test."""


def summarise_faults(heading: str, faults: Sequence[str], limit: int = 20) -> str:
    """Lists faults under one heading, one per line, the first `limit` of them in full.

    Args:
        heading: What was being checked; the number of faults is appended.
        faults: At least one fault, each a full sentence that says what is wrong and where.
        limit: How many faults to print; the rest is only counted.

    Returns:
        The message: the fault itself if there is only one, else a heading and a bulleted list.
    """
    if len(faults) == 1:
        return faults[0]
    lines = [f"{heading}: {len(faults)} errors", *(f"  - {fault}" for fault in faults[:limit])]
    if len(faults) > limit:
        lines.append(f"  ... and {len(faults) - limit} more")
    return "\n".join(lines)


def show_text(text: str, limit: int | None = None) -> str:
    """A text of unknown origin, safe and short enough for a message or a terminal.

    Args:
        text: The contents or name of a file, or what the user typed.
        limit: Maximum number of characters to show; None for all.

    Returns:
        One line. Characters that are not printable, including those that a terminal interprets, are escaped. A text
        longer than `limit` is cut, and its length is given.
    """
    if limit is not None and len(text) > limit:
        return f"{show_text(text[:limit])}... ({len(text):,} characters)"
    if text.isprintable():
        return text
    # The ideographic space is common in Chinese text, and harmless.
    return "".join(char if char.isprintable() or char == "\u3000" else ascii(char)[1:-1] for char in text)


def show_names(names: Iterable[str]) -> str:
    """The first twenty names of columns or files, separated by commas, made safe and short as by `show_text`."""
    names = list(names)
    shown = [show_text(name, 60) for name in names[:_MOST_NAMES]]
    return ", ".join(shown if len(names) <= _MOST_NAMES else [*shown, f"and {len(names) - _MOST_NAMES:,} more"])
