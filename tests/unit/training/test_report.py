"""Without these, a finished run could leave a wrong picture of its loss, or results that are no JSON."""

import json
import warnings
from pathlib import Path

import pytest

from glmtune.training.report import draw_losses, smooth, write_results


def test_picture(tmp_path: Path) -> None:
    file = tmp_path / "loss.png"
    history = [{"step": n, "loss": 3.0 - n} for n in range(3)] + [{"step": 2, "eval_loss": 1.5}, {"step": 2}]
    assert draw_losses(history, file)
    assert file.read_bytes().startswith(b"\x89PNG")
    assert draw_losses([{"step": 1, "loss": 2.0}], file)


def test_nothing_to_draw(tmp_path: Path) -> None:
    assert not draw_losses([{"step": 1, "eval_loss": 2.0}], tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()


def test_smoothing_is_fair_to_the_first_values() -> None:
    assert smooth([4.0, 4.0, 4.0], weight=0.9) == pytest.approx([4.0, 4.0, 4.0])
    assert smooth([0.0, 1.0], weight=0.5) == pytest.approx([0.0, 2 / 3])


def test_results_are_valid_json(tmp_path: Path) -> None:
    write_results({"loss": float("nan"), "steps": 3}, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == {"loss": None, "steps": 3}


def test_without_a_chinese_font_the_picture_stays_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a row of boxes; matplotlib warns of letters that it has no shape for."""
    monkeypatch.setenv("GLMTUNE_LANG", "zh")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw_losses([{"step": n, "loss": 3.0 - n} for n in range(3)], tmp_path / "loss.png")
