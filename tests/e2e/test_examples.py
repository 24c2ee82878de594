"""Every file in examples/ does what it is there for, on the embedded tiny base. test_distributed runs two-gpus.sh."""

import json
import os
import sys
from pathlib import Path

import pytest

import glmtune
import processes
from glmtune.config import embedded_data

EXAMPLES = Path(__file__).parents[2] / "examples"
# Of an example all stays but the base, where its results go, and how long it takes.
SHORT = ["model.path=null", "train.use_cpu=true", "train.max_steps=2", "train.logging_steps=1"]
ON_CPU = {"tutorial.yaml": ["model.dtype=auto"]}  # float16 needs a GPU


def run(command: list[str], folder: Path, **variables: str) -> str:
    binaries = Path(sys.executable).parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    done = processes.run(*command, cwd=folder, env=environment | variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_an_example_trains(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES.parent)  # where its header says that it is run
    data = [] if example.stem == "tools" else [f"data.path={embedded_data()}"]
    folder = tmp_path / "run"
    result = glmtune.train(example, *SHORT, *data, *ON_CPU.get(example.name, []), f"train.output_dir={folder}")
    assert 0 < result.last_loss < 20
    assert (folder / "adapter_model.safetensors").is_file()
    assert ("eval_loss" in (folder / "trainer_log.jsonl").read_text(encoding="utf-8")) == ("early" in example.name)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ["train.gradient_accumulation_steps=1"]),
        (["train.gradient_accumulation_steps=4"], ["train.gradient_accumulation_steps=4"]),
    ],
)
def test_the_steps_of_two_gpus_can_be_set(tmp_path: Path, given: list[str], expected: list[str]) -> None:
    torchrun = tmp_path / "torchrun"
    torchrun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    torchrun.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    arguments = [*given, "train.max_steps=2"]
    done = processes.run(EXAMPLES / "two-gpus.sh", *arguments, env={**os.environ, "PATH": path})
    printed = done.stdout.split()
    assert [each for each in printed if "accumulation" in each] == expected
    assert printed[-1] == "train.max_steps=2"


def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path: Path) -> None:
    cells = json.loads((EXAMPLES / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    printed = run([sys.executable, "-c", code], tmp_path, CUDA_VISIBLE_DEVICES="", PYTHONIOENCODING="utf-8")
    assert "小青" in printed.split("请问你是谁？")[-1]  # it has learnt who it is
    assert (tmp_path / "output" / "tutorial-merged" / "config.json").is_file()
