"""How much memory runs take at ChatGLM3-6B's shape, against what was planned; and what small cards can do.

    python benchmarks/memory.py settings --data huanhuan.json --commit HASH --results FOLDER
    python benchmarks/memory.py cards    --data huanhuan.json --commit HASH --results FOLDER --base FOLDER
    python benchmarks/memory.py loading  --data huanhuan.json --commit HASH --results FOLDER --base FOLDER

`settings` measures the peak of four steps in many settings. `cards` caps a process at what a card of a given size
leaves it and runs `glmtune train` with the planner's own choice, and then the tutorial's recipe without a cap.
`loading` loads a sharded folder and looks at the host. A base folder is written where there is none.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # as the command line does

import torch
import transformers
from full_shape import build_random_base
from rows import append_row
from train_throughput import StepClock
from workload import SYSTEM_PROMPT, load_samples, make_tokenizer, random_model

from glmtune.adapters.lora import attach_lora
from glmtune.config import load_config
from glmtune.data.packing import TokenizedSample, pack
from glmtune.data.samples import SampleDataset
from glmtune.loading.bases import load_base
from glmtune.loading.devices import GIB
from glmtune.loading.formats import quantize_layers
from glmtune.loading.shape import BaseShape
from glmtune.models.host_embedding import HostEmbedding
from glmtune.planning.memory import MemorySettings, Pass, estimate_memory
from glmtune.planning.planned import CONTEXT_GIB
from glmtune.planning.settings import spell
from glmtune.planning.shape import AdapterShape
from glmtune.planning.speed import DeviceSpeed
from glmtune.training import run as training
from glmtune.training.checkpointing import checkpoint_layers
from glmtune.training.flat import FlatParameters
from glmtune.training.graphs import GradientAccumulator
from glmtune.training.packed_model import PackedModel, fuse


@dataclass(frozen=True)
class Setting:
    """A run to measure.

    Attributes:
        tokens: Tokens of a pass.
        quantize: Format of the base.
        dtype: What is computed in.
        targets: LoRA's targets.
        r: Its rank.
        dropout: Its dropout.
        checkpointed: Checkpointed layers.
        offloads_embedding: Whether the embedding is on the host.
        offloads_checkpoints: Whether checkpoints are.
        is_fused: Whether layers are fused.
    """

    tokens: int
    quantize: str = "none"
    dtype: str = "bfloat16"
    targets: str = "query_key_value"
    r: int = 8
    dropout: float = 0.1
    checkpointed: int = 0
    offloads_embedding: bool = False
    offloads_checkpoints: bool = False
    is_fused: bool = True


SETTINGS = [
    Setting(448),
    Setting(2048),
    Setting(8192),
    Setting(2048, targets="all-linear"),
    Setting(2048, targets="all-linear", r=64, dropout=0.0),
    Setting(8192, targets="all-linear", r=16),
    Setting(2048, checkpointed=14),
    Setting(8192, checkpointed=28),
    Setting(16384, checkpointed=28, offloads_checkpoints=True),
    Setting(2048, dtype="float16"),
    Setting(1024, dtype="float32"),
    Setting(448, "fp8"),
    Setting(8192, "fp8"),
    Setting(448, "int8"),
    Setting(4096, "int8", targets="all-linear", checkpointed=20),
    Setting(448, "nf4"),
    Setting(448, "nf4", offloads_embedding=True),
    Setting(2048, "nf4", checkpointed=28),
    Setting(2048, "nf4", checkpointed=28, offloads_embedding=True, offloads_checkpoints=True),
    Setting(8192, "nf4", targets="all-linear", r=64),
    Setting(4096, "nf4", checkpointed=7),
    Setting(2048, is_fused=False),
    Setting(2048, "nf4", targets="all-linear", checkpointed=28, is_fused=False),
]


def versions() -> dict[str, Any]:
    return {"gpu": torch.cuda.get_device_name(), "transformers": transformers.__version__}


def measure_setting(setting: Setting, samples: Sequence[TokenizedSample]) -> dict[str, Any]:
    """Three steps of one pass each."""
    base = random_model("cuda", getattr(torch, setting.dtype))
    base_shape = BaseShape.of(base, base.dtype)
    quantize_layers(base, setting.quantize)
    if setting.offloads_embedding:
        base.set_input_embeddings(HostEmbedding(base.get_input_embeddings().weight))
    lora = {"r": setting.r, "lora_alpha": 32, "lora_dropout": setting.dropout, "target_modules": setting.targets}
    model = PackedModel(attach_lora(base, lora)).train()
    adapter = AdapterShape.of(model)
    if not setting.is_fused:
        adapter = replace(adapter, why_not_fused="it is not to be")
    elif (reason := fuse(model)) is not None:
        raise RuntimeError(reason)
    checkpoint_layers(model, setting.checkpointed, offloads=setting.offloads_checkpoints)
    flat = FlatParameters([parameter for parameter in model.parameters() if parameter.requires_grad])
    optimizer = torch.optim.AdamW([flat.flat], lr=1e-4, fused=True)
    accumulator = GradientAccumulator(
        lambda packed: model(packed=packed), flat.parameters, flat.gradients, lambda: None, uses_graphs=False
    )
    chosen: list[TokenizedSample] = []
    num_tokens = 0
    for sample in samples:  # whole samples, and the last one cut so that the pass is full
        room = setting.tokens - num_tokens
        if room <= len(sample.context) + 1:
            break
        chosen.append(sample)
        num_tokens += len(sample.input_ids)
    packed = pack(chosen[:-1] if num_tokens > setting.tokens else chosen)
    size = Pass(len(packed.input_ids), len(packed.label_indices), len(packed.segments.cu_query))
    packed = packed.to("cuda")
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    durations = []
    for _ in range(4):
        torch.cuda.synchronize()
        began_s = time.perf_counter()
        flat.begin_step()
        accumulator.add(packed, 1 / size.num_labels)
        torch.nn.utils.clip_grad_norm_([flat.flat], 1.0)
        optimizer.step()
        torch.cuda.synchronize()
        durations.append(time.perf_counter() - began_s)
    measured, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    settings = MemorySettings(
        setting.quantize, setting.offloads_embedding, setting.checkpointed, setting.offloads_checkpoints
    )
    planned = estimate_memory(base_shape, adapter, settings, size)
    return {
        "rows": size.num_tokens,
        "label_rows": size.num_labels,
        **{name: value for name, value in vars(setting).items() if name != "tokens"},
        "planned_gb": round(planned.peak / 1e9, 3),
        "measured_gb": round(measured / 1e9, 3),
        "planned_to_measured": round(planned.peak / measured, 4),
        "needed_gb": round(planned.needed / 1e9, 3),
        "reserved_gb": round(reserved / 1e9, 3),
        "step_ms": round(statistics.median(durations[1:]) * 1e3, 1),
    }


def run_settings(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        dataset = SampleDataset(load_samples(arguments.data, make_tokenizer(arguments.data, Path(folder))))
    rows = [dataset[index] for index in range(len(dataset))]
    samples = [TokenizedSample.of(row["input_ids"], row["labels"]) for row in rows]
    print(DeviceSpeed.measure(torch.device("cuda", 0), torch.bfloat16), flush=True)
    for setting in SETTINGS[arguments.part :: arguments.parts]:
        row = measure_setting(setting, samples)
        append_row(arguments.results / "memory_settings.csv", row, arguments.commit, **versions())
        gc.collect()
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Run:
    """A run of `glmtune train`.

    Attributes:
        name: What it is called in the results.
        gpu_gib: The card to be; None for no cap.
        overrides: Settings beside those of the tutorial.
        has_long_samples: Whether all samples have 512 tokens.
    """

    name: str
    gpu_gib: float | None = None
    overrides: tuple[str, ...] = ()
    has_long_samples: bool = False


RECIPE = "tutorial's recipe"
RUNS = [
    Run("6 GiB card", 6),
    Run("6 GiB card, samples of 512 tokens", 6, has_long_samples=True),
    Run("8 GiB card", 8),
    Run("12 GiB card", 12),
    Run("16 GiB card", 16),
    Run("24 GiB card", 24),
    Run("8 GiB card, samples of 512 tokens", 8, has_long_samples=True),
    Run("12 GiB card, samples of 512 tokens", 12, has_long_samples=True),
    Run("16 GiB card, samples of 512 tokens", 16, has_long_samples=True),
    Run("24 GiB card, samples of 512 tokens", 24, has_long_samples=True),
    Run(f"{RECIPE}, bf16", None, ("model.quantize=none", "train.max_tokens_per_device=447")),
    Run(f"{RECIPE}, int8", None, ("model.quantize=int8", "train.max_tokens_per_device=447")),
    Run(f"{RECIPE}, fp8", None, ("model.quantize=fp8", "train.max_tokens_per_device=447")),
    Run(
        f"{RECIPE}, nf4",
        None,
        ("model.quantize=nf4", "train.max_tokens_per_device=447", "model.offload_embedding=true"),
    ),
    Run(
        "2,048 packed tokens, nf4, checkpointing",
        None,
        (
            "model.quantize=nf4",
            "train.max_tokens_per_device=2048",
            "train.per_device_train_batch_size=40",
            "train.gradient_accumulation_steps=1",
            "train.gradient_checkpointing=true",
        ),
    ),
]


def run_one(run: Run, arguments: argparse.Namespace) -> None:
    """`glmtune train` for 50 or 150 steps, in this process."""
    total = torch.cuda.mem_get_info()[1]
    if run.gpu_gib is not None:
        torch.cuda.set_per_process_memory_fraction((run.gpu_gib - CONTEXT_GIB) * GIB / total)
    data = arguments.data
    folder = Path(tempfile.mkdtemp())
    if run.has_long_samples:
        data = folder / "long.json"
        write_long_samples(arguments.data, data)
    clock, plans = StepClock(), []
    make_callbacks, make_plan = training.make_callbacks, training.plan_run
    training.make_callbacks = lambda *given: [*make_callbacks(*given), clock]

    def remember(*given: Any, **named: Any) -> Any:
        plans.append(make_plan(*given, **named))
        return plans[-1]

    training.plan_run = remember
    config = load_config(
        None,
        [
            f"model.path={arguments.base}",
            f"data.path={data}",
            f"prompt.system={SYSTEM_PROMPT}",
            f"train.output_dir={folder / 'run'}",
            f"train.max_steps={50 if run.has_long_samples else 150}",
            "train.save_strategy=no",
            *run.overrides,
        ],
    )
    result = training.train(config)
    durations = clock.durations_ms()[-30:]  # by then most graphs have been recorded
    chosen = plans[0].chosen
    median_ms = statistics.median(durations)
    num_samples = config.train["per_device_train_batch_size"] * config.train["gradient_accumulation_steps"]
    row = {
        "run": run.name,
        "cap_gb": "" if run.gpu_gib is None else round((run.gpu_gib - CONTEXT_GIB) * GIB / 1e9, 2),
        "settings": " ".join(spell(chosen)),
        "steps": result.num_steps,
        "samples_per_s": round(num_samples / median_ms * 1e3, 1),
        "step_ms_min": round(min(durations), 1),
        "step_ms_median": round(median_ms, 1),
        "step_ms_max": round(max(durations), 1),
        "expected_step_ms": round(chosen.seconds_per_step * 1e3, 1),
        "planned_gb": round(chosen.memory.peak / 1e9, 2),
        "peak_allocated_gb": round(clock.peak_allocated / 1e9, 2),
        "needed_gb": round(chosen.memory.needed / 1e9, 2),
        "peak_reserved_gb": round(clock.peak_reserved / 1e9, 2),
        "first_loss": result.first_loss,
        "last_loss": result.last_loss,
    }
    append_row(arguments.results / "memory_cards.csv", row, arguments.commit, **versions())


def write_long_samples(source: Path, target: Path) -> None:
    """Instructions and replies of twenty rows each, which are cut to 512 tokens."""
    rows = json.loads(source.read_text(encoding="utf-8"))
    groups = [rows[start : start + 20] for start in range(0, len(rows) - 20, 9)]
    joined = [
        {key: "".join(row[key] for row in group) for key in ("instruction", "input", "output")} for group in groups
    ]
    target.write_text(json.dumps(joined, ensure_ascii=False), encoding="utf-8")


def run_cards(arguments: argparse.Namespace) -> None:
    """Each run in a process of its own, as the cap and the peak are the process's."""
    if arguments.run is not None:
        run_one(RUNS[arguments.run], arguments)
        return
    for index in range(arguments.part, len(RUNS), arguments.parts):
        subprocess.run([sys.executable, *sys.argv, "--run", str(index)], check=False)


def run_loading(arguments: argparse.Namespace) -> None:
    """Host and device memory while a folder is loaded, each format in a process of its own."""
    formats = ("none", "int8", "nf4", "fp8")
    if arguments.run is None:
        for index in range(len(formats)):
            subprocess.run([sys.executable, *sys.argv, "--run", str(index)], check=False)
        return
    quantize = formats[arguments.run]
    torch.zeros(1, device="cuda")
    before = host_bytes("VmRSS")
    began_s = time.perf_counter()
    model, _ = load_base(str(arguments.base), "bfloat16", quantize=quantize)
    seconds = time.perf_counter() - began_s
    row = {
        "quantize": quantize,
        "host_before_gb": round(before / 1e9, 2),
        "host_after_gb": round(host_bytes("VmRSS") / 1e9, 2),
        "host_peak_gb": round(host_bytes("VmHWM") / 1e9, 2),
        "gpu_after_gb": round(torch.cuda.memory_allocated() / 1e9, 2),
        "gpu_peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
        "seconds": round(seconds, 1),
    }
    append_row(arguments.results / "memory_loading.csv", row, arguments.commit, **versions())
    del model


def host_bytes(name: str) -> int:
    """A line of `/proc/self/status`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name}")


def main() -> None:
    """Runs one of the three parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["settings", "cards", "loading"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True, help="a folder")
    parser.add_argument("--commit", required=True, help="the commit that is measured")
    parser.add_argument("--base", type=Path, help="a folder of ChatGLM3-6B's shape; written if it is not there")
    parser.add_argument("--part", type=int, default=0, help="which share of the rows to do")
    parser.add_argument("--parts", type=int, default=1, help="how many shares there are")
    parser.add_argument("--run", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.results.mkdir(parents=True, exist_ok=True)
    if arguments.what != "settings" and not arguments.base.exists():
        with tempfile.TemporaryDirectory() as folder:
            make_tokenizer(arguments.data, Path(folder))
            build_random_base(arguments.base, Path(folder))
    {"settings": run_settings, "cards": run_cards, "loading": run_loading}[arguments.what](arguments)


if __name__ == "__main__":
    main()
