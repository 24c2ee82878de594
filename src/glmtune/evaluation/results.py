"""The result of an evaluation, and the files that it leaves.

evaluation.json               metrics of every model, and differences with their intervals
generated_predictions.jsonl   prompt, label and predict of each row, as the field names them
general_predictions.jsonl     the same of the general questions
base_*.jsonl                  the same of the base that the run was compared with
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from glmtune.adapters.run_folder import current_versions
from glmtune.evaluation.measures import Difference
from glmtune.evaluation.text_metrics import Answer
from glmtune.files import storage_faults, write_json, write_text

FOLDER_NAME = "evaluation"
RESULT_NAME = "evaluation.json"
DATA_SECTION, GENERAL_SECTION = "data", "general"
_PREDICTIONS = {DATA_SECTION: "generated_predictions.jsonl", GENERAL_SECTION: "general_predictions.jsonl"}


@dataclass(frozen=True)
class Candidate:
    """A model that was evaluated.

    Attributes:
        name: Its name in tables.
        path: The adapter's folder; for a base, its folder or hub id.
        compared_with: The name of the base that it is compared with; None for a base.
        metrics: By section (`data`, `general`, or the name of a multiple-choice file), its metrics.
        differences: By section, the differences from the base, where they have an interval.
        answers: By section, its answers, in the order of the rows.
    """

    name: str
    path: str
    compared_with: str | None
    metrics: Mapping[str, Mapping[str, float]]
    differences: Mapping[str, Mapping[str, Difference]] = field(default_factory=dict)
    answers: Mapping[str, Sequence[Answer]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file, without the answers."""
        return {
            "name": self.name,
            "path": self.path,
            "compared_with": self.compared_with,
            "metrics": {section: _finite(values) for section, values in self.metrics.items()},
            "differences": {
                section: {name: _finite(asdict(each)) for name, each in values.items()}
                for section, values in self.differences.items()
            },
        }


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        candidates: The models, each base before the runs that are compared with it.
        num_rows: By section, how many rows or questions were evaluated.
        files: The data files, where there are any.
        num_rows_in_files: How many rows they have.
        seed: The seed by which rows were drawn.
        max_new_tokens: The most tokens of an answer.
        seconds: The time that it took, loading included.
        notes: What the reader must know, one line each.
        folders: The folders that results were written to.
    """

    candidates: Sequence[Candidate]
    num_rows: Mapping[str, int]
    files: Sequence[str] = ()
    num_rows_in_files: int = 0
    seed: int = 0
    max_new_tokens: int | None = None
    seconds: float = 0.0
    notes: Sequence[str] = ()
    folders: Sequence[Path] = ()

    def metrics(self, name: str, section: str = DATA_SECTION) -> Mapping[str, float]:
        """The metrics of the model of that name."""
        return next(each for each in self.candidates if each.name == name).metrics[section]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            "files": list(self.files),
            "num_rows": dict(self.num_rows),
            "num_rows_in_files": self.num_rows_in_files,
            "seed": self.seed,
            "max_new_tokens": self.max_new_tokens,
            "seconds": round(self.seconds, 1),
            "notes": list(self.notes),
            "candidates": [each.to_dict() for each in self.candidates],
            "versions": current_versions(),
        }

    def part_of(self, names: Sequence[str]) -> "Evaluation":
        """The result of some runs and of the bases that they are compared with."""
        runs = [each for each in self.candidates if each.name in names]
        bases = {each.compared_with for each in runs}
        return replace(self, candidates=[each for each in self.candidates if each in runs or each.name in bases])


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Writes the files above; those of an earlier evaluation are replaced.

    Args:
        evaluation: The result of one run, or of several, whose predictions are then told apart by their names.
        folder: Where to; it is created if needed.

    Raises:
        StorageError: They cannot be written.
    """
    runs = [each for each in evaluation.candidates if each.compared_with is not None]
    main = runs[0] if len(runs) == 1 else evaluation.candidates[0] if len(evaluation.candidates) == 1 else None
    with storage_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / RESULT_NAME).exists():  # an earlier evaluation, whose answers would be taken for this one's
            for name in _PREDICTIONS.values():
                for earlier in folder.glob(f"*{name}"):
                    earlier.unlink()
        for candidate in evaluation.candidates:
            prefix = "" if candidate is main else f"{candidate.name.replace('/', '-').replace(' ', '-')}_"
            for section, answers in candidate.answers.items():
                write_text(folder / f"{prefix}{_PREDICTIONS[section]}", "".join(map(_line, answers)))
        write_json(folder / RESULT_NAME, evaluation.to_dict())  # last, so that it tells of whole files


def _line(answer: Answer) -> str:
    row = {"prompt": answer.prompt, "label": answer.label, "predict": answer.predict}
    return json.dumps(row, ensure_ascii=False) + "\n"


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """The values, rounded, with None for what JSON cannot express."""
    return {name: round(value, 6) if math.isfinite(value) else None for name, value in values.items()}
