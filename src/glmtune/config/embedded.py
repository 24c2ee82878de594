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
    return "base: the tiny built-in one, only for trying things out (model.path is not set)"


def embedded_data() -> Path:
    """The example persona data set that ships in the package."""
    return _embedded("persona.json")


def _embedded(name: str) -> Path:
    return Path(str(resources.files("glmtune"))) / "assets" / "tiny" / name
