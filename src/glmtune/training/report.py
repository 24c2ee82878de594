"""What a run leaves for people to look at: `training_loss.png` and `all_results.json`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from glmtune.files import write_json, written_aside
from glmtune.training.callbacks import plain_numbers

PICTURE_NAME = "training_loss.png"


def draw_losses(history: Sequence[Mapping[str, Any]], file: str | Path) -> bool:
    """Draws the loss over the optimiser steps: as logged, smoothed, and on the evaluation data.

    Args:
        history: Log entries, each with `step` and perhaps `loss` or `eval_loss`.
        file: The PNG file to write.

    Returns:
        Whether there was anything to draw.
    """
    train = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    evaluated = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    if not train:
        return False
    # Without pyplot, which keeps state and looks for a display.
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps, losses = zip(*train, strict=True)
    axes.plot(steps, losses, color="tab:blue", alpha=0.35, linewidth=1, marker="." if len(train) < 3 else "")
    axes.lines[0].set_label("training")
    if len(train) >= 3:
        # The more points, the more of them a point of the smooth line stands for.
        weight = len(losses) / (len(losses) + 20)
        axes.plot(steps, smooth(losses, weight), color="tab:blue", linewidth=2, label="training, smoothed")
    if evaluated:
        axes.plot(*zip(*evaluated, strict=True), color="tab:orange", marker="o", linewidth=1.5, label="evaluation")
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss (mean cross entropy of a token, nats)")
    axes.grid(alpha=0.3)
    axes.legend()
    with written_aside(file) as unfinished:
        figure.savefig(unfinished, format="png")
    return True


def smooth(values: Sequence[float], weight: float) -> list[float]:
    """An exponential moving average that is fair to the first values.

    Args:
        values: At least one number.
        weight: Share of the past in each step of the average, from 0 to below 1.
    """
    smoothed = []
    average = total = 0.0
    for value in values:
        average = weight * average + (1 - weight) * value
        total = weight * total + (1 - weight)
        smoothed.append(average / total)
    return smoothed


def write_results(results: Mapping[str, Any], file: str | Path) -> None:
    """Writes results as JSON, in the order given."""
    write_json(file, plain_numbers(results))
