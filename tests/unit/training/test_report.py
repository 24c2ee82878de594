"""Without these, a finished run could leave a wrong picture of its loss, or results that are no JSON."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy
import pytest
from matplotlib import colors, image
from numpy.typing import NDArray

from glmtune.report.curves import smooth
from glmtune.training.report import draw_losses, write_results


def draw(history: list[dict[str, float]], folder: Path) -> NDArray[Any]:
    """The picture of a history, [height, width, RGB] from 0 to 255."""
    assert draw_losses(history, folder / "loss.png")
    pixels: NDArray[Any] = (image.imread(folder / "loss.png")[..., :3] * 255).round()
    return pixels


def where(pixels: NDArray[Any], color: str) -> NDArray[Any]:
    """Rows and columns of the pixels of one of matplotlib's colours, from the top left."""
    rgb = numpy.array(colors.to_rgb(color)) * 255
    return numpy.argwhere((abs(pixels - rgb) < 1).all(axis=-1))


@pytest.mark.parametrize("slope", [-1, 1], ids=["falling", "rising"])
def test_the_picture_shows_where_the_loss_was_going(tmp_path: Path, slope: int) -> None:
    pixels = draw([{"step": n, "loss": 3.0 + slope * n} for n in range(9)], tmp_path)
    assert pixels.shape == (600, 960, 3)
    curve = where(pixels, "tab:blue")
    lowest = curve[curve[:, 0].argmax()]
    assert (lowest[1] > 480) == (slope < 0)
    assert lowest[0] > 450
    assert numpy.ptp(curve[:, 1]) > 600


def test_the_picture_shows_the_evaluation_where_there_was_one(tmp_path: Path) -> None:
    history: list[dict[str, float]] = [{"step": n, "loss": 3.0 - n / 4} for n in range(9)]
    evaluated = where(draw([*history, {"step": 1, "eval_loss": 0.5}, {"step": 8}], tmp_path), "tab:orange")
    lowest = evaluated[evaluated[:, 0].argmax()]
    assert lowest[0] > 450
    assert lowest[1] < 480
    assert len(where(draw(history, tmp_path), "tab:orange")) == 0


def test_a_run_of_one_log_line_is_not_an_empty_picture(tmp_path: Path) -> None:
    pixels = draw([{"step": 1, "loss": 2.0}], tmp_path)
    is_blue = pixels[..., 2] - pixels[..., 0] > 20  # the grid is grey
    assert 4 < is_blue[200:400, 300:660].sum() < 400


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
