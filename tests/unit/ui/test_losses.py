"""Without these, the page's curve could show what is not so, or take the server's time from everybody else."""

import json
import os
from pathlib import Path

from glmtune.ui.losses import LossReader


def entries(*steps: int) -> str:
    return "".join(json.dumps({"step": step, "loss": step / 2, "max_steps": 9}) + "\n" for step in steps)


def test_a_log_is_read_as_it_grows(tmp_path: Path) -> None:
    file = tmp_path / "log"
    reader = LossReader(file)
    assert reader.read().last is None
    file.write_text(entries(1) + '{"step": 2, "loss": null}\n{"step": 3, "lo')
    assert reader.read().points == [(1, 0.5)]
    file.write_text(
        entries(1)
        + '{"step": 2, "loss": null}\n{"step": 3, "loss": 1.5}\n5\n{"loss": 1}\n{"step": 3, "eval_loss": 9}\n'
    )
    assert reader.read().points == [(1, 0.5), (3, 1.5)]
    assert reader.read().last == {"step": 3, "loss": 1.5}


def test_what_has_been_read_is_not_read_again(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text(entries(1, 2))
    reader = LossReader(file)
    reader.read()
    with file.open("r+") as stream:  # the same length, in the same place
        stream.write(entries(7))
    with file.open("a") as stream:
        stream.write(entries(3))
    assert [step for step, _ in reader.read().points] == [1, 2, 3]


def test_a_resumed_run_replaces_the_steps_that_it_trains_again(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text(entries(1, 2, 3))
    reader = LossReader(file)
    reader.read()
    (tmp_path / "new").write_text(entries(1, 2, 4, 5))
    os.replace(tmp_path / "new", file)
    assert [step for step, _ in reader.read().points] == [1, 2, 4, 5]
    file.write_text(entries(1))
    assert [step for step, _ in reader.read().points] == [1]
    file.unlink()
    assert reader.read().points == []


def test_a_long_curve_is_thinned_but_keeps_its_end(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text(entries(*range(1, 50_002)))
    progress = LossReader(file).read()
    assert 500 < len(progress.points) <= 1000
    assert progress.points[-1] == (50_001, 50_001 / 2)
    steps = [step for step, _ in progress.points]
    assert steps == sorted(steps)
