"""The base and the data that ship in the package."""

from importlib import resources
from pathlib import Path


def embedded_base() -> Path:
    """The folder of the tiny base model that ships in the package."""
    return _embedded("base")


def say_base(path: str | None) -> str:
    """A line that says which base is used; explicit if it is the built-in one."""
    if path is not None:
        return f"base: {path}"
    return (
        "base: the tiny built-in toy model, only for trying things out; to train ChatGLM3-6B, add "
        "model.path=FOLDER, the folder of its weights"
    )


def say_data(path: str | list[str] | dict[str, float] | None) -> list[str]:
    """A line that says that the built-in data are used; none for other files, which are listed as they are read."""
    return ["data: the built-in example persona (data.path is not set)"] if path is None else []


def embedded_data() -> Path:
    """The example persona data set that ships in the package."""
    return _embedded("persona.json")


def embedded_config() -> Path:
    """The demo's configuration file, which the command line calls `demo`."""
    return _embedded("demo.yaml")


def _embedded(name: str) -> Path:
    return Path(str(resources.files("glmtune"))) / "assets" / "tiny" / name
