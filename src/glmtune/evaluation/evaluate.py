"""Evaluates runs, each beside its base: `glmtune eval` and `glmtune.evaluate`."""

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from glmtune.adapters.run_folder import RunManifest, find_adapter, is_checkpoint
from glmtune.data.weights import Paths
from glmtune.errors import ConfigError, show_text
from glmtune.evaluation import libraries
from glmtune.evaluation.choices import read_choices
from glmtune.evaluation.losses import Rendering
from glmtune.evaluation.measures import LEAST_ROWS, difference
from glmtune.evaluation.measuring import Measured, Tasks, measure
from glmtune.evaluation.results import DATA_SECTION, FOLDER_NAME, Candidate, Evaluation, write_evaluation
from glmtune.evaluation.rows import general_rows, read_rows
from glmtune.evaluation.stages import Stages, silent
from glmtune.files import check_writable_folder, storage_faults
from glmtune.inference.answering import release
from glmtune.inference.generate import check_batch_size
from glmtune.loading.devices import Dtype
from glmtune.loading.formats import Quantize
from glmtune.loading.runs import Loaded, load

DEFAULT_COUNT = 500
BASE_NAME = "base"
Runs = str | Path | Sequence[str | Path]


def evaluate(
    runs: Runs,
    data: Paths | None = None,
    *,
    count: int | None = DEFAULT_COUNT,
    choices: Paths = (),
    general: bool = False,
    generate: bool = True,
    base: bool = True,
    output: str | Path | None = None,
    seed: int = 0,
    fields: Mapping[str, str] | None = None,
    model_path: str | Path | None = None,
    dtype: Dtype = "auto",
    quantize: Quantize | Literal["auto"] = "auto",
    batch_size: int | None = None,
    max_new_tokens: int | None = None,
    stages: Stages = silent,
) -> Evaluation:
    """Evaluates one or several runs, each beside its base, on the same rows.

    Args:
        runs: Run folders, checkpoints, adapters or bases.
        data: Data files of any training format, with the reference answers.
        count: The most rows of them; of more, as many are drawn. None for all.
        choices: Multiple-choice files, in C-Eval's or MMLU's layout.
        general: Whether the built-in general questions are asked, to see what was forgotten.
        generate: Whether rows are answered too, or only their loss is computed.
        base: Whether the base is evaluated as well.
        output: The folder for the results; None for `evaluation` in each run folder.
        seed: Seed for drawing the rows.
        fields: Other column names: maps the standard name to the column used instead.
        model_path: The base, if it has moved since the runs.
        dtype: The dtype of the base.
        quantize: The format of the base's layers.
        batch_size: The most questions at once; None for a number that suits the device.
        max_new_tokens: The most tokens of an answer; None for 32 more than the longest reference, from
            64 to 512.
        stages: Shows the progress.

    Returns:
        The metrics of every model, the differences of each run from its base, and the answers.

    Raises:
        GlmtuneError: There is nothing to evaluate on, data or a run are wrong, or memory is too small.
    """
    began_s = time.monotonic()
    paths = [runs] if isinstance(runs, str | Path) else list(runs)
    choice_files = [choices] if isinstance(choices, str | Path) else list(choices)
    _check(paths, data, choice_files, general, count, batch_size)
    tasks = Tasks(
        general=general_rows() if general else (),
        choices={_choice_name(file, choice_files): read_choices(file) for file in choice_files},
        generates=generate,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    if data is not None:
        read_rows(data, count=count, seed=seed, fields=fields)  # before a large model is loaded
    folders = [_folder(path, output) for path in paths]
    comparison, num_in_files = _Comparison(stages, compares_base=base), 0
    for path, name in zip(paths, _names(paths), strict=True):
        loaded = load(path, model_path=model_path, dtype=dtype, quantize=quantize)
        if data is not None:
            rows, num_in_files = read_rows(data, count=count, seed=seed, fields=fields, join=loaded.join)
            tasks = replace(tasks, rows=rows)
        comparison.add(loaded, name, tasks)
        _give_up(loaded)
        del loaded
    files = [] if data is None else [data] if isinstance(data, str | Path) else data
    evaluation = Evaluation(
        comparison.candidates,
        tasks.num_rows(),
        files=[str(file) for file in files],
        num_rows_in_files=num_in_files,
        seed=seed,
        max_new_tokens=comparison.max_new_tokens,
        seconds=time.monotonic() - began_s,
        notes=_notes(data is not None and generate, comparison.candidates),
        folders=list(dict.fromkeys(folders)),
    )
    for folder in evaluation.folders:
        names = [name for name, place in zip(_names(paths), folders, strict=True) if place == folder]
        write_evaluation(evaluation.part_of(names), folder)
    return evaluation


class _Comparison:
    """Measures runs, and each base once for all runs that render their rows alike.

    Args:
        stages: Shows the progress.
        compares_base: Whether bases are measured at all.

    Attributes:
        candidates: What has been measured.
        max_new_tokens: The most tokens of an answer.
    """

    def __init__(self, stages: Stages, *, compares_base: bool) -> None:
        self._stages = stages
        self._compares_base = compares_base
        self._bases: dict[tuple[Any, ...], tuple[str, Measured]] = {}
        self.candidates: list[Candidate] = []
        self.max_new_tokens: int | None = None

    def add(self, loaded: Loaded, name: str, tasks: Tasks) -> None:
        """Measures a run, and before it its base if that has not been measured yet."""
        rendering = rendering_of(loaded)
        base = None
        if self._compares_base and loaded.adapter_path is not None:
            base = self._base(loaded, name, tasks, rendering)
        measured = measure(loaded.model, loaded.tokenizer, tasks, rendering, name, self._stages)
        self.max_new_tokens = measured.max_new_tokens
        self.candidates.append(_candidate(name, str(loaded.adapter_path or loaded.base_path), measured, base))

    def _base(self, loaded: Loaded, name: str, tasks: Tasks, rendering: Rendering) -> tuple[str, Measured]:
        key = (loaded.base_path, loaded.quantize, loaded.join, rendering)
        if key not in self._bases:
            own_name = f"base of {name}" if self._bases else BASE_NAME
            with loaded.model.disable_adapter():
                measured = measure(loaded.model, loaded.tokenizer, tasks, rendering, own_name, self._stages)
            self._bases[key] = own_name, measured
            self.candidates.append(_candidate(own_name, loaded.base_path, measured))
        return self._bases[key]


def rendering_of(loaded: Loaded) -> Rendering:
    """How the rows are rendered: as in the training of the run."""
    manifest = None if loaded.adapter_path is None else RunManifest.read(loaded.adapter_path)
    if manifest is None:
        return Rendering(loaded.template, loaded.system, None)
    data = manifest.config.get("data", {})
    return Rendering(
        loaded.template,
        loaded.system,
        data.get("max_length"),
        data.get("overlong", "cut"),
        data.get("loss_weight", "token"),
    )


def _check(
    paths: Sequence[str | Path],
    data: Paths | None,
    choices: Sequence[str | Path],
    general: bool,
    count: int | None,
    batch_size: int | None,
) -> None:
    if not paths:
        raise ConfigError("there is nothing to evaluate: name a run folder, a checkpoint or a base")
    if data is None and not choices and not general:
        raise ConfigError(
            "there is nothing to evaluate on: give --data FILE with reference answers, --choices FILE with "
            "multiple-choice questions, or --general for the built-in general questions"
        )
    if count is not None and count < 1:
        raise ConfigError(f"--count: expected a whole number of at least 1; found {count}")
    check_batch_size(batch_size)
    for path in paths:
        find_adapter(path)  # raises where there is nothing of the kind


def _choice_name(file: str | Path, files: Sequence[str | Path]) -> str:
    """The name of a multiple-choice file in tables: without its folder, where that is enough to tell it."""
    name = Path(file).name
    is_alone = [Path(each).name for each in files].count(name) == 1
    is_section = name in (DATA_SECTION, "general")
    return name if is_alone and not is_section else str(file)


def _names(paths: Sequence[str | Path]) -> list[str]:
    """Short names for tables: the last part of each path, the whole path where that is not unique."""
    short = []
    for path in paths:
        folder = Path(path).expanduser().absolute()
        short.append(f"{folder.parent.name}/{folder.name}" if is_checkpoint(folder) else folder.name)
    return [
        str(path) if short.count(name) > 1 or name == BASE_NAME else name
        for path, name in zip(paths, short, strict=True)
    ]


def _folder(path: str | Path, output: str | Path | None) -> Path:
    """Where the results of a run are written, checked before anything is loaded."""
    if output is not None:
        folder = Path(output).expanduser()
    else:
        adapter = find_adapter(path)
        folder = (Path(path).expanduser() if adapter is not None else Path()) / FOLDER_NAME
    with storage_faults(show_text(str(folder))):
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder}: expected a folder for the results, found a file; choose another --output")
        check_writable_folder(folder)
    return folder


def _candidate(name: str, path: str, measured: Measured, base: tuple[str, Measured] | None = None) -> Candidate:
    differences = {}
    if base is not None:
        for section, measures in measured.measures.items():
            compared = {key: each for key, each in measures.items() if key != "perplexity"}  # the loss says the same
            found = {key: difference(each, base[1].measures[section][key]) for key, each in compared.items()}
            differences[section] = {key: each for key, each in found.items() if each is not None}
    compared_with = None if base is None else base[0]
    return Candidate(name, path, compared_with, measured.metrics(), differences, measured.answers)


def _notes(needs_libraries: bool, candidates: Sequence[Candidate]) -> list[str]:
    notes = []
    if needs_libraries and (missing := libraries.missing_packages()):
        notes.append(f"ROUGE and BLEU are left out, as {', '.join(missing)} is missing: {libraries.HOW_TO_INSTALL}")
    if any(not found for candidate in candidates for found in candidate.differences.values()):
        notes.append(
            f"With fewer than {LEAST_ROWS} rows, no differences from the base are shown: too few for an interval"
        )
    return notes


def _give_up(loaded: Loaded) -> None:
    """Frees a model before the next one is loaded."""
    release(loaded.model)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
