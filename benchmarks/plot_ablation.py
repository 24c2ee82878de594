"""Draws `docs/ablation.png` from `results/train_throughput.csv`: what each idea adds to the tutorial's recipe.

python benchmarks/plot_ablation.py
"""

import csv
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent
LABELS = {
    "tutorial: pad to 512": "the tutorial: 512 positions a sample",
    "without checkpointing": "without checkpointing",
    "padding removed": "padding removed (block mask)",
    "variable-length attention": "variable-length attention",
    "logits of label rows only": "logits of label rows only",
    "fused layers": "fused layers",
    "CUDA graphs": "CUDA graphs",
    "shared prefix, dropout 0": "shared prefix (dropout 0)",
}


def main() -> None:
    """Reads the latest row of each case and draws samples a second, and the peak memory beside."""
    with (ROOT / "results" / "train_throughput.csv").open(encoding="utf-8") as stream:
        rows = {row["case"]: row for row in csv.DictReader(stream)}
    speeds = [float(rows[case]["samples_per_s"]) for case in LABELS]
    memory = [float(rows[case]["peak_allocated_gb"]) for case in LABELS]
    figure = Figure(figsize=(9, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    positions = range(len(LABELS))
    axes.barh(positions, speeds, color=["tab:gray"] * 3 + ["tab:blue"] * (len(LABELS) - 3))
    for position, speed, peak in zip(positions, speeds, memory, strict=True):
        axes.text(speed + 5, position, f"{speed:.0f}  ({speed / speeds[0]:.1f}x, {peak:.1f} GB)", va="center")
    axes.set_yticks(positions, list(LABELS.values()))
    axes.invert_yaxis()
    axes.set_xlim(0, max(speeds) * 1.42)
    axes.set_xlabel("samples a second (times the tutorial's; peak memory allocated)")
    gpu = rows["CUDA graphs"]["gpu"]
    figure.suptitle(f"8 samples a step, LoRA r=8 on query_key_value, ChatGLM3-6B's shape, bf16, one {gpu}", fontsize=11)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(ROOT.parent / "docs" / "ablation.png")


if __name__ == "__main__":
    main()
