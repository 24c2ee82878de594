"""The prompt settings that a model inherits, for inference and for further training."""

from pathlib import Path
from typing import NamedTuple

from glmtune.adapters.run_folder import RunManifest
from glmtune.models.tokenizer import Tokenizer
from glmtune.prompts import Template


class PromptRecord(NamedTuple):
    """The prompt settings of a model.

    Attributes:
        template: The prompt template.
        system: The system prompt of conversations that have none.
        join: The separator between `instruction` and `input`.
    """

    template: Template
    system: str | None = None
    join: str = "\n"


def prompt_record(adapter_path: Path | None, base_path: str | Path | None, tokenizer: Tokenizer) -> PromptRecord:
    """Finds the prompt of an adapter on a base: the adapter's own record, else the base's, else the family's.

    Args:
        adapter_path: The adapter's folder; None for a base alone.
        base_path: The base's folder or hub id; None for the tiny base in the package. A merged folder has the record of
            the run that it came from.
        tokenizer: The base's tokenizer, which knows its family's template.

    Raises:
        AdapterError: A record is damaged.
    """
    manifest = RunManifest.read(adapter_path) if adapter_path is not None else None
    if manifest is None and base_path is not None and Path(base_path).is_dir():
        manifest = RunManifest.read(base_path)
    if manifest is None:
        return PromptRecord(tokenizer.template)
    return PromptRecord(manifest.template, manifest.system, manifest.setting("data.join"))
