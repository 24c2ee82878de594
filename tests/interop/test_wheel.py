"""The wheel: without this, an installed glmtune could lack files that a checkout has."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import glmtune
from glmtune.config import embedded_base

pytestmark = pytest.mark.interop

ROOT = Path(glmtune.__file__).parents[2]


def _run(*command: str | Path, cwd: Path, text: str = "") -> str:
    """Runs a command without this checkout on the path; returns its output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"GLMTUNE_LANG": "en", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, input=text, env=environment, capture_output=True, encoding="utf-8"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_wheel_works_in_an_environment_of_its_own(tmp_path: Path) -> None:
    _run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "dist", ROOT, cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert glmtune.__version__ in wheel.name
    venv.create(tmp_path / "venv", with_pip=True)
    bin_folder = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    constraints = ("--constraint", ROOT / "constraints.txt")
    _run(bin_folder / "pip", "install", "--quiet", *constraints, f"{wheel}[gguf]", cwd=tmp_path)
    command = bin_folder / "glmtune"
    assert glmtune.__version__ in _run(command, "--version", cwd=tmp_path)
    _run(command, "demo", cwd=tmp_path)
    base = next((tmp_path / "venv").rglob(f"assets/{embedded_base().parent.name}/base"))
    assert _run(command, "chat", base, cwd=tmp_path, text="你好\n").strip()
    _run(command, "export", base, "--output", "tiny.gguf", cwd=tmp_path)
    assert (tmp_path / "tiny.gguf").stat().st_size > 10**6
