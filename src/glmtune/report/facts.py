"""What a run folder holds, as far as it is there: a report is also made of a run that was interrupted."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmtune.adapters.run_folder import LOG_NAME, RESULTS_NAME, SAMPLES_NAME, RunManifest, checkpoints
from glmtune.errors import ConfigError
from glmtune.evaluation.results import FOLDER_NAME, RESULT_NAME

PREDICTIONS_NAME = "generated_predictions.jsonl"


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run.

    Attributes:
        folder: The run folder.
        name: What it is called in the report.
        manifest: Its record.
        log: The entries of `trainer_log.jsonl`.
        results: `all_results.json`; empty of a run that has not ended.
        evaluation: `evaluation/evaluation.json`; empty where there is none.
        predictions: The rows of its `generated_predictions.jsonl`.
        base_predictions: Those of the base.
        samples: The rows of `eval_samples.jsonl` of the last evaluation in training.
        first_samples: Those from before the first step.
    """

    folder: Path
    name: str
    manifest: RunManifest
    log: Sequence[Mapping[str, Any]] = ()
    results: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    predictions: Sequence[Mapping[str, Any]] = ()
    base_predictions: Sequence[Mapping[str, Any]] = ()
    samples: Sequence[Mapping[str, Any]] = ()
    first_samples: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def read(cls, folder: str | Path, name: str | None = None) -> "RunFacts":
        """Reads a run folder; a file in it that is missing or damaged counts as empty.

        Args:
            folder: The run folder.
            name: What to call it; None for the name of the folder.

        Raises:
            ConfigError: It is no run folder.
            AdapterError: Its record is damaged.
        """
        folder = Path(folder).expanduser()
        manifest = RunManifest.read(folder) if folder.is_dir() else None
        if manifest is None or not ((folder / LOG_NAME).is_file() or checkpoints(folder)):
            raise ConfigError(f"{folder}: expected a run folder, as glmtune train leaves it; there is none here")
        evaluation = folder / FOLDER_NAME
        samples = _rows(folder / SAMPLES_NAME)
        last = max((row["step"] for row in samples if isinstance(row.get("step"), int)), default=None)
        return cls(
            folder,
            name or folder.absolute().name,
            manifest,
            log=_rows(folder / LOG_NAME),
            results=_object(folder / RESULTS_NAME),
            evaluation=_object(evaluation / RESULT_NAME),
            predictions=_rows(evaluation / PREDICTIONS_NAME),
            base_predictions=_rows(evaluation / f"base_{PREDICTIONS_NAME}"),
            samples=_of_step(samples, last) if last else (),
            first_samples=_of_step(samples, 0),
        )

    def section(self, name: str) -> Mapping[str, Any]:
        """A section of its configuration."""
        values: Mapping[str, Any] = self.manifest.config.get(name, {})
        return values

    def points(self, name: str) -> list[tuple[float, float]]:
        """The steps and values of what the log has under a name; without those that are not finite."""
        pairs: list[tuple[Any, Any]] = [(entry.get("step"), entry.get(name)) for entry in self.log]
        return [(float(step), float(value)) for step, value in pairs if _is_number(step) and _is_number(value)]


def _of_step(samples: Sequence[Mapping[str, Any]], step: int) -> list[Mapping[str, Any]]:
    """The rows of a step; where a resumed run has answered again, its own."""
    numbered = enumerate(row for row in samples if row.get("step") == step)
    return list({row.get("index", number): row for number, row in numbered}.values())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _object(file: Path) -> dict[str, Any]:
    values = _json(file)
    return values if isinstance(values, dict) else {}


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _rows(file: Path) -> list[dict[str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
