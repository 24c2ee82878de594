"""The contents of a run folder, and its manifest `glmtune.json`.

RUN/  adapter_config.json  adapter_model.safetensors    the adapter, as stock PEFT reads it
      checkpoint-N/                                     the same after N steps, with what resuming needs
      glmtune.json                                      the manifest below; checkpoints have a copy
"""

import json
import logging
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

from glmtune.config import value_types, without_secrets
from glmtune.errors import AdapterError, ModelError
from glmtune.files import write_json
from glmtune.hub import is_hub_id
from glmtune.prompts import TEMPLATES, Template

MANIFEST_NAME = "glmtune.json"
STATE_NAME = "trainer_state.json"
RESULTS_NAME = "all_results.json"
LOG_NAME = "trainer_log.jsonl"
SAMPLES_NAME = "eval_samples.jsonl"
ADAPTER_CONFIG_NAME = "adapter_config.json"
ADAPTER_NAMES = ("adapter_model.safetensors", "adapter_model.bin")
# What runs had that are older than the key.
_BEFORE_THE_KEY: Mapping[str, str] = MappingProxyType(
    {"model.quantize": "none", "data.join": "\n", "data.overlong": "cut", "data.loss_weight": "token"}
)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunManifest:
    """The record of a run's inputs and settings, which loading restores.

    Attributes:
        base_path: The base: an absolute path or a hub id; None for the tiny base in the package.
        template: The prompt template.
        system: The system prompt.
        data_fingerprint: Tells whether data are still the same.
        config: The resolved configuration without secrets, a dictionary for each section.
        versions: Versions of the packages that matter, and of Python.
        base_fingerprint: Tells whether the base's weights are still the same; empty in older runs.
        eval_fingerprint: Tells whether evaluation data of their own are still the same; empty in older runs, and where
            there have never been any.
        num_overlong: Samples left out because they are longer than `data.max_length` (`data.overlong=drop`).
    """

    base_path: str | None
    template: Template = "chatglm3"
    system: str | None = None
    data_fingerprint: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    base_fingerprint: str = ""
    eval_fingerprint: str = ""
    num_overlong: int = 0

    def setting(self, key: str) -> Any:
        """A setting of the run, by its full key such as `data.join`; None if it has none."""
        section, _, name = key.partition(".")
        return self.section(section).get(name, _BEFORE_THE_KEY.get(key))

    def section(self, name: str) -> Mapping[str, Any]:
        """A section of the run's configuration; empty if the run is older than it."""
        section: Mapping[str, Any] = self.config.get(name, {})
        return section

    def write(self, folder: str | Path) -> None:
        """Writes `glmtune.json` into a folder."""
        write_json(Path(folder) / MANIFEST_NAME, asdict(self))

    @classmethod
    def read(cls, folder: str | Path) -> "RunManifest | None":
        """Reads the manifest of a run folder or of a checkpoint in one.

        Args:
            folder: The folder; a checkpoint without a manifest of its own has its run's.

        Returns:
            The manifest; None where there is none, as beside an adapter that stock PEFT wrote.

        Raises:
            AdapterError: It is damaged.
        """
        folder = Path(folder).absolute()
        places = [folder, folder.parent] if is_checkpoint(folder) else [folder]
        file = next((place / MANIFEST_NAME for place in places if (place / MANIFEST_NAME).is_file()), None)
        if file is None:
            return None
        try:
            values: dict[str, Any] = {"base_fingerprint": "", "eval_fingerprint": "", "num_overlong": 0}
            values |= json.loads(file.read_text(encoding="utf-8"))
            manifest = cls(**{each.name: values[each.name] for each in fields(cls)})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AdapterError(f"{file} is damaged: {error!r}. Delete it to load the adapter without it") from error
        if faults := list(_type_faults(values)):
            raise AdapterError(f"{file} is damaged: {'; '.join(faults)}. Delete it to load the adapter without it")
        if manifest.template not in TEMPLATES:
            raise AdapterError(f"{file}: unknown template {manifest.template!r}; was it written by a newer glmtune?")
        return replace(manifest, config=without_secrets(manifest.config))  # which older runs have recorded


def _type_faults(values: Mapping[str, Any]) -> Iterator[str]:
    """What in a manifest is of the wrong type, a phrase for each key."""
    for name in ("base_path", "system"):
        if not isinstance(values[name], str | None):
            yield f"{name}: expected text or null; found {values[name]!r:.80}"
    for name in ("data_fingerprint", "base_fingerprint", "eval_fingerprint"):
        if not isinstance(values[name], str):
            yield f"{name}: expected text; found {values[name]!r:.80}"
    sections = values["config"]
    if not isinstance(sections, dict) or not all(isinstance(section, dict) for section in sections.values()):
        yield f"config: expected settings by section; found {sections!r:.80}"
        return
    for key, types in value_types().items():
        section, _, name = key.partition(".")
        value = sections.get(section, {}).get(name)
        if value is not None and not isinstance(value, types):
            expected = " or ".join(kind.__name__ for kind in types)
            yield f"config: {key}: expected {expected}; found {value!r:.80}"


def current_versions() -> dict[str, str]:
    """Versions of glmtune, of its main dependencies, and of Python."""
    packages = ("glmtune", "torch", "transformers", "peft", "accelerate", "datasets")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed as a package"
    return versions


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is called `checkpoint-N`."""
    return re.fullmatch(r"checkpoint-\d+", folder.name) is not None


def step_of(checkpoint: Path) -> int:
    """N of a folder called `checkpoint-N`."""
    return int(checkpoint.name.rpartition("-")[2])


def has_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / ADAPTER_CONFIG_NAME).is_file() and any((folder / name).is_file() for name in ADAPTER_NAMES)


def checkpoint_folders(run: str | Path) -> list[Path]:
    """All folders called `checkpoint-N` in a run folder, by N, whatever is in them."""
    run = Path(run)
    if not run.is_dir():
        return []
    found = [folder for folder in run.iterdir() if is_checkpoint(folder) and folder.is_dir()]
    return sorted(found, key=step_of)


def checkpoints(run: str | Path) -> list[Path]:
    """The complete checkpoints in a run folder, oldest first; one that was cut off while being written is left out."""
    return [folder for folder in checkpoint_folders(run) if has_adapter(folder) and (folder / STATE_NAME).is_file()]


def find_adapter(path: str | Path) -> Path | None:
    """Finds the adapter that a path stands for.

    Args:
        path: A run folder, a `checkpoint-N`, an adapter folder, a base folder, or the hub id of a base.

    Returns:
        The folder with the adapter; None for a base. A run that was interrupted stands for its newest checkpoint; also
        one that had finished and was resumed, once it has another checkpoint.

    Raises:
        ModelError: The path does not exist, or is nothing of the kind; says what was found there.
        AdapterError: The folder has half an adapter.
    """
    folder = Path(path).expanduser()
    if not folder.exists():
        if is_hub_id(str(path)):
            return None
        raise ModelError(f"{path} does not exist. Expected a run folder, a checkpoint-N in one, or a base model folder")
    if not folder.is_dir():
        raise ModelError(f"{path} is a file. Expected a run folder, a checkpoint-N in one, or a base model folder")
    if has_adapter(folder):
        return folder
    if saved := checkpoints(folder):
        _logger.warning("%s was interrupted before it ended; using its newest checkpoint, %s", path, saved[-1].name)
        return saved[-1]
    is_half_a_run = (folder / ADAPTER_CONFIG_NAME).is_file() or (folder / MANIFEST_NAME).is_file()
    if (folder / "config.json").is_file() and not (folder / ADAPTER_CONFIG_NAME).is_file():
        return None  # a merged folder is a base that has a manifest too
    found = sorted(entry.name for entry in folder.iterdir())
    listing = ", ".join(found[:12]) + (", ..." if len(found) > 12 else "") if found else "nothing"
    if is_half_a_run:
        raise AdapterError(
            f"{path} has no adapter weights (adapter_model.safetensors) and no complete checkpoint; found: {listing}"
        )
    raise ModelError(
        f"{path} is not a run folder, checkpoint, adapter or base model: there is neither adapter_config.json nor "
        f"config.json in it; found: {listing}"
    )
