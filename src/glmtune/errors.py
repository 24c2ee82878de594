"""The one exception tree of glmtune, and how its messages are put together.

Every fault that a user can cause or fix is a `GlmtuneError`; the command line prints its message without a traceback.
Anything else that escapes is a bug.
"""

from collections.abc import Iterable, Sequence


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
    """A file or folder cannot be read or written: the disk is full, read-only or gone, or another process has it."""


class TrainingError(GlmtuneError):
    """Training had to stop: a non-finite loss, an interrupted run that cannot be resumed, a failed self-test."""


def summarise_faults(heading: str, faults: Sequence[str], limit: int = 20) -> str:
    """Joins faults under one heading, a line each, the first `limit` of them in full.

    Args:
        heading: What was being checked; the number of faults is appended to it.
        faults: At least one fault, each a full sentence that says where and what.
        limit: How many faults to print before the rest is only counted.

    Returns:
        The message: the fault itself where there is one, else a heading and a bulleted list.
    """
    if len(faults) == 1:
        return faults[0]
    lines = [f"{heading}: {len(faults)} faults", *(f"  - {fault}" for fault in faults[:limit])]
    if len(faults) > limit:
        lines.append(f"  ... and {len(faults) - limit} more")
    return "\n".join(lines)


def show_text(text: str, limit: int | None = None) -> str:
    """A text of unknown origin, safe and short enough for a message or a terminal.

    Args:
        text: What stands in a file, is the name of one, or was typed.
        limit: Most characters to show of it; None for all of them.

    Returns:
        One line. Characters that are not printable, among them those that a terminal acts on, are spelt as escapes.
        Of a longer text it is the beginning, and its length.
    """
    if limit is not None and len(text) > limit:
        return f"{show_text(text[:limit])}... ({len(text):,} characters)"
    if text.isprintable():
        return text
    # The ideographic space is common in Chinese text, and harmless.
    return "".join(char if char.isprintable() or char == "\u3000" else ascii(char)[1:-1] for char in text)


def show_names(names: Iterable[str], limit: int = 20) -> str:
    """Names of columns or files, a comma between them, made safe and short like `show_text`; the first `limit` ones."""
    names = list(names)
    shown = [show_text(name, 60) for name in names[:limit]]
    return ", ".join(shown if len(names) <= limit else [*shown, f"and {len(names) - limit:,} more"])
