"""What `glmtune train` reaches through the command line: several GPUs against one, the plan's choice against others.

    python benchmarks/full_shape.py BASE --tokenizer FOLDER
    python benchmarks/command_line.py devices --base BASE --data DATA.json
    python benchmarks/command_line.py choice --base BASE --data DATA.json

Each row is a whole run of the command; its speed is the median of the second half of its log lines, when few graphs are
left to record.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from rows import append_row
from workload import SYSTEM_PROMPT

RESULTS = Path(__file__).parent / "results"
GIB = 2**30


class Case(NamedTuple):
    """A run of the command.

    Attributes:
        name: What is compared.
        num_samples: Samples of an optimiser step on each device.
        settings: Beside those that all runs have.
        num_devices: Processes, one a GPU.
        num_steps: How long it runs.
        held_gib: What of the card's memory is taken away beforehand.
    """

    name: str
    num_samples: int
    settings: tuple[str, ...] = ()
    num_devices: int = 1
    num_steps: int = 120
    held_gib: float = 0


DEVICES = [
    Case("tutorial's recipe", 8, num_steps=1400),
    Case("tutorial's recipe", 8, num_devices=2, num_steps=1400),
    Case("157 samples a GPU", 157, num_steps=40),
    Case("157 samples a GPU", 157, num_devices=2, num_steps=40),
    Case("the same 8 samples, no dropout", 8, ("lora.lora_dropout=0",), num_steps=60),
    Case("the same 8 samples, no dropout", 4, ("lora.lora_dropout=0",), num_devices=2, num_steps=60),
]
WITHOUT_GRAPHS, WITH_GRAPHS = "train.cuda_graphs=false", "train.cuda_graphs=true"
CHOICE = [
    Case("8 samples", 8, num_steps=240),
    Case("8 samples", 8, (WITHOUT_GRAPHS,), num_steps=240),
    Case("8 samples", 8, ("train.max_tokens_per_device=490",), num_steps=240),
    Case("32 samples", 32, num_steps=80),
    Case("32 samples", 32, (WITHOUT_GRAPHS,), num_steps=80),
    Case("32 samples", 32, ("train.max_tokens_per_device=1000", WITH_GRAPHS), num_steps=80),
    Case("157 samples", 157, num_steps=40),
    Case("157 samples", 157, ("train.max_tokens_per_device=4808", WITHOUT_GRAPHS), num_steps=40),
    Case("157 samples", 157, ("train.max_tokens_per_device=1844", WITH_GRAPHS), num_steps=40),
    Case("157 samples, 40 GiB", 157, num_steps=40, held_gib=39),
    Case("157 samples, 40 GiB", 157, ("train.max_tokens_per_device=38465",), num_steps=40, held_gib=39),
    Case("157 samples, 40 GiB", 157, ("train.max_tokens_per_device=4808",), num_steps=40, held_gib=39),
]


def measure(case: Case, base: Path, data: Path, num_logged: int = 12) -> dict[str, Any]:
    """Runs a case and reads its log."""
    folder = Path(tempfile.mkdtemp())
    settings = [
        f"model.path={base}",
        f"data.path={data}",
        f"prompt.system={SYSTEM_PROMPT}",
        f"train.output_dir={folder / 'run'}",
        f"train.per_device_train_batch_size={case.num_samples}",
        "train.gradient_accumulation_steps=1",
        f"train.max_steps={case.num_steps}",
        f"train.logging_steps={max(case.num_steps // num_logged, 1)}",
        "train.save_strategy=no",
        *case.settings,
    ]
    command = [sys.executable, "-m", "glmtune.cli", "train", *settings]
    if case.num_devices > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={case.num_devices}"]
        command = [sys.executable, *launcher, *command[1:]]
    done = subprocess.run(command, capture_output=True, text=True, env={"OMP_NUM_THREADS": "8", **os.environ})
    output = done.stdout + done.stderr
    if done.returncode != 0:
        raise RuntimeError(output)
    for line in output.splitlines():
        if re.search("warn|guess", line, re.IGNORECASE):
            print(f"  said: {line.strip()[:300]}", flush=True)
    log = [json.loads(line) for line in (folder / "run" / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()]
    entries = [entry for entry in log if "loss" in entry]
    speeds = [entry["tokens_per_second"] for entry in entries[len(entries) // 2 :]]
    plan = next(line for line in output.splitlines() if "memory plan" in line)
    shutil.rmtree(folder)
    return {
        "case": case.name,
        "devices": case.num_devices,
        "samples_per_device": case.num_samples,
        "settings": " ".join(case.settings) or "the plan's choice",
        "plan": plan.partition("memory plan: ")[2],
        "steps": case.num_steps,
        "tokens_per_s_min": min(speeds),
        "tokens_per_s": statistics.median(speeds),
        "tokens_per_s_max": max(speeds),
        "first_loss": entries[0]["loss"],
        "last_loss": entries[-1]["loss"],
    }


def run(cases: Sequence[Case], base: Path, data: Path, file: Path, commit: str) -> None:
    """Measures all cases and appends a row for each."""
    for case in cases:
        held = torch.empty(int(case.held_gib * GIB), dtype=torch.uint8, device="cuda") if case.held_gib else None
        try:
            row = measure(case, base, data)
        except RuntimeError as error:  # a setting that does not fit is a result too, but not a row
            print(f"{case}: {str(error)[-1500:]}", flush=True)
            continue
        finally:
            del held
            torch.cuda.empty_cache()
        append_row(file, row, commit, gpu=torch.cuda.get_device_name(), transformers=transformers.__version__)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["devices", "choice"])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--first", type=int, default=0, help="the first case to run")
    parser.add_argument("--count", type=int, default=None, help="how many")
    parser.add_argument("--output", type=Path, default=None)
    arguments = parser.parse_args()
    cases = {"devices": DEVICES, "choice": CHOICE}[arguments.what][arguments.first :][: arguments.count]
    file = arguments.output or RESULTS / {"devices": "devices.csv", "choice": "plan_choice.csv"}[arguments.what]
    run(cases, arguments.base, arguments.data, file, arguments.commit)
