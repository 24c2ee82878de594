"""Draws `docs/memory.png` from `results/memory_settings.csv`: planned against measured peaks.

python benchmarks/plot_memory.py
"""

import csv
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent
MARKERS = {"none": "o", "int8": "s", "nf4": "^", "fp8": "D"}
NAMES = {"none": "16 or 32 bits", "int8": "int8", "nf4": "nf4", "fp8": "fp8"}


def main() -> None:
    """Reads the rows and draws the peaks, and below them how far plan and measurement are apart."""
    with (ROOT / "results" / "memory_settings.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    figure = Figure(figsize=(7.5, 7), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    peaks, errors = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.3])
    for quantize, marker in MARKERS.items():
        chosen = [row for row in rows if row["quantize"] == quantize]
        measured = [float(row["measured_gb"]) for row in chosen]
        peaks.scatter(measured, [float(row["planned_gb"]) for row in chosen], marker=marker, label=NAMES[quantize])
        errors.scatter(measured, [100 * float(row["planned_to_measured"]) - 100 for row in chosen], marker=marker)
    limit = 1.05 * max(float(row["measured_gb"]) for row in rows)
    peaks.plot([0, limit], [0, limit], color="tab:gray", linewidth=0.8)
    peaks.set_ylabel("planned peak, GB")
    peaks.set_ylim(0, limit)
    peaks.legend(title="base held in", frameon=False)
    errors.axhline(0, color="tab:gray", linewidth=0.8)
    errors.axhspan(-3, 10, color="tab:green", alpha=0.08, label="the target: -3 % to +10 %")
    errors.set_ylim(-4, 11)
    errors.set_xlim(0, limit)
    errors.set_ylabel("plan - measured, %")
    errors.set_xlabel("measured peak, GB allocated")
    errors.legend(frameon=False, loc="upper right")
    for axes in (peaks, errors):
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.suptitle(f"Peak memory of {len(rows)} settings, ChatGLM3-6B's shape, one {rows[0]['gpu']}", fontsize=11)
    figure.savefig(ROOT.parent / "docs" / "memory.png")


if __name__ == "__main__":
    main()
