"""Loads what has been trained on the page, without touching what others are served."""

import threading
from itertools import chain, count
from pathlib import Path

from glmtune.adapters.run_folder import find_adapter
from glmtune.errors import ModelError
from glmtune.server.models import Models, ServedModel, check_name, name_of

_MOST_CHARACTERS = 96  # leaves room for a number


class Results:
    """Loads runs into the engine, each under a name of its own.

    Args:
        models: The server's.
    """

    def __init__(self, models: Models) -> None:
        self._models = models
        self._loading = threading.Lock()
        self._loaded: dict[Path, ServedModel] = {}

    def load(self, run: Path) -> str:
        """Loads a run in place of what was loaded from the same folder; models that others have loaded stay.

        Args:
            run: The run folder.

        Returns:
            The model's name: the folder's, with a number if that is taken.

        Raises:
            GlmtuneError: There is no adapter yet, or it cannot be served.
        """
        adapter = find_adapter(run)
        if adapter is None:
            raise ModelError(f"{run} has no adapter yet")
        run = run.resolve()
        with self._loading:
            served = {model.name: model for model in self._models.served}
            own = self._loaded.get(run)
            if own is not None and served.get(own.name) == own:
                model = self._models.add(own.name, adapter)
            else:
                name = name_of(run)
                names = chain([name], (f"{name[:_MOST_CHARACTERS]}-{number}" for number in count(2)))
                free = next(each for each in names if each not in served)
                model = self._models.add_new(check_name(free), adapter)
            self._loaded[run] = model
            return model.name
