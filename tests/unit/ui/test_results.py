"""Without these, a click on the page could change what the clients of the server are answered by."""

from pathlib import Path
from typing import Any

import pytest

from glmtune.errors import GlmtuneError
from glmtune.server.models import ServedModel
from glmtune.ui.results import Results


class Loading:
    """The models of a server, without an engine."""

    def __init__(self, *names: str) -> None:
        self.folders: dict[str, Path | None] = dict.fromkeys(names)
        self.count = 0
        self.models = {name: self.made(name) for name in names}

    def made(self, name: str) -> ServedModel:
        self.count += 1
        return ServedModel(name, name, "chatglm3", None, self.count)

    @property
    def served(self) -> list[ServedModel]:
        return list(self.models.values())

    def add(self, name: str, folder: Path) -> ServedModel:
        self.folders[name], self.models[name] = folder, self.made(name)
        return self.models[name]

    def add_new(self, name: str, folder: Path) -> ServedModel:
        assert name not in self.models
        return self.add(name, folder)


@pytest.fixture
def trained(tmp_path: Path) -> Any:
    def train(name: str) -> Path:
        run = tmp_path / name
        run.mkdir(parents=True)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (run / file).write_text("{}")
        return run

    return train


def test_a_served_model_of_the_same_folder_name_stays(trained: Any) -> None:
    models: Any = Loading("base", "ChatGLM", "ChatGLM-2")
    run = trained("test/ChatGLM")
    assert Results(models).load(run) == "ChatGLM-3"
    assert models.folders == {"base": None, "ChatGLM": None, "ChatGLM-2": None, "ChatGLM-3": run}


def test_a_folder_called_as_the_base_gets_a_number(trained: Any) -> None:
    models: Any = Loading("base")
    assert Results(models).load(trained("base")) == "base-2"


def test_a_run_that_is_trained_on_takes_its_own_place(trained: Any) -> None:
    models: Any = Loading("base")
    results = Results(models)
    first, second = trained("a/run"), trained("b/run")
    assert [results.load(run) for run in (first, second, first, second)] == ["run", "run-2", "run", "run-2"]
    assert models.folders == {"base": None, "run": first, "run-2": second}


def test_what_a_client_has_put_in_its_place_since_stays(trained: Any) -> None:
    models: Any = Loading("base")
    results, run = Results(models), trained("run")
    results.load(run)
    models.add("run", Path("elsewhere"))
    assert results.load(run) == "run-2"
    assert models.folders["run"] == Path("elsewhere")


def test_a_run_without_an_adapter_says_so(tmp_path: Path) -> None:
    models: Any = Loading("base")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(GlmtuneError, match="has no adapter yet"):
        Results(models).load(tmp_path)
    with pytest.raises(GlmtuneError, match="does not exist"):
        Results(models).load(tmp_path / "nowhere")
