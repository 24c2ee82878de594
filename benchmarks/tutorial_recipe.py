"""Trains at ChatGLM3-6B's full shape with the tutorial's settings; one row of results a run.

    python benchmarks/tutorial_recipe.py --base BASE --data huanhuan.json --commit HASH --results FILE.csv

The tutorial's settings: 4 samples x 2 accumulation steps, LoRA r=8 alpha=32 dropout 0.1 on query_key_value, learning
rate 1e-4, at most 512 tokens a sample, one system prompt; bf16 instead of its fp16.
"""

import argparse
import csv
import json
import platform
import statistics
from datetime import UTC, datetime
from pathlib import Path

import peft
import torch
import transformers

import glmtune

SYSTEM_PROMPT = "现在你要扮演皇帝身边的女人--甄嬛"


def run(base: Path, data: Path, output: Path, steps: int, checkpointing: bool) -> dict[str, object]:
    """Trains once and measures: loss at both ends, samples and tokens a second, peak memory."""
    torch.cuda.reset_peak_memory_stats()
    glmtune.train(
        None,
        f"model.path={base}",
        "model.dtype=bfloat16",
        f"data.path={data}",
        f"prompt.system={SYSTEM_PROMPT}",
        f"train.output_dir={output}",
        f"train.max_steps={steps}",
        f"train.gradient_checkpointing={str(checkpointing).lower()}",
        "train.save_steps=1000000",
        "train.logging_steps=10",
    )
    log = [json.loads(line) for line in (output / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    results = json.loads((output / "all_results.json").read_text(encoding="utf-8"))
    speeds = [entry["tokens_per_second"] for entry in log if "tokens_per_second" in entry][1:]
    return {
        "checkpointing": checkpointing,
        "steps": steps,
        "samples_per_step": 8,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "samples_per_second": round(results["train_samples_per_second"], 2),
        "tokens_per_second_median": round(statistics.median(speeds), 1) if speeds else "",
        "peak_allocated_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
        "peak_reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2),
    }


def main() -> None:
    """Runs with and without gradient checkpointing and appends the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("output/tutorial_recipe"))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--commit", required=True, help="the commit that is measured")
    arguments = parser.parse_args()
    for checkpointing in (True, False):
        folder = arguments.output / ("checkpointing" if checkpointing else "plain")
        row = run(arguments.base, arguments.data, folder, arguments.steps, checkpointing)
        row |= {
            "gpu": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
            "python": platform.python_version(),
            "commit": arguments.commit,
            "date": datetime.now(UTC).date().isoformat(),
        }
        is_new = not arguments.results.exists()
        with arguments.results.open("a", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(row), lineterminator="\n")
            if is_new:
                writer.writeheader()
            writer.writerow(row)
        print(json.dumps(row, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
