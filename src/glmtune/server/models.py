"""The models that requests name: the base, and each of its adapters by its run's name."""

import logging
import os
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from glmtune.adapters.inheritance import prompt_record
from glmtune.adapters.run_folder import RunManifest, find_adapter, is_checkpoint
from glmtune.errors import AdapterError, ConfigError, ModelError, show_names, show_text
from glmtune.inference.engine.capacity import default_rows
from glmtune.inference.engine.engine import Engine
from glmtune.loading.base_weights import is_trained_base
from glmtune.loading.devices import Dtype
from glmtune.loading.formats import Quantize
from glmtune.loading.runs import Loaded, find_base, load
from glmtune.models.families import shape_of
from glmtune.models.tokenizer import Tokenizer
from glmtune.prompts import Template
from glmtune.server.errors import ApiError

BASE_NAME = "base"
_NAME = re.compile(r"[\w.:-]{1,100}")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedModel:
    """What a request's `model` stands for.

    Attributes:
        name: Its name.
        adapter: The engine's name of the adapter; None for the base alone.
        template: The prompt template that it was trained with.
        system: The system prompt of conversations that bring none.
        created: When it was loaded, in seconds since 1970.
    """

    name: str
    adapter: str | None
    template: Template
    system: str | None
    created: int


@dataclass(frozen=True)
class Runs:
    """What is to be served: a base, and runs on it by name, in order."""

    base_path: str | None
    adapters: dict[str, Path]


def find_runs(runs: Sequence[str], base: str | None) -> Runs:
    """Finds the base of some runs, before anything is loaded.

    Args:
        runs: Run folders, checkpoints, adapters, and at most one base folder; `NAME=RUN` gives a name.
        base: The base, if it is not where the runs recorded it; None for theirs.

    Returns:
        The base (None for the embedded one) and the adapters' folders.

    Raises:
        ConfigError: Two have the same name, or they are not on one base.
        GlmtuneError: A folder is no run, or its base cannot be found.
    """
    adapters: dict[str, Path] = {}
    bases = {} if base is None else {_real(base): base}
    for run in runs:
        name, path = _named(run)
        folder = find_adapter(path)
        if folder is None:
            bases[_real(path)] = path
            continue
        name = check_name(name or name_of(Path(path)))
        if name in adapters:
            raise ConfigError(f"two runs are called {name}; give one of them another name: NAME={path}")
        adapters[name] = folder
        if base is None:
            found = find_base(folder)
            bases[_real(found)] = found
    if len(bases) > 1:
        raise ConfigError(
            f"all runs have to be on one base, found {show_names(bases.values())}. Start a server for each, or say "
            "with --base that it is the same one"
        )
    return Runs(next(iter(bases.values()), None), adapters)


def _real(path: str) -> str:
    """By what the same base is recognised: the folder, or a hub id."""
    return os.path.realpath(Path(path).expanduser()) if Path(path).expanduser().exists() else path


def _named(run: str) -> tuple[str, str]:
    name, equals, path = run.partition("=")
    if not equals or Path(run).exists():
        return "", run
    if not path.strip():
        raise ConfigError(f"{run}: expected NAME=RUN, found no run behind the name")
    return name, path


def name_of(run: Path) -> str:
    """What a run is called: its folder's name; that of a checkpoint is `RUN:checkpoint-N`."""
    run = run.expanduser().absolute()
    name = f"{run.parent.name}:{run.name}" if is_checkpoint(run) else run.name
    return re.sub(r"[^\w.:-]+", "-", name)[:100]


def check_name(name: str) -> str:
    """A name that may stand in requests and addresses.

    Raises:
        ConfigError: It may not.
    """
    if not _NAME.fullmatch(name) or name in (BASE_NAME, ".", ".."):
        raise ConfigError(
            f"{show_text(name, 60)!r} cannot be a model's name: expected letters, digits and . _ - :, and not base"
        )
    return name


class Models:
    """A base in an engine, and the adapters that are loaded.

    Args:
        engine: The engine.
        loaded: The base.
        allowed: Folders from which adapters may be loaded while running.
    """

    def __init__(self, engine: Engine, loaded: Loaded, allowed: Sequence[str | Path] = ()) -> None:
        self.engine = engine
        self.tokenizer: Tokenizer = loaded.tokenizer
        self.max_length = shape_of(loaded.model).context_length
        self._loaded = loaded  # keeps the model alive
        self._allowed = [os.path.realpath(Path(folder).expanduser()) for folder in allowed]
        for folder in self._allowed:
            if not Path(folder).is_dir():
                raise ConfigError(f"--adapters-from: {folder} is not a folder")
        base = ServedModel(BASE_NAME, None, loaded.template, loaded.system, int(time.time()))
        # Replaced as a whole, since other threads than the event loop's do it: reading an adapter takes its time.
        self._changing = threading.RLock()
        self._served: dict[str, ServedModel] = {BASE_NAME: base}

    @property
    def served(self) -> list[ServedModel]:
        """Adapters in the order in which they were loaded, then the base."""
        adapters = [model for model in self._served.values() if model.adapter is not None]
        return [*adapters, self._served[BASE_NAME]]

    def get(self, name: str | None) -> ServedModel:
        """The model of a name; the first one if there is none.

        Raises:
            ApiError: There is no such model.
        """
        if name is None:
            return self.served[0]
        if name not in self._served:
            there_are = show_names(model.name for model in self.served)
            raise ApiError(
                f"there is no model {show_text(name, 60)}; there are: {there_are}",
                status=404,
                param="model",
                code="model_not_found",
            )
        return self._served[name]

    def add(self, name: str, folder: Path) -> ServedModel:
        """Loads an adapter into the engine, in place of one of that name if there is one.

        Raises:
            AdapterError: It does not fit, or has to be served by itself.
        """
        with self._changing:
            # Its records first: an adapter that only the engine knew of could be neither used nor taken out.
            manifest = RunManifest.read(folder)
            record = prompt_record(folder, self._loaded.base_path, self.tokenizer)
            self.engine.load_adapter(name, folder)  # steps go on while it is read
            if manifest is not None and not is_trained_base(manifest, self._loaded.base_path):
                _logger.warning("%s was trained on a base with other weights, so replies may make no sense", folder)
            model = ServedModel(name, name, record.template, record.system, int(time.time()))
            self._served = {**self._served, name: model}
            return model

    def add_new(self, name: str, folder: Path) -> ServedModel:
        """Loads an adapter unless its name has been taken since it was looked for.

        Raises:
            AdapterError: It has, or as `add`.
        """
        with self._changing:
            if name in self._served:
                raise AdapterError(f"there is already a model {name}")
            return self.add(name, folder)

    def remove(self, name: str) -> None:
        """Takes an adapter out.

        Raises:
            ApiError: There is none of that name, or requests still use it.
        """
        if self.get(name).adapter is None:
            raise ApiError("the base itself stays loaded", status=409, param="name")
        with self._changing:
            try:
                self.engine.unload_adapter(name)
            except AdapterError as error:
                raise ApiError(str(error), status=409, param="name") from error
            self._served = {key: model for key, model in self._served.items() if key != name}

    def find_allowed(self, path: str, name: str | None) -> tuple[str, Path]:
        """Name and folder of an adapter that is to be loaded at a client's request.

        Args:
            path: A folder, absolute or within an allowed one.
            name: What it is to be called; None for its own name.

        Raises:
            ApiError: It is not within an allowed folder (whether it exists or not), is no adapter, or the name is
                taken.
        """
        folder = self._within_allowed(path)
        try:
            adapter = find_adapter(folder)
            name = check_name(name or name_of(folder))
        except ConfigError as error:
            raise ApiError(str(error), param="name") from error
        except (ModelError, AdapterError) as error:
            raise ApiError("there is no adapter in this folder", status=404, param="path") from error
        if adapter is None or self._outside(adapter):
            raise ApiError("there is no adapter in this folder", status=404, param="path")
        if name in self._served:
            raise ApiError(f"there is already a model {name}; unload it first, or give another name", status=409)
        return name, adapter

    def _within_allowed(self, path: str) -> Path:
        if not self._allowed:
            raise ApiError(
                "loading adapters is off; start the server with --adapters-from FOLDER to allow it",
                status=403,
                param="path",
            )
        try:
            tried = [Path(os.path.realpath(os.path.join(folder, path))) for folder in self._allowed]
            inside = [folder for folder in tried if not self._outside(folder)]
            found = next((folder for folder in inside if folder.is_dir()), None)
        except (ValueError, OSError) as error:  # a null character, or too long a name
            raise ApiError("path is not the name of a folder", param="path") from error
        if not inside:
            raise ApiError("path is outside of the folders that the server allows", status=403, param="path")
        if found is None:
            raise ApiError("there is no such folder", status=404, param="path")
        return found

    def _outside(self, folder: Path) -> bool:
        real = Path(os.path.realpath(folder))
        return not any(real.is_relative_to(allowed) for allowed in self._allowed)


def load_models(
    runs: Runs,
    *,
    dtype: Dtype = "auto",
    quantize: Quantize | Literal["auto"] = "auto",
    max_rows: int | None = None,
    allowed: Sequence[str | Path] = (),
) -> Models:
    """Loads a base and adapters into an engine.

    Args:
        runs: From `find_runs`.
        dtype: As for `load`, as is `quantize`.
        max_rows: The most requests that run at once; None for a number that suits the device.
        allowed: As for `Models`.

    Raises:
        GlmtuneError: Something cannot be loaded, or the engine does not support it.
    """
    from glmtune.config import embedded_base

    loaded = load(runs.base_path or embedded_base(), dtype=dtype, quantize=quantize)
    try:
        engine = Engine(loaded.model, loaded.tokenizer, max_rows=max_rows or default_rows(loaded.model.device))
    except ModelError as error:
        raise ModelError(f"{loaded.base_path} cannot be served: {error}") from error
    models = Models(engine, loaded, allowed)
    for name, folder in runs.adapters.items():
        models.add(name, folder)
    return models
