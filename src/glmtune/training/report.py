"""The reports of a finished run: `training_loss.png` and `all_results.json`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from glmtune.files import write_json, written_aside
from glmtune.language import language, localise
from glmtune.report.curves import smooth
from glmtune.training.callbacks import plain_numbers

PICTURE_NAME = "training_loss.png"
# Fonts of Linux, Windows and macOS; without one of them matplotlib would draw boxes.
_CHINESE_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "WenQuanYi Micro Hei"),
    *("WenQuanYi Zen Hei", "Droid Sans Fallback", "Microsoft YaHei", "SimHei", "PingFang SC", "Heiti SC"),
    *("Hiragino Sans GB", "Noto Sans CJK JP"),
)


def draw_losses(history: Sequence[Mapping[str, Any]], file: str | Path) -> bool:
    """Plots the loss over the optimiser steps: as logged, smoothed, and on the evaluation data.

    Args:
        history: Log entries, each with `step` and optionally `loss` or `eval_loss`.
        file: The PNG file to write.

    Returns:
        Whether there was anything to plot.
    """
    train = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    evaluated = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    if not train:
        return False
    # Without pyplot, which has global state and looks for a display.
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    font = _chinese_font()
    steps, losses = zip(*train, strict=True)
    axes.plot(steps, losses, color="tab:blue", alpha=0.35, linewidth=1, marker="." if len(train) < 3 else "")
    axes.lines[0].set_label(_label("training", font))
    if len(train) >= 3:
        # The more points there are, the stronger the smoothing.
        weight = len(losses) / (len(losses) + 20)
        axes.plot(
            steps, smooth(losses, weight), color="tab:blue", linewidth=2, label=_label("training, smoothed", font)
        )
    if evaluated:
        axes.plot(
            *zip(*evaluated, strict=True),
            color="tab:orange",
            marker="o",
            linewidth=1.5,
            label=_label("evaluation", font),
        )
    axes.set_xlabel(_label("optimiser step", font), family=[font or "sans-serif"])
    axes.set_ylabel(_label("loss (mean cross entropy of a token, nats)", font), family=[font or "sans-serif"])
    axes.grid(alpha=0.3)
    axes.legend(prop={"family": [font or "sans-serif"]})
    with written_aside(file) as unfinished:
        figure.savefig(unfinished, format="png")
    return True


def _chinese_font() -> str | None:
    """A font for Chinese labels; None if the language is English or no such font is installed."""
    if language() == "en":
        return None
    names = {font.name for font in font_manager.fontManager.ttflist}
    return next((name for name in _CHINESE_FONTS if name in names), None)


def _label(text: str, font: str | None) -> str:
    return localise(text) if font else text


def write_results(results: Mapping[str, Any], file: str | Path) -> None:
    """Writes results as JSON, in the order given."""
    write_json(file, plain_numbers(results))
