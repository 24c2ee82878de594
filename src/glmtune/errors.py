"""The one exception tree of glmtune.

Every fault that a user can cause or mend is a `GlmtuneError`; the command line prints its message without a traceback.
Anything else that escapes is a bug.
"""

from collections.abc import Sequence


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
